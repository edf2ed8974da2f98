"""What a detector file holds, for people and machines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import leery
from leery.cli._options import facts_table
from leery.errors import warn

if TYPE_CHECKING:
    from leery.calibration import Calibration

__all__ = ["described", "print_description", "training_of", "warn_of_lost_promises"]


def described(path: Path) -> dict[str, Any]:
    """The facts of a detector file, with its size in bytes.

    Raises:
        DetectorFileError: when it is none.
    """
    return {**leery.detector.describe(path), "bytes": path.stat().st_size}


def print_description(console: Console, path: Path, facts: dict[str, Any]) -> None:
    """A table of the facts."""
    settings = facts["settings"]
    tensors = facts["tensors"]
    known = facts["inputs"]
    shown = {
        "classifier": f"{facts['classifier']}, SHA-256 {facts['classifier_sha256'][:12]}...",
        "classes": facts["classes"],
        "inputs": f"{tuple(known['shape'])}, {known['dtype']}",
        "bounds of the pixels": known["bounds"] or "unknown",
        "range in the fit": f"{known['low']:g} to {known['high']:g}, mean {known['mean']:.3g}, "
        f"standard deviation {known['std']:.3g}",
        "feature layer": facts["layers"]["head"] or "none",
        "metrics": ", ".join(metric["name"] for metric in facts["metrics"]),
        "passes": settings["passes"],
        **_kept(facts),
        "combiner": settings["combiner"] if "clean/values" in tensors else "not fitted",
        **_alarms(facts),
        "size": f"{facts['bytes']:,} bytes",
    }
    console.print(facts_table(str(path), shown))


def _kept(facts: dict[str, Any]) -> dict[str, str]:
    """The bandwidth of a kernel density, and the training features that it keeps."""
    for metric in facts["metrics"]:
        points = facts["tensors"].get(f"metrics/{metric['name']}/points")
        if metric["kind"] == "KernelDensity" and points is not None:
            options = metric["options"]
            return {
                "bandwidth": str(options.get("bandwidth")),
                "references": f"{sum(points['shape'][:1])} in {options.get('precision')}",
            }
    return {}


def _alarms(facts: dict[str, Any]) -> dict[str, str]:
    """What is promised of the false alarms, for the metrics and for a sentinel."""
    tensors, sentinel = facts["tensors"], facts.get("sentinel")
    own = _promised(facts.get("calibration"), tensors.get("calibration/scores"))
    if sentinel is None:
        return {"false alarms": own}
    beside = _promised(sentinel["calibration"], tensors.get("sentinel/calibration/scores"))
    training = sentinel["training"]
    both = facts.get("calibration") and sentinel["calibration"]
    return {
        "false alarms": f"at most {_whole(facts, sentinel):g}" if both else "not calibrated",
        "false alarms of the metrics": own,
        "false alarms of the sentinel": beside,
        "sentinel trained": "unknown" if training is None else training_of(training),
    }


def training_of(training: Mapping[str, Any]) -> str:
    """What a sentinel was trained with."""
    return (
        f"for L-infinity changes up to {training['epsilon']:g} of the pixel range, "
        f"{training['epochs']} epoch{'s' * (training['epochs'] != 1)}, "
        f"{training['images']:,} images"
    )


def warn_of_lost_promises(earlier: Calibration | None, new: Calibration) -> None:
    """Warn if an earlier calibration promised something that a new one does not."""
    if earlier is None:
        return
    lost = {
        "for images that the classifier gets right (--right-only)": earlier.right_only
        and not new.right_only,
        f"with confidence {earlier.confidence:g}": earlier.promise == "pac" != new.promise,
        "in each predicted class": earlier.per_class and not new.per_class,
    }
    said = ", ".join(what for what, is_lost in lost.items() if is_lost)
    if said:
        warn(f"the earlier false-alarm rate held {said}; the new one does not")


def _whole(facts: dict[str, Any], sentinel: dict[str, Any]) -> float:
    """The false-alarm rate of metrics and sentinel together."""
    rate: float = facts["calibration"]["fpr"] + sentinel["calibration"]["fpr"]
    return rate


def _promised(promise: dict[str, Any] | None, scores: dict[str, Any] | None) -> str:
    if promise is None or scores is None:
        return "not calibrated"
    count = sum(scores["shape"])
    how = (
        "on average over calibration sets"
        if promise["promise"] == "marginal"
        else f"with confidence {promise['confidence']:g}"
    )
    where = ", in each predicted class" if promise["per_class"] else ""
    of = " that the classifier gets right" if promise["right_only"] else ""
    kinds = ", ".join(map(str, promise["kinds"]))
    return (
        f"at most {promise['fpr']:g} {how}{where}; from {count:,} images{of} ({kinds}; the rate "
        "holds in each of these kinds)"
    )
