"""False alarms of a calibrated detector, by kind of image and by class."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from leery.attacks import CORRUPTIONS, Harmless
from leery.detector import Detector
from leery.errors import InputError
from leery.evaluation._intervals import share_interval
from leery.inputs import Images, labelled_batches

__all__ = ["alarm_rows", "false_alarms"]


def false_alarms(
    detector: Detector,
    images: Images,
    labels: Tensor | None = None,
    *,
    changes: Mapping[str, Harmless] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Count the false alarms on clean and on harmlessly changed images, overall and per class.

    Only images that the classifier gets right count, because a warning about a wrong prediction is
    not a false alarm.

    Args:
        detector: a calibrated detector.
        images: ``(N, ...)``, not used in fitting or calibration; or batches with labels.
        labels: int ``(N,)``, the true classes.
        changes: harmless changes by name; by default the mild form of each of
            :data:`leery.attacks.CORRUPTIONS` for images with known bounds and none for other data.
        seed: random seed of the changes, to which the index of the batch is added.

    Returns:
        A table with the columns change ("clean", or a name in ``changes``), class ("all", or a true
        class as a string), images (number of correctly classified ones), share (fraction of these
        that is flagged), and low and high, its 95 % confidence interval.

    Raises:
        NotFittedError: when the detector has no combiner.
        InputError: when it is not calibrated, or images, labels and changes do not match.
    """
    if detector.calibration_ is None:
        message = "expected a calibrated detector, got one without a threshold; call calibrate()"
        raise InputError(message)
    inputs = detector.inputs_
    if changes is None:
        mild = {name: make(1) for name, make in CORRUPTIONS.items()}
        changes = mild if inputs.are_images else {}
    bounds = inputs.bounds or (0.0, 1.0)
    flagged: dict[str, list[np.ndarray]] = {}
    right: dict[str, list[np.ndarray]] = {}
    truths: list[np.ndarray] = []
    for number, (batch, truth) in enumerate(labelled_batches(images, labels)):
        if truth is None:
            message = "expected the labels of the images, got None; pass them"
            raise InputError(message)
        truths.append(truth.cpu().numpy())
        versions = {name: change(batch, seed + number, bounds) for name, change in changes.items()}
        for name, shown in {"clean": batch, **versions}.items():
            verdicts = detector.judge(shown)
            assert verdicts.adversarial is not None
            flagged.setdefault(name, []).append(verdicts.adversarial)
            right.setdefault(name, []).append(verdicts.predicted == truths[-1])
    classes = np.concatenate(truths)
    return pd.DataFrame(
        row
        for name, parts in flagged.items()
        for row in alarm_rows(name, np.concatenate(parts), np.concatenate(right[name]), classes)
    )


def alarm_rows(
    change: str, flagged: np.ndarray, right: np.ndarray, classes: np.ndarray
) -> Iterator[dict[str, Any]]:
    """The flagged share of correctly classified images with its interval, overall and per class.

    Args:
        change: name of the kind of images.
        flagged: bool ``(N,)``.
        right: bool ``(N,)``, True for correctly classified images.
        classes: int ``(N,)``, the true classes.

    Yields:
        Rows of :func:`false_alarms`; a class without correctly classified images has none.
    """
    for label in ("all", *np.unique(classes).tolist()):
        rows = right if label == "all" else right & (classes == label)
        if rows.any():
            share = share_interval(int(flagged[rows].sum()), int(rows.sum()))
            yield {
                "change": change,
                "class": str(label),
                "images": int(rows.sum()),
                "share": share.estimate,
                "low": share.low,
                "high": share.high,
            }
