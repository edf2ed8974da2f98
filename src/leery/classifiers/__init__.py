"""The classifiers of Tuna, Catak, Eskil (2020), their training and trained weights."""

from leery.classifiers._networks import DigitNet, FashionNet
from leery.classifiers._training import RECIPES, Classifier, Recipe, accuracy, build, train
from leery.classifiers._weights import load_classifier, pretrained, save_classifier

__all__ = [
    "RECIPES",
    "Classifier",
    "DigitNet",
    "FashionNet",
    "Recipe",
    "accuracy",
    "build",
    "load_classifier",
    "pretrained",
    "save_classifier",
    "train",
]
