"""Trained weights on disk: a safetensors file and a JSON record of the training."""

from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path

from leery._recorded import missing, read_recorded, write_recorded
from leery.classifiers._training import Classifier, build
from leery.data import named
from leery.errors import InputError

__all__ = ["load_classifier", "pretrained", "save_classifier"]

SHIPPED: Mapping[str, tuple[str, ...]] = {"mnist": ("adversarial", "interval")}
"""Names of the hardened classifiers that ship with leery."""


def pretrained(dataset: str, recipe: str = "plain") -> Classifier:
    """The dataset's network with the weights that ship with leery, in eval mode, on the CPU.

    Args:
        dataset: "mnist", "fashion-mnist" or "cifar-10".
        recipe: "plain"; for MNIST also "adversarial" or "interval", for a classifier that was
            trained to resist attacks (:data:`leery.classifiers.HARDENED`).

    Returns:
        The model and its record (recipe, seed, test accuracy in [0, 1], command, versions).

    Raises:
        InputError: when the dataset is unknown or has no weights of that recipe.

    Example:
        >>> pretrained("mnist").record["seed"]
        0
    """
    name = named(dataset).name
    if recipe not in ("plain", *SHIPPED.get(name, ())):
        known = ", ".join(("plain", *SHIPPED.get(name, ())))
        message = f"expected one of the recipes {known} for {name}, got {recipe!r}; choose one"
        raise InputError(message)
    with as_file(files("leery.classifiers") / "weights") as folder:
        return load_classifier(folder, name, recipe)


def save_classifier(classifier: Classifier, folder: Path) -> Path:
    """Write the weights and their record into a folder, created if missing.

    The files are ``<dataset>.safetensors`` and ``<dataset>.json``; after the dataset stands the
    hardening, if there is one, as in ``mnist-adversarial``. The record gains the SHA-256 of the
    weights file. Weights that are equal in half precision are stored in it.

    Returns:
        The path of the weights file.

    Raises:
        OutputError: when the folder cannot be written to.
    """
    record = classifier.record
    name = _file_name(record["dataset"], record["recipe"].get("hardening", "none"))
    return write_recorded(folder, name, classifier.model.state_dict(), record)


def load_classifier(folder: Path, dataset: str, recipe: str = "plain") -> Classifier:
    """Read a classifier written by :func:`save_classifier`, without executing any stored code.

    Args:
        folder: the folder.
        dataset: name of the dataset.
        recipe: "plain", or the hardening of the training.

    Raises:
        DataError: when a file is missing or damaged, or the two files do not match.
    """
    name = _file_name(dataset, recipe)
    weights, record = read_recorded(folder, name)
    try:
        model = build(dataset, dropout=record["recipe"]["dropout"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise missing(folder, name, error) from error
    return Classifier(model, record)


def _file_name(dataset: str, recipe: str) -> str:
    return dataset if recipe in ("plain", "none") else f"{dataset}-{recipe}"
