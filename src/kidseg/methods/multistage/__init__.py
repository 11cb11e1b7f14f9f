"""Multi-stage segmentation: find the kidneys, segment each with two networks, average them."""
