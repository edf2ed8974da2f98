"""Attacks on a classifier (gradient attacks, adapters for other libraries), corruptions, noise.

>>> from leery.attacks import BIM
>>> from leery.classifiers import pretrained
>>> from leery.data import load
>>> model = pretrained("mnist").model
>>> images, labels = load("mnist", "test")
>>> adversarial = BIM(0.3)(model, images[:8], labels[:8])
>>> bool((model(adversarial).argmax(1) == labels[:8]).any())
False
"""

from leery.attacks._adapters import ADAPTED, AdaptedAttack, Preset
from leery.attacks._bounded import BoundedAttack, placed
from leery.attacks._gradient import BIM, FGSM, PGD, Attack, GradientAttack
from leery.attacks._harmless import (
    CORRUPTIONS,
    HARMLESS,
    Corruption,
    Harmless,
    check_harmless,
)
from leery.attacks._noise import gaussian_noise
from leery.attacks._norms import NormName
from leery.attacks._objectives import CrossEntropy, Objective, ObjectiveOf

__all__ = [
    "ADAPTED",
    "BIM",
    "CORRUPTIONS",
    "FGSM",
    "HARMLESS",
    "PGD",
    "AdaptedAttack",
    "Attack",
    "BoundedAttack",
    "Corruption",
    "CrossEntropy",
    "GradientAttack",
    "Harmless",
    "NormName",
    "Objective",
    "ObjectiveOf",
    "Preset",
    "check_harmless",
    "gaussian_noise",
    "placed",
]
