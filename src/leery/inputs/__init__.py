"""Reading of images from folders, image files, NumPy arrays and Parquet files.

>>> import numpy as np, tempfile, pathlib
>>> path = pathlib.Path(tempfile.mkdtemp()) / "some.npz"
>>> np.savez(path, images=np.zeros((3, 1, 8, 8), np.uint8), labels=np.array([0, 1, 0]))
>>> [item.label for item in read([path], Format())]
[0, 1, 0]
"""

from leery.inputs._cuts import Cuts, rows_at_once
from leery.inputs._format import Channels, Format
from leery.inputs._item import Item, printable
from leery.inputs._loaders import Images, halves, image_batches, known_count, labelled_batches
from leery.inputs._read import batches, count, item_of, load, load_labelled, read
from leery.inputs._spec import InputSpec, Moments, bounds_seen

__all__ = [
    "Channels",
    "Cuts",
    "Format",
    "Images",
    "InputSpec",
    "Item",
    "Moments",
    "batches",
    "bounds_seen",
    "count",
    "halves",
    "image_batches",
    "item_of",
    "known_count",
    "labelled_batches",
    "load",
    "load_labelled",
    "printable",
    "read",
    "rows_at_once",
]
