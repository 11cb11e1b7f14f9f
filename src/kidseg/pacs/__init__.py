"""The hospital's archive: studies in, segmentations and reports back into the same study."""
