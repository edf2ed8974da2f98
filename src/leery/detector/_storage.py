"""The file of a detector: tensors and JSON in one safetensors file, no pickle.

The metadata field ``leery`` holds the JSON; ``format`` there is the version of this layout.
Tensors: ``<closeness metric>/<part>`` for what each closeness metric learned, and
``combiner/mean``, ``combiner/scale``, ``combiner/weights`` in float64 once it is fitted.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save as to_bytes
from torch import Tensor

from leery._files import write_atomically
from leery.errors import DetectorFileError

__all__ = ["FORMAT", "read_file", "write_file"]

FORMAT = 1
"""The version of the layout that this release writes and reads."""

_KEY = "leery"


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write the tensors and the facts (anything JSON can hold), whole or not at all.

    Raises:
        OutputError: when the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_KEY: json.dumps({"format": FORMAT, **facts}, sort_keys=True)}
    write_atomically(Path(path), to_bytes(plain, metadata))


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the facts of a detector file; nothing in it is executed.

    Raises:
        DetectorFileError: when the file is missing, damaged, none of leery's or of a newer
            format.
    """
    try:
        with safetensors.safe_open(os.fspath(path), framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        message = (
            f"expected a detector file at {path}, got one that cannot be read ({error}); "
            "save the detector again or correct the path"
        )
        raise DetectorFileError(message) from error
    return tensors, _facts(path, metadata)


def _facts(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        facts = json.loads(metadata[_KEY])
        version = int(facts["format"])
    except (KeyError, ValueError, TypeError) as error:
        message = (
            f"expected a detector file at {path}, got a safetensors file without leery's "
            "metadata; name a file that Detector.save wrote"
        )
        raise DetectorFileError(message) from error
    if version > FORMAT:
        message = (
            f"expected a detector file of format {FORMAT} or older, got format {version} in "
            f"{path}; upgrade leery"
        )
        raise DetectorFileError(message)
    return dict(facts)
