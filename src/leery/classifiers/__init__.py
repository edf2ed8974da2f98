"""Classifiers of the named datasets, their training and trained weights."""

from leery.classifiers._networks import DigitNet, FashionNet, ResNet20
from leery.classifiers._training import HARDENED, RECIPES, Classifier, accuracy, build, train
from leery.classifiers._weights import load_classifier, pretrained, save_classifier
from leery.training import Recipe

__all__ = [
    "HARDENED",
    "RECIPES",
    "Classifier",
    "DigitNet",
    "FashionNet",
    "Recipe",
    "ResNet20",
    "accuracy",
    "build",
    "load_classifier",
    "pretrained",
    "save_classifier",
    "train",
]
