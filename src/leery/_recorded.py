"""Weights on disk with a JSON record of their training; neither file runs code."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from leery._files import make_folder, write_atomically
from leery.errors import DataError

__all__ = ["missing", "read_recorded", "stored", "write_recorded"]


def write_recorded(
    folder: Path, name: str, weights: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Path:
    """Write weights and their record, with the SHA-256 of the weights file; return its path.

    Raises:
        OutputError: when the folder cannot be written to.
    """
    content = to_bytes({key: stored(value) for key, value in weights.items()})
    signed = {**record, "weights_sha256": hashlib.sha256(content).hexdigest()}
    path = make_folder(folder) / f"{name}.safetensors"
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), json.dumps(signed, indent=2) + "\n")
    return path


def read_recorded(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and their record.

    Raises:
        DataError: when a file is missing or damaged, or the two files do not match.
    """
    path = folder / f"{name}.safetensors"
    try:
        content = path.read_bytes()
        record = json.loads(path.with_suffix(".json").read_text())
        found = hashlib.sha256(content).hexdigest()
        if found != record["weights_sha256"]:
            message = f"weights have SHA-256 {found}, the record says {record['weights_sha256']}"
            raise ValueError(message)  # noqa: TRY301 - one message for all failures
        return from_bytes(content), record
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise missing(folder, name, error) from error


def missing(folder: Path, name: str, error: Exception) -> DataError:
    """The error of weights that cannot be used."""
    return DataError(
        f"expected the weights of {name} and their record in {folder}, got: {error}; train them "
        "again, or install leery again if they came with it"
    )


def stored(value: Tensor) -> Tensor:
    """A tensor as it is stored: in half precision if that is exact."""
    half = value.half()
    exact = value.is_floating_point() and torch.equal(half.to(value.dtype), value)
    return (half if exact else value).contiguous()
