"""Recipes by which leery trains networks of its own beside the defended classifier.

So far one: the auxiliary network, whose disagreement with the classifier is evidence of an attack.
Recipes see labelled clean images and nothing of metrics or detectors.
"""

from leery.training._augmentation import Augmentation
from leery.training._auxiliary import (
    MOST_PIXELS,
    AuxiliaryNetwork,
    AuxiliaryRecipe,
    TrainingSet,
    train_auxiliary,
)

__all__ = [
    "MOST_PIXELS",
    "Augmentation",
    "AuxiliaryNetwork",
    "AuxiliaryRecipe",
    "TrainingSet",
    "train_auxiliary",
]
