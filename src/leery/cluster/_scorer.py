"""Verdicts on batches, for a data pipeline of the user's own."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from leery.detector import SavedDetector
from leery.errors import InputError, listed
from leery.inputs import Format, item_of, rows_at_once
from leery.scoring import row_schema, rows_of
from leery.tasks import single_threaded

__all__ = ["Scorer"]


class Scorer:
    """Scores batches of images: a callable class for Ray Data's ``map_batches`` or Spark.

    Args:
        file: the detector's file, which every node can read.
        model: picklable function that returns the classifier.
        metrics: names of the user's own metrics, as "module:name".
        images: name of the column of the images: encoded ones (such as PNG or JPEG) as bytes, or
            arrays as the form describes them; uint8 is divided by 255.
        keep: names of columns that are copied to the result.
        form: conversion of the images to model inputs; shape and dtype are those of the fit.

    Raises:
        LeeryError: when the detector cannot be loaded.
        InputError: when a column to keep has the name of a column of the result.

    Example:
        >>> scored = images.map_batches(  # doctest: +SKIP
        ...     Scorer,
        ...     fn_constructor_args=("/shared/guard.leery", make),
        ...     num_cpus=1,
        ...     compute=ray.data.ActorPoolStrategy(size=8),
        ... )
    """

    def __init__(
        self,
        file: Path | str,
        model: Callable[[], nn.Module],
        *,
        metrics: Sequence[str] = (),
        images: str = "image",
        keep: Sequence[str] = (),
        form: Format | None = None,
    ) -> None:
        self._detector, _ = SavedDetector(Path(file), model, tuple(metrics)).load()
        self._images, self._keep = images, tuple(keep)
        if twice := {*self._keep} & {*self.schema.names}:
            message = (
                f"expected columns to keep whose names the result does not use, got "
                f"{min(twice)!r}; rename that column"
            )
            raise InputError(message)
        known = self._detector.inputs_
        self._form = replace(form or Format(), shape=known.shape, dtype=known.dtype)
        # A batch may be far larger than what fits into memory as model inputs.
        self._at_once = rows_at_once(known.shape)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the result, without those that are copied.

        They are those of :func:`leery.scoring.score_to_file` without the name.
        """
        every = row_schema(self._detector)
        return every.remove(every.get_field_index("name"))

    def __call__(
        self, batch: Mapping[str, np.ndarray] | pa.Table | pa.RecordBatch
    ) -> pa.Table | pa.RecordBatch:
        """Score a batch.

        Args:
            batch: columns by name as NumPy arrays, or an Arrow table or record batch.

        Returns:
            One row per image, in order: the copied columns, and those of :attr:`schema`; a record
            batch for a record batch. For an image that cannot be read, error holds the reason.

        Raises:
            InputError: when a column is missing.
        """
        columns: Mapping[str, Any] = (
            batch
            if isinstance(batch, Mapping)
            else dict(zip(batch.schema.names, batch.columns, strict=True))
        )
        lacking = [name for name in (self._images, *self._keep) if name not in columns]
        if lacking:
            message = (
                f"expected a column {lacking[0]!r}, got {listed(columns)}; rename your column, or "
                "pass its name (images=, keep=)"
            )
            raise InputError(message)
        values = iter(_values(columns[self._images]))
        tables = [row_schema(self._detector).empty_table()]
        with single_threaded():
            while several := list(islice(values, self._at_once)):
                items = [item_of(value, self._form) for value in several]
                tables.append(rows_of(self._detector, items))
        scored = pa.concat_tables(tables)
        rows = {name: _kept(columns[name]) for name in self._keep}
        rows |= {name: scored.column(name).combine_chunks() for name in self.schema.names}
        return pa.record_batch(rows) if isinstance(batch, pa.RecordBatch) else pa.table(rows)


def _kept(column: Any) -> Any:  # noqa: ANN401 - of NumPy or Arrow
    """A column for Arrow, which takes arrays of several dimensions as tensors only."""
    if not isinstance(column, np.ndarray) or column.ndim == 1:
        return column
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(column.dtype), column.shape[1:])
    # from_numpy_ndarray refuses an empty array.
    return (
        pa.FixedShapeTensorArray.from_numpy_ndarray(column) if len(column) else pa.array([], kind)
    )


def _values(column: np.ndarray | pa.Array | pa.ChunkedArray) -> Iterable[Any]:
    """The values of a column; lists and tensors of Arrow as arrays of their type of numbers."""
    if isinstance(column, np.ndarray):
        return column
    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        tensors: np.ndarray = whole.to_numpy_ndarray()
        return tensors
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    # Without it, small integers would come back as large ones, which are not pixels.
    numbers = kind.to_pandas_dtype() if pa.types.is_primitive(kind) else None
    return (_array(value, numbers) for value in column.to_pylist())


def _array(value: object, numbers: object) -> object:
    """A list as an array of a type of numbers, if it is one."""
    try:
        return np.asarray(value, numbers) if isinstance(value, list) else value  # type: ignore[call-overload]
    except (TypeError, ValueError):
        # What is wrong with it will be said in its row.
        return value
