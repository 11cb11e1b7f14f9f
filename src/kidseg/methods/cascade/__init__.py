"""System C: a cascade of 2D and 3D networks with a correction of abnormal cases."""
