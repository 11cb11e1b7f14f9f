"""Preprocessed data sets: memory-mapped arrays and JSON, read without scan readers."""

from kidseg.store.build import build_store
from kidseg.store.files import grid_from_json, grid_to_json, is_store
from kidseg.store.recipe import Prepared, Recipe
from kidseg.store.store import Store, StoredCase, open_store

__all__ = [
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
