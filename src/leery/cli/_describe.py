"""What a detector file holds, for people and machines."""

from pathlib import Path
from typing import Any

from rich.console import Console

from leery.cli._options import facts_table
from leery.detector import describe

__all__ = ["described", "print_description"]


def described(path: Path) -> dict[str, Any]:
    """The facts of a detector file, with its size in bytes.

    Raises:
        DetectorFileError: when it is none.
    """
    return {**describe(path), "bytes": path.stat().st_size}


def print_description(console: Console, path: Path, facts: dict[str, Any]) -> None:
    """A table of the facts."""
    settings = facts["settings"]
    tensors = facts["tensors"]
    promise = facts.get("calibration")
    references = [
        sum(part["shape"][:1])
        for name, part in tensors.items()
        if name.startswith("kernel_density/") and name != "kernel_density/bandwidth"
    ]
    shown = {
        "classifier": f"{facts['classifier']}, SHA-256 {facts['classifier_sha256'][:12]}...",
        "classes": facts["classes"],
        "inputs": f"{tuple(facts['inputs']['shape'])}, {facts['inputs']['dtype']}",
        "feature layer": settings["feature_layer"],
        "metrics": ", ".join(settings["metrics"]),
        "passes": settings["passes"],
        "bandwidth": settings["bandwidth"],
        "references": f"{sum(references)} in {settings['precision']}" if references else "none",
        "combiner": settings["combiner"] if "clean/values" in tensors else "not fitted",
        "false alarms": _promised(promise, tensors) if promise else "not calibrated",
        "size": f"{facts['bytes']:,} bytes",
    }
    console.print(facts_table(str(path), shown))


def _promised(promise: dict[str, Any], tensors: dict[str, Any]) -> str:
    count = sum(tensors.get("calibration/scores", {"shape": [0]})["shape"])
    how = (
        "on average over calibration sets"
        if promise["promise"] == "marginal"
        else f"with confidence {promise['confidence']:g}"
    )
    where = ", in each predicted class" if promise["per_class"] else ""
    return f"at most {promise['fpr']:g} {how}{where}; from {count:,} clean images"
