"""Reading and writing of detector files: tensors and JSON in one safetensors file, no pickle.

The metadata field ``leery`` holds the JSON; ``format`` there is the version of this layout.
docs/file-format.md describes every part.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

import safetensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from leery._files import check_opens, raise_reading_fault, write_atomically
from leery.errors import DetectorFileError, InputError, brief

__all__ = ["FORMAT", "describe", "read_file", "write_file"]

FORMAT = 3
"""The version of the layout that this release writes and reads."""

MAX_CLASSES = 10**6
"""Limit on the classes stated by a file, so that an untrusted file cannot exhaust memory."""

_KEY = "leery"

_Schema = Mapping[str, tuple[type, ...]]

_FACTS: _Schema = {
    "classifier": (str,),
    "classifier_sha256": (str,),
    "classes": (int,),
    "inputs": (dict,),
    "settings": (dict,),
    "layers": (dict,),
    "metrics": (list,),
    "grid": (float,),
}
_INPUTS: _Schema = {
    "shape": (list,),
    "dtype": (str,),
    "bounds": (list, NoneType),
    "low": (int, float),
    "high": (int, float),
    "mean": (int, float),
    "std": (int, float),
}
_SETTINGS: _Schema = {
    "passes": (int,),
    "seed": (int,),
    "masks": (int, str),
    "combiner": (str,),
    "batch_size": (int,),
    "logits": (dict,),
    "trust_outputs": (bool,),
}
_LOGITS: _Schema = {"kind": (str,), "where": (str, int, NoneType)}
_LAYERS: _Schema = {"head": (str, NoneType), "each": (list,)}
_METRIC: _Schema = {
    "name": (str,),
    "family": (str,),
    "direction": (str,),
    "kind": (str,),
    "options": (dict,),
}
_SENTINEL: _Schema = {
    "share": (float,),
    "ramp": (bool,),
    "training": (dict, NoneType),
    "calibration": (dict, NoneType),
}
_TRAINING: _Schema = {"epsilon": (float,), "epochs": (int,), "images": (int,)}
_CALIBRATION: _Schema = {
    "fpr": (float,),
    "promise": (str,),
    "confidence": (float,),
    "per_class": (bool,),
    "right_only": (bool,),
    "kinds": (list,),
}


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write the tensors and the facts (JSON-serialisable) completely or not at all.

    Raises:
        OutputError: when the file cannot be written.
    """
    odd = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if odd:
        message = f"expected only tensors in the state of a metric, got {odd[0]}; leave it out"
        raise InputError(message)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    places: set[int] = set()
    for name, tensor in plain.items():
        # safetensors refuses tensors that share memory.
        if tensor.untyped_storage().data_ptr() in places:
            plain[name] = tensor.clone()
        places.add(tensor.untyped_storage().data_ptr())
    metadata = {_KEY: json.dumps({"format": FORMAT, **facts}, sort_keys=True)}
    write_atomically(Path(path), to_bytes(plain, metadata))


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts of a detector file; no code in it is run.

    Raises:
        DetectorFileError: when the file is missing, damaged, of another format or not a detector.
    """
    with _opened(path) as stream:
        facts = _facts(path, stream.metadata() or {})
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    return tensors, facts


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe what a detector file holds, without its classifier.

    Returns:
        The facts of its JSON, and under "tensors" the type and shape of each tensor by name.

    Raises:
        DetectorFileError: when the file is missing, damaged, of another format or not a detector.
    """
    with _opened(path) as stream:
        facts = _facts(path, stream.metadata() or {})
        slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
        facts["tensors"] = {
            name: {"dtype": part.get_dtype(), "shape": part.get_shape()}
            for name, part in slices.items()
        }
    return facts


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file; its own errors become a DetectorFileError."""
    try:
        check_opens(path)
        with safetensors.safe_open(os.fspath(path), framework="pt") as stream:
            yield stream
    except FileNotFoundError as error:
        message = f"expected a detector file at {path}, got none; correct the path"
        raise DetectorFileError(message) from error
    except (safetensors.SafetensorError, OSError) as error:
        raise_reading_fault(Path(path), error)
        message = (
            f"expected a detector file at {path}, got one that cannot be read ({brief(error)}); "
            "save the detector again or correct the path"
        )
        raise DetectorFileError(message) from error


def _facts(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(metadata[_KEY])
        version = facts["format"]
        if type(version) is not int:
            message = f"a format that is not an integer, {version!r}"
            raise TypeError(message)  # noqa: TRY301 - one message for all failures
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        message = (
            f"expected a detector file at {path}, got a safetensors file without leery's "
            "metadata; pass a file that Detector.save wrote"
        )
        raise DetectorFileError(message) from error
    if version != FORMAT:
        what = "a newer leery wrote it: upgrade leery" if version > FORMAT else "fit it again"
        message = (
            f"expected a detector file of format {FORMAT}, got format {version} in {path}; {what}"
        )
        raise DetectorFileError(message)
    _check(path, "facts", facts, _FACTS)
    if not 2 <= facts["classes"] <= MAX_CLASSES:  # noqa: PLR2004 - a choice
        message = (
            f"expected a valid detector file at {path}, got one for {facts['classes']} classes; "
            "save the detector again"
        )
        raise DetectorFileError(message)
    _check(path, "inputs", facts["inputs"], _INPUTS)
    _check(path, "settings", facts["settings"], _SETTINGS)
    _check(path, "logits", facts["settings"]["logits"], _LOGITS)
    _check(path, "layers", facts["layers"], _LAYERS)
    for metric in facts["metrics"]:
        _check(path, "metrics", metric, _METRIC)
    if "sentinel" in facts:
        _check_sentinel(path, facts["sentinel"])
    promised = [holder.get("calibration") for holder in (facts, facts.get("sentinel", {}))]
    for calibration in filter(None, promised):
        _check(path, "calibration", calibration, _CALIBRATION)
    return dict(facts)


def _check_sentinel(path: str | os.PathLike[str], sentinel: Any) -> None:  # noqa: ANN401 - of any JSON type
    """As :func:`_check`; the first files with a sentinel do not say how it was trained."""
    if isinstance(sentinel, dict):
        sentinel.setdefault("training", None)
    _check(path, "sentinel", sentinel, _SENTINEL)
    if sentinel["training"] is not None:
        _check(path, "training", sentinel["training"], _TRAINING)


def _check(path: str | os.PathLike[str], what: str, found: object, schema: _Schema) -> None:
    """Raise if a JSON object lacks a part or has one of a wrong type."""
    wrong = (
        [
            name
            for name, types in schema.items()
            if name not in found or type(found[name]) not in types
        ]
        if isinstance(found, dict)
        else list(schema)
    )
    if wrong:
        message = (
            f"expected a valid detector file at {path}, got {what} with missing or wrong parts "
            f"({', '.join(wrong)}); save the detector again"
        )
        raise DetectorFileError(message)
