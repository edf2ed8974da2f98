"""Certificates of test images by a sentinel, and the shares that are certified."""

from collections.abc import Callable, Sequence

import pandas as pd
from torch import Tensor

from leery._checks import check_labels
from leery.certify import Sentinel
from leery.errors import InputError
from leery.evaluation._intervals import share_interval
from leery.models import predict

__all__ = ["certificates", "certified_shares"]

_IMAGES_AT_ONCE = 1000
"""Number of images between two reports of progress."""


def certificates(
    sentinel: Sentinel,
    images: Tensor,
    labels: Tensor,
    *,
    epsilons: Sequence[float],
    boxes: int = 1,
    radii: bool = True,
    advance: Callable[[int], object] = lambda _images: None,
) -> pd.DataFrame:
    """What a sentinel proves of each image.

    Args:
        sentinel: a calibrated sentinel.
        images: clean test images ``(N, channels, height, width)`` within the pixel bounds.
        labels: int ``(N,)``, their true classes.
        epsilons: L-infinity radii, in the units of the pixels.
        boxes: maximum number of boxes per image, as for :meth:`leery.certify.Sentinel.certify`.
        radii: False to leave out the radii, which cost as much as ten epsilons.
        advance: function that is called with the number of images done.

    Returns:
        A table with the columns label, predicted, right (the classifier gets the image right),
        sentinel (its score), sentinel_flagged (a false alarm, if right), per epsilon E
        certified_linf_E and cannot_alarm_linf_E, and linf_radius, the largest certified epsilon
        without splitting.

    Raises:
        NotFittedError: when the sentinel is not calibrated.
        InputError: when images, labels or epsilons do not fit.
    """
    check_labels(labels, len(images), sentinel.classes_)
    if not epsilons:
        message = "expected at least one epsilon, got none; pass some"
        raise InputError(message)
    parts = []
    for batch, truth in zip(
        images.split(_IMAGES_AT_ONCE), labels.split(_IMAGES_AT_ONCE), strict=True
    ):
        predicted = predict(sentinel.model, batch)
        score = sentinel.score(batch)
        columns = {
            "label": truth.numpy(),
            "predicted": predicted.numpy(),
            "right": (predicted == truth).numpy(),
            "sentinel": score,
            "sentinel_flagged": score > sentinel.thresholds_[predicted.numpy()],
        }
        for epsilon in epsilons:
            columns[f"certified_linf_{epsilon:g}"] = sentinel.certify(
                batch, truth, epsilon=epsilon, boxes=boxes
            )
            columns[f"cannot_alarm_linf_{epsilon:g}"] = sentinel.cannot_alarm(
                batch, truth, epsilon=epsilon
            )
        if radii:
            columns["linf_radius"] = sentinel.radius(batch, truth)
        parts.append(pd.DataFrame(columns))
        advance(len(batch))
    return pd.concat(parts, ignore_index=True)


def certified_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of the images that the classifier gets right, with 95 % confidence intervals.

    Args:
        rows: the table of :func:`certificates`.

    Returns:
        A table with the columns what ("false alarms", "certified", "certified, not flagged" or
        "cannot alarm"), epsilon (NaN for false alarms), images, share, low and high. With a
        negative threshold a certified image may be a false alarm itself.

    Raises:
        InputError: when the classifier gets no image right.
    """
    right = rows[rows.right]
    if right.empty:
        message = "expected a correctly classified image, got none; check model and labels"
        raise InputError(message)
    found = [("false alarms", float("nan"), right.sentinel_flagged)]
    for column in rows.columns:
        what, _, epsilon = column.rpartition("_linf_")
        if what in ("certified", "cannot_alarm"):
            found.append((what.replace("_", " "), float(epsilon), right[column]))
        if what == "certified":
            calm = right[column] & ~right.sentinel_flagged
            found.append(("certified, not flagged", float(epsilon), calm))
    return pd.DataFrame(
        [
            {"what": what, "epsilon": epsilon, "images": len(right), **_share(hits)}
            for what, epsilon, hits in found
        ]
    )


def _share(hits: "pd.Series[bool]") -> dict[str, float]:
    found = share_interval(int(hits.sum()), len(hits))
    return {"share": found.estimate, "low": found.low, "high": found.high}
