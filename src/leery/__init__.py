"""leery makes an image classifier leery of its inputs: it detects adversarial examples.

>>> import leery
>>> from leery.attacks import PGD
>>> from leery.classifiers import pretrained
>>> from leery.data import load
>>> model = pretrained("mnist").model
>>> images, labels = load("mnist", "train")
>>> clean, truth = load("mnist", "test")
>>> adversarial = PGD(0.3)(model, clean[:200], truth[:200])
>>> detector = leery.Detector(model, "hidden").fit(images[:6000], labels[:6000])
>>> detector = detector.fit_combiner(clean[:200], adversarial).calibrate(clean[200:400], fpr=0.05)
>>> suspicious = detector.predict(clean[400:500])
>>> suspicious.shape
(100,)
"""

from importlib.metadata import version

from leery.detector import METRICS, PAPER_METRICS, Detector, MetricTable
from leery.errors import (
    CorruptDataError,
    DataError,
    DetectorFileError,
    InputError,
    LeeryError,
    NoDropoutError,
    NotFittedError,
    OutputError,
    UnknownLayerError,
    UnsupportedModelError,
    WrongModelError,
)
from leery.mc_dropout import MCDropout

__all__ = [
    "METRICS",
    "PAPER_METRICS",
    "CorruptDataError",
    "DataError",
    "Detector",
    "DetectorFileError",
    "InputError",
    "LeeryError",
    "MCDropout",
    "MetricTable",
    "NoDropoutError",
    "NotFittedError",
    "OutputError",
    "UnknownLayerError",
    "UnsupportedModelError",
    "WrongModelError",
    "__version__",
]

__version__ = version("leery")
