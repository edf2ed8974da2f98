"""Trained weights on disk: a safetensors file and a JSON record of the training."""

import hashlib
import json
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from leery._files import make_folder, write_atomically
from leery.classifiers._training import Classifier, build
from leery.data import named
from leery.errors import DataError

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
    name = classifier.record["dataset"]
    state = {key: _stored(value) for key, value in classifier.model.state_dict().items()}
    weights = to_bytes(state)
    record = {**classifier.record, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    path = make_folder(folder) / f"{name}.safetensors"
    write_atomically(path, weights)
    write_atomically(path.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return path


def load_classifier(folder: Path, dataset: str) -> Classifier:
    """Read a classifier written by :func:`save_classifier`, without executing any stored code.

    Raises:
        DataError: when a file is missing or damaged, or the two files do not match.
    """
    path = folder / f"{dataset}.safetensors"
    try:
        weights = path.read_bytes()
        record = json.loads(path.with_suffix(".json").read_text())
        found = hashlib.sha256(weights).hexdigest()
        if found != record["weights_sha256"]:
            message = f"weights have SHA-256 {found}, the record says {record['weights_sha256']}"
            raise ValueError(message)  # noqa: TRY301 - one message for all failures
        model = build(dataset, dropout=record["recipe"]["dropout"])
        model.load_state_dict(from_bytes(weights))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        message = (
            f"expected the weights of {dataset} and their record in {folder}, got: {error}; "
            "train them again"
        )
        raise DataError(message) from error
    return Classifier(model, record)


def _stored(value: Tensor) -> Tensor:
    """A tensor as it is stored: in half precision if that is exact."""
    half = value.half()
    exact = value.is_floating_point() and torch.equal(half.to(value.dtype), value)
    return (half if exact else value).contiguous()
