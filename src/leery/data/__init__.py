"""Named datasets: fetched from their sources, verified, parsed.

>>> from leery.data import load
>>> images, labels = load("mnist", split="test")
>>> tuple(images.shape), tuple(labels.shape)
((10000, 1, 28, 28), (10000,))
"""

from leery.data._cache import cache_folder
from leery.data._idx import parse_idx
from leery.data._load import data_sums, load
from leery.data._registry import DATASETS, NamedDataset, named

__all__ = [
    "DATASETS",
    "NamedDataset",
    "cache_folder",
    "data_sums",
    "load",
    "named",
    "parse_idx",
]
