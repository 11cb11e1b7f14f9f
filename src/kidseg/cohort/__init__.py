"""Training material: subjects, made ready in a store, and the batches drawn from them."""
