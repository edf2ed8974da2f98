"""leery makes an image classifier leery of its inputs: it detects adversarial examples.

>>> import leery
>>> from leery.classifiers import pretrained
>>> from leery.data import load
>>> model = pretrained("mnist").model
>>> images, labels = load("mnist", "train")
>>> held_out, _ = load("mnist", "test")
>>> detector = leery.Detector(model).fit(images[:6000], labels[:6000])
>>> verdicts = detector.calibrate(held_out[:400], fpr=0.05).judge(held_out[400:500])
>>> verdicts.adversarial.shape
(100,)
"""

from importlib.metadata import version

from leery.detector import Detector, MetricTable, Verdicts
from leery.errors import (
    CorruptDataError,
    DataError,
    DetectorFileError,
    InputError,
    LeeryError,
    LeeryWarning,
    NoDropoutError,
    NotFittedError,
    OutputError,
    UnknownLayerError,
    UnsupportedModelError,
    WrongModelError,
)
from leery.mc_dropout import MCDropout
from leery.metrics import METRICS, PAPER_METRICS, RECOMMENDED_METRICS

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

__version__ = version("leery")
