"""The logic of the module KidSeg, without a window: none of it needs Qt."""
