"""System A: homogenize pose and size, crop, segment."""
