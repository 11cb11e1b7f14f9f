"""Voxels ready for training: memory-mapped arrays and JSON, read with torch and numpy alone."""

from kidseg.store.build import build_store
from kidseg.store.files import grid_from_json, grid_to_json, is_store
from kidseg.store.opening import Store, StoredCase, open_store
from kidseg.store.recipe import Content, Prepared, Recipe

__all__ = [
    "Content",
    "Prepared",
    "Recipe",
    "Store",
    "StoredCase",
    "build_store",
    "grid_from_json",
    "grid_to_json",
    "is_store",
    "open_store",
]
