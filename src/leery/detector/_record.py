"""What a file holds of a detector, and how its parts are named there.

docs/file-format.md describes every part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from leery.detector._calibration import Calibration
from leery.detector._combiner import COMBINERS, Combiner
from leery.detector._registry import Closeness, Reference, make_closeness
from leery.detector._storage import below
from leery.detector._table import MetricTable
from leery.errors import InputError

__all__ = ["Record"]

MOST_NUMBERS = 2**28
"""In one input; a bound that keeps a file of a stranger from asking for all the memory."""


@dataclass(frozen=True)
class Record:
    """A fitted detector without its classifier.

    Attributes:
        classifier: the name of its class.
        fingerprint: of its layers and weights.
        classes: their number.
        shape: of one input.
        dtype: of the inputs.
        settings: the arguments of the detector.
        closeness: the fitted metrics of closeness by name.
        combiner: where there is one.
        clean: the metrics of the clean images that the combiner learned from; with a combiner.
        calibration: where there is one.
    """

    classifier: str
    fingerprint: str
    classes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    settings: Mapping[str, Any]
    closeness: Mapping[str, Closeness]
    combiner: Combiner | None
    clean: MetricTable | None
    calibration: Calibration | None

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the facts for JSON."""
        facts: dict[str, Any] = {
            "classifier": self.classifier,
            "classifier_sha256": self.fingerprint,
            "classes": self.classes,
            "inputs": {
                "shape": list(self.shape),
                "dtype": str(self.dtype).removeprefix("torch."),
            },
            "settings": dict(self.settings),
        }
        arrays: dict[str, np.ndarray] = {}
        if self.combiner is not None and self.clean is not None:
            for part, array in self.combiner.to_arrays().items():
                arrays[f"combiner/{part}"] = array
            arrays["clean/values"] = self.clean.values
            arrays["clean/predicted"] = self.clean.predicted
        if self.calibration is not None:
            arrays["calibration/scores"] = self.calibration.scores
            arrays["calibration/predicted"] = self.calibration.predicted
            facts["calibration"] = {
                "fpr": self.calibration.fpr,
                "promise": self.calibration.promise,
                "confidence": self.calibration.confidence,
                "per_class": self.calibration.per_class,
            }
        tensors = {
            f"{name}/{part}": tensor
            for name, metric in self.closeness.items()
            for part, tensor in metric.to_tensors().items()
        }
        return tensors | {name: torch.from_numpy(array) for name, array in arrays.items()}, facts

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`parts`.

        Args:
            tensors: by name.
            facts: of the types that :func:`leery.detector._storage.read_file` has checked.

        Raises:
            LeeryError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError: when
                a part is missing or cannot be what it should be.
        """
        settings, classes = facts["settings"], facts["classes"]
        metrics = tuple(settings["metrics"])
        shape, dtype = _inputs(**facts["inputs"])
        arrays = {
            name: tensor.numpy()
            for name, tensor in tensors.items()
            if name.partition("/")[0] in ("combiner", "clean", "calibration")
        }
        combiner, clean = None, None
        if fused := below(arrays, "combiner"):
            combiner = COMBINERS[settings["combiner"]](_finite(fused), metrics)
            clean = MetricTable(metrics, *_measured(below(arrays, "clean"), "values", 2))
        calibration = None
        if promised := facts.get("calibration"):
            scores, predicted = _measured(below(arrays, "calibration"), "scores", 1)
            calibration = Calibration(**promised, scores=scores, predicted=predicted)
            calibration = calibration.checked(classes)
        return cls(
            classifier=facts["classifier"],
            fingerprint=facts["classifier_sha256"],
            classes=classes,
            shape=shape,
            dtype=dtype,
            settings=settings,
            closeness=_closeness(tensors, settings, classes),
            combiner=combiner,
            clean=clean,
            calibration=calibration,
        )


def _closeness(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], classes: int
) -> dict[str, Closeness]:
    """The fitted metrics of closeness.

    Raises:
        InputError: when one does not know every class.
    """
    kept = Reference(*(settings[name] for name in ("bandwidth", "references", "precision", "seed")))
    metrics = make_closeness(settings["metrics"], kept)
    for name, metric in metrics.items():
        state = below(tensors, name)
        labels = sorted(int(part) for part in state if part != "bandwidth")
        if labels != list(range(len(labels))) or len(labels) != classes:
            message = f"{name} of classes {labels}, not of all {classes}"
            raise InputError(message)
        metric.restore(state)
    return metrics


def _finite(arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays, refused unless all are finite float64.

    Raises:
        InputError: then.
    """
    for name, array in arrays.items():
        if array.dtype != np.float64 or not np.isfinite(array).all():
            message = f"{name} of {array.dtype}, not finite float64"
            raise InputError(message)
    return arrays


def _measured(
    arrays: Mapping[str, np.ndarray], name: str, dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of images and their predicted classes.

    Raises:
        InputError: when they are not of one number of images, or of other types.
    """
    values, predicted = _finite({name: arrays[name]})[name], arrays["predicted"]
    whole = values.ndim == dimensions and predicted.shape == values.shape[:1]
    if not whole or predicted.dtype != np.int64:
        message = f"{name} of shape {values.shape} and classes of {predicted.shape}"
        raise InputError(message)
    return values, predicted


def _inputs(shape: Sequence[int], dtype: str) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and type of an input, from what a file says of them.

    Raises:
        InputError: when there can be no such input.
    """
    kind = getattr(torch, dtype, None)
    sizes = all(type(size) is int and size > 0 for size in shape)
    if (
        not isinstance(kind, torch.dtype)
        or kind.is_complex
        or not sizes
        or math.prod(shape) > MOST_NUMBERS
    ):
        message = f"no inputs of shape {shape} and type {dtype!r}"
        raise InputError(message)
    return tuple(shape), kind
