"""False alarms of a calibrated detector, by kind of image and by class."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from leery._checks import Bounds, check_seed
from leery.attacks import CORRUPTIONS, Harmless, check_harmless
from leery.detector import Detector
from leery.errors import InputError, NotFittedError
from leery.evaluation._evaluate import check_unseen
from leery.evaluation._intervals import share_interval
from leery.inputs import Images, labelled_batches

__all__ = ["alarm_rows", "false_alarms"]


def false_alarms(
    detector: Detector,
    images: Images,
    labels: Tensor | None = None,
    *,
    changes: Mapping[str, Harmless] | None = None,
    bounds: Bounds | None = None,
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
        bounds: pixel bounds of the changes; by default those of the detector.
        seed: random seed of the changes, to which the index of the batch is added.

    Returns:
        A table with the columns change ("clean", or a name in ``changes``), class ("all", or a true
        class as a string), images (number of correctly classified ones), share (fraction of these
        that is flagged), and low and high, its 95 % confidence interval.

    Raises:
        NotFittedError: when the detector is not calibrated.
        InputError: when images, labels and changes do not match, no image is classified correctly,
            or the detector has learned from more than a few of the images.
    """
    if detector.calibration_ is None:
        message = "expected a calibrated detector, got one without a threshold; call calibrate()"
        raise NotFittedError(message)
    check_seed(seed)
    known = bounds or detector.inputs_.bounds
    made = check_harmless(_mild(detector, known) if changes is None else changes, known)
    if "clean" in made:
        message = 'expected harmless changes of other names, got "clean"; rename that change'
        raise InputError(message)
    flagged: dict[str, list[np.ndarray]] = {}
    right: dict[str, list[np.ndarray]] = {}
    truths: list[np.ndarray] = []
    learned = 0
    for number, (batch, truth) in enumerate(labelled_batches(images, labels)):
        if truth is None:
            message = "expected the labels of the images, got None; pass them"
            raise InputError(message)
        truths.append(truth.cpu().numpy())
        learned += check_unseen(detector, batch, learned, sum(map(len, truths)))
        for name in ("clean", *made):
            # One at a time, because each is as large as the images.
            shown = batch if name == "clean" else _changed(batch, name, made, seed + number, known)
            verdicts = detector.judge(shown)
            assert verdicts.adversarial is not None
            flagged.setdefault(name, []).append(verdicts.adversarial)
            right.setdefault(name, []).append(verdicts.predicted == truths[-1])
    if not any(map(np.any, right["clean"])):
        message = "expected a correctly classified image, got none; check model and labels"
        raise InputError(message)
    classes = np.concatenate(truths)
    return pd.DataFrame(
        row
        for name, parts in flagged.items()
        for row in alarm_rows(name, np.concatenate(parts), np.concatenate(right[name]), classes)
    )


def _changed(
    images: Tensor, name: str, changes: Mapping[str, Harmless], seed: int, bounds: Bounds | None
) -> Tensor:
    """Images with a change.

    Raises:
        InputError: when it returns another shape.
    """
    made = changes[name](images, seed, bounds or (0.0, 1.0))
    if made.shape != images.shape:
        message = (
            f"expected images of shape {tuple(images.shape)} from the change {name!r}, got "
            f"{tuple(made.shape)}; correct it"
        )
        raise InputError(message)
    return made


def _mild(detector: Detector, bounds: Bounds | None) -> Mapping[str, Harmless]:
    """The default changes."""
    images = replace(detector.inputs_, bounds=bounds).are_images
    return {name: make(1) for name, make in CORRUPTIONS.items()} if images else {}


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
