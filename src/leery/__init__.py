"""Detect adversarial examples that are given to a PyTorch image classifier.

The README has an example; the documentation begins with :class:`leery.Detector`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from leery.names import METRICS, PAPER_METRICS, RECOMMENDED_METRICS

if TYPE_CHECKING:
    from leery import attacks as attacks
    from leery import baselines as baselines
    from leery import calibration as calibration
    from leery import certify as certify
    from leery import classifiers as classifiers
    from leery import combiners as combiners
    from leery import data as data
    from leery import detector as detector
    from leery import errors as errors
    from leery import evaluation as evaluation
    from leery import inputs as inputs
    from leery import mc_dropout as mc_dropout
    from leery import metrics as metrics
    from leery import models as models
    from leery import observation as observation
    from leery import scoring as scoring
    from leery import tasks as tasks
    from leery import training as training
    from leery.detector import Detector, MetricTable, Verdicts
    from leery.errors import (
        CorruptDataError,
        DataError,
        DetectorFileError,
        InputError,
        LeeryError,
        LeeryWarning,
        MachineError,
        NoDropoutError,
        NotFittedError,
        OutputError,
        UnknownLayerError,
        UnsupportedModelError,
        WrongModelError,
    )
    from leery.mc_dropout import MCDropout

    __version__: str

__all__ = [
    "METRICS",
    "PAPER_METRICS",
    "RECOMMENDED_METRICS",
    "CorruptDataError",
    "DataError",
    "Detector",
    "DetectorFileError",
    "InputError",
    "LeeryError",
    "LeeryWarning",
    "MCDropout",
    "MachineError",
    "MetricTable",
    "NoDropoutError",
    "NotFittedError",
    "OutputError",
    "UnknownLayerError",
    "UnsupportedModelError",
    "Verdicts",
    "WrongModelError",
    "__version__",
]

_PACKAGES = (
    "attacks",
    "baselines",
    "calibration",
    "certify",
    "classifiers",
    "combiners",
    "data",
    "detector",
    "errors",
    "evaluation",
    "inputs",
    "mc_dropout",
    "metrics",
    "models",
    "observation",
    "scoring",
    "tasks",
    "training",
)

_HOMES = {
    "Detector": "detector",
    "MCDropout": "mc_dropout",
    "MetricTable": "detector",
    "Verdicts": "detector",
}
"""Submodule that defines each public name that is not an error."""


def __getattr__(name: str) -> object:
    """Import a submodule or name on first use, because importing torch takes over a second."""
    found: object
    if name in _PACKAGES:
        found = import_module(f"leery.{name}")
    elif name == "__version__":
        found = import_module("importlib.metadata").version("leery")
    elif name in __all__:
        found = getattr(import_module(f"leery.{_HOMES.get(name, 'errors')}"), name)
    else:
        message = f"module 'leery' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """All public names, imported or not."""
    return sorted({*globals(), *__all__, *_PACKAGES})
