"""Training data: preprocessed subjects, kept in a store, and the batches drawn from them."""
