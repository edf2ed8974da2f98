"""Training of the networks that leery uses in addition to the classifier.

The only one so far is the auxiliary network, whose disagreement with the classifier is evidence of
an attack. Training uses only labelled clean images and is independent of metrics and detectors.
"""

from leery.training._augmentation import Augmentation
from leery.training._auxiliary import (
    MAX_PIXELS,
    AuxiliaryNetwork,
    AuxiliaryRecipe,
    TrainingSet,
    train_auxiliary,
)

__all__ = [
    "MAX_PIXELS",
    "Augmentation",
    "AuxiliaryNetwork",
    "AuxiliaryRecipe",
    "TrainingSet",
    "train_auxiliary",
]
