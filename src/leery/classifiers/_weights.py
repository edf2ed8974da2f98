"""Trained weights on disk: a safetensors file and a JSON record of the training."""

from importlib.resources import as_file, files
from pathlib import Path

from leery._recorded import missing, read_recorded, write_recorded
from leery.classifiers._training import Classifier, build
from leery.data import named

__all__ = ["load_classifier", "pretrained", "save_classifier"]


def pretrained(dataset: str) -> Classifier:
    """The dataset's network with the weights that ship with leery, in eval mode, on the CPU.

    Args:
        dataset: "mnist", "fashion-mnist" or "cifar-10".

    Returns:
        The model and its record (recipe, seed, test accuracy in [0, 1], command, versions).

    Raises:
        InputError: when the dataset is unknown.

    Example:
        >>> pretrained("mnist").record["seed"]
        0
    """
    name = named(dataset).name
    with as_file(files("leery.classifiers") / "weights") as folder:
        return load_classifier(folder, name)


def save_classifier(classifier: Classifier, folder: Path) -> Path:
    """Write ``<dataset>.safetensors`` and ``<dataset>.json`` into a folder, created if missing.

    The record gains the SHA-256 of the weights file. Weights that are equal in half precision are
    stored in it.

    Returns:
        The path of the weights file.

    Raises:
        OutputError: when the folder cannot be written to.
    """
    record = classifier.record
    return write_recorded(folder, record["dataset"], classifier.model.state_dict(), record)


def load_classifier(folder: Path, dataset: str) -> Classifier:
    """Read a classifier written by :func:`save_classifier`, without executing any stored code.

    Raises:
        DataError: when a file is missing or damaged, or the two files do not match.
    """
    weights, record = read_recorded(folder, dataset)
    try:
        model = build(dataset, dropout=record["recipe"]["dropout"])
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise missing(folder, dataset, error) from error
    return Classifier(model, record)
