"""Contents of a detector file and the names of its parts.

docs/file-format.md describes every part.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from leery._files import below
from leery.calibration import Calibration
from leery.certify import Sentinel
from leery.combiners import Facts, make_combiner
from leery.detector._state import Fitted, FittedCombiner
from leery.detector._table import MetricTable
from leery.errors import InputError
from leery.inputs import InputSpec
from leery.metrics import KINDS, Metric

__all__ = ["Record"]


@dataclass(frozen=True)
class Record:
    """A fitted detector without its classifier.

    Attributes:
        classifier: class name of the classifier.
        settings: passes, seed, masks, combiner, batch_size, logits, trust_outputs.
        prototypes: the unfitted metrics.
        fitted: state fitted to the training data.
        combiner: the fitted combiner and its data; None if it is not fitted.
        calibration: the calibration; None if there is none.
        sentinel: tensors and facts of a sentinel, and its share; None if there is none.
    """

    classifier: str
    settings: Mapping[str, Any]
    prototypes: tuple[Metric, ...]
    fitted: Fitted
    combiner: FittedCombiner | None
    calibration: Calibration | None
    sentinel: tuple[Mapping[str, Tensor], Mapping[str, Any], float] | None

    def sentinel_of(self, model: nn.Module) -> Sentinel | None:
        """The sentinel for a classifier; None if there is none.

        Raises:
            InputError: when a part of it is missing or invalid.
        """
        if self.sentinel is None:
            return None
        tensors, facts, _ = self.sentinel
        return Sentinel.of_parts(model, tensors, facts, self.fitted.inputs)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and the metadata for JSON."""
        fitted = self.fitted
        tensors = {
            f"metrics/{metric.name}/{part}": tensor
            for metric in fitted.metrics
            for part, tensor in metric.state_dict().items()
        }
        tensors["seen/fit"] = fitted.seen
        facts: dict[str, Any] = {
            "classifier": self.classifier,
            "classifier_sha256": fitted.fingerprint,
            "classes": fitted.classes,
            "inputs": fitted.inputs.facts(),
            "settings": dict(self.settings),
            "grid": fitted.grid,
            "layers": {"head": fitted.head, "each": list(fitted.each)},
            "metrics": [_described(metric) for metric in fitted.metrics],
        }
        if self.combiner is not None:
            for part, tensor in self.combiner.combiner.state_dict().items():
                tensors[f"combiner/{part}"] = tensor
            tensors["clean/values"] = torch.from_numpy(self.combiner.clean.values)
            tensors["clean/predicted"] = torch.from_numpy(self.combiner.clean.predicted)
            tensors["seen/combiner"] = self.combiner.seen
        if self.calibration is not None:
            arrays, facts["calibration"] = self.calibration.parts()
            tensors |= {f"calibration/{part}": array for part, array in arrays.items()}
        if self.sentinel is not None:
            own, described, share = self.sentinel
            tensors |= {f"sentinel/{part}": tensor for part, tensor in own.items()}
            facts["sentinel"] = {**described, "share": share}
        return tensors, facts

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], given: Sequence[Metric]
    ) -> Self:
        """The inverse of :meth:`parts`.

        Args:
            tensors: tensors by name.
            facts: JSON metadata whose types :func:`leery.detector._storage.read_file` has checked.
            given: instances of custom metrics.

        Raises:
            LeeryError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError: when a
                part is missing or invalid.
        """
        classes, layers = facts["classes"], facts["layers"]
        own = {metric.name: metric for metric in given}
        prototypes = tuple(_prototype(entry, own) for entry in facts["metrics"])
        metrics = copy.deepcopy(prototypes)
        for metric in metrics:
            metric.restore(below(tensors, f"metrics/{metric.name}"))
            metric.check_classes(classes)
        fitted = Fitted(
            metrics=metrics,
            head=layers["head"],
            each=tuple(layers["each"]),
            inputs=InputSpec.from_facts(facts["inputs"]),
            classes=classes,
            fingerprint=facts["classifier_sha256"],
            seen=_hashes(tensors["seen/fit"]),
            grid=facts["grid"],
            accuracy=None,
        )
        fitted_combiner = None
        if state := below(tensors, "combiner"):
            combiner = make_combiner(facts["settings"]["combiner"], [Facts.of(m) for m in metrics])
            clean = MetricTable(fitted.names, *_measured(below(tensors, "clean")))
            fitted_combiner = FittedCombiner(
                combiner.restore(state), clean, _hashes(tensors["seen/combiner"])
            )
        calibration = None
        if promised := facts.get("calibration"):
            arrays = below(tensors, "calibration")
            calibration = Calibration.of_parts(arrays, promised).checked(classes)
        sentinel = None
        if described := facts.get("sentinel"):
            sentinel = below(tensors, "sentinel"), described, described["share"]
        return cls(
            facts["classifier"],
            facts["settings"],
            prototypes,
            fitted,
            fitted_combiner,
            calibration,
            sentinel,
        )


def _described(metric: Metric) -> dict[str, Any]:
    kind = type(metric)
    own = KINDS.get(kind.__name__) is kind
    return {
        "name": metric.name,
        "family": metric.family,
        "direction": metric.direction,
        "kind": kind.__name__ if own else f"{kind.__module__}:{kind.__qualname__}",
        "options": metric.options() if own else {},
    }


def _prototype(entry: Mapping[str, Any], given: Mapping[str, Metric]) -> Metric:
    """An unfitted metric of the file: a built-in one is made anew, a custom one is passed.

    Raises:
        InputError: when a custom metric was not passed or is of another class.
    """
    name, kind = entry["name"], entry["kind"]
    if name in given:
        # The module may have another name where it was saved, such as __main__.
        if kind.rpartition(":")[2] != type(given[name]).__qualname__:
            message = (
                f"expected {kind} for the metric {name!r}, got {type(given[name]).__name__}; pass "
                "an instance of that class"
            )
            raise InputError(message)
        return given[name]
    if kind in KINDS:
        metric = KINDS[kind](**entry["options"])
        metric.name = name
        return metric
    message = (
        f"expected an instance of the custom metric {name!r} ({kind}), got none; pass "
        f"metrics=[...] with it (--metric {kind})"
    )
    raise InputError(message)


def _hashes(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.int64 or tensor.ndim != 1:
        message = f"hashes of shape {tuple(tensor.shape)} and {tensor.dtype}"
        raise InputError(message)
    return tensor


def _measured(arrays: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """The metrics of clean images, and their predicted classes.

    Raises:
        InputError: when their lengths or types are wrong.
    """
    values, predicted = arrays["values"].numpy(), arrays["predicted"].numpy()
    if values.dtype != np.float64 or not np.isfinite(values).all():
        message = f"values of {values.dtype}, not finite float64"
        raise InputError(message)
    if values.ndim != 2 or predicted.shape != values.shape[:1] or predicted.dtype != np.int64:  # noqa: PLR2004 - images, metrics
        message = f"values of shape {values.shape} and classes of {predicted.shape}"
        raise InputError(message)
    return values, predicted
