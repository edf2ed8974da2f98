"""Training of classifiers and of the networks that leery uses in addition to a classifier.

An auxiliary network, whose disagreement with the classifier is evidence of an attack, is trained on
labelled clean images. This package is independent of metrics and detectors.
"""

from leery.training._augmentation import Augmentation
from leery.training._auxiliary import (
    MAX_PIXELS,
    AuxiliaryNetwork,
    AuxiliaryRecipe,
    TrainingSet,
    train_auxiliary,
)
from leery.training._classifier import Recipe, run_epochs
from leery.training._parts import FitParts, saved_tensors
from leery.training._sentinel import SentinelNetwork, SentinelRecipe, train_sentinel

__all__ = [
    "MAX_PIXELS",
    "Augmentation",
    "AuxiliaryNetwork",
    "AuxiliaryRecipe",
    "FitParts",
    "Recipe",
    "SentinelNetwork",
    "SentinelRecipe",
    "TrainingSet",
    "run_epochs",
    "saved_tensors",
    "train_auxiliary",
    "train_sentinel",
]
