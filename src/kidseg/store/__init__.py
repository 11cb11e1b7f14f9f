"""Voxels ready for training: memory-mapped arrays and JSON, read with torch and numpy alone."""

from kidseg.store.build import build_store
from kidseg.store.opening import Store, StoredCase, open_store

__all__ = ["Store", "StoredCase", "build_store", "open_store"]
