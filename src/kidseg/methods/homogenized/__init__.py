"""System A: pose and size homogenized, cropped, segmented."""
