"""Verdicts on inputs as the rows of a table."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from leery.detector import Detector, Verdicts
from leery.errors import InputError, WrongModelError
from leery.inputs import Item

__all__ = ["row_schema", "rows_of"]


def row_schema(detector: Detector) -> pa.Schema:
    """The columns of a detector's rows."""
    return pa.schema(
        [
            ("name", pa.string()),
            ("predicted", pa.int64()),
            ("score", pa.float64()),
            ("p_value", pa.float64()),
            ("adversarial", pa.bool_()),
            *(
                [("sentinel", pa.float64()), ("sentinel_flagged", pa.bool_())]
                if detector.sentinel_ is not None
                else []
            ),
            *((name, pa.float64()) for name in detector.metrics),
            ("error", pa.string()),
        ]
    )


def rows_of(detector: Detector, items: Sequence[Item]) -> pa.Table:
    """Score items and return a table with one row per item.

    For an item that cannot be read or measured, error holds the reason and all other columns but
    name are empty.
    """
    schema = row_schema(detector)
    errors = [item.error or None for item in items]
    readable = np.flatnonzero([item.image is not None for item in items])
    places: list[np.ndarray] = []
    tables: list[pa.Table] = []
    for rows, found in _judged(detector, readable, [item.image for item in items]):
        if isinstance(found, str):
            errors[rows[0]] = found
        else:
            places.append(rows)
            tables.append(found.to_arrow())
    own = [field for field in schema if field.name not in ("name", "error")]
    verdicts = pa.concat_tables([pa.schema(own).empty_table(), *tables])
    # A row without a verdict has a masked index, which gives nulls.
    order = np.full(len(items), -1)
    order[np.concatenate([*places, np.empty(0, int)])] = np.arange(len(verdicts))
    taken = verdicts.take(pa.array(order, mask=order < 0))
    names = pa.array([item.name for item in items], pa.string())
    columns = {"name": names, "error": pa.array(errors, pa.string())}
    for column in own:
        columns[column.name] = taken.column(column.name)
    return pa.table([columns[name] for name in schema.names], schema)


def _judged(
    detector: Detector, rows: np.ndarray, images: Sequence[Tensor | None]
) -> Iterator[tuple[np.ndarray, Verdicts | str]]:
    """Verdicts on rows, or the reason why there is none; a bad image does not affect others."""
    if not len(rows):
        return
    reason = "a metric is not finite"
    try:
        shown = [image for row in rows if (image := images[row]) is not None]
        verdicts = detector.judge(torch.stack(shown))
        if np.isfinite(verdicts.metrics).all():
            yield rows, verdicts
            return
    except WrongModelError:
        raise
    except InputError as error:
        reason = str(error)
    if len(rows) == 1:
        yield rows, f"cannot be measured: {reason}"
        return
    half = len(rows) // 2
    yield from _judged(detector, rows[:half], images)
    yield from _judged(detector, rows[half:], images)
