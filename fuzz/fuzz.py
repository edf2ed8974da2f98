"""Fuzzes what reads files of strangers, guided by coverage.

    python fuzz/fuzz.py detector|npz|npy|parquet|picture|weights [libFuzzer options]

Anything but one of leery's own errors is a find: another exception, a hang, more than 2 GB of
memory, or a sign that code in the input was run.
"""

import io
import json
import pickle
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["leery", "numpy.lib", "zipfile", "PIL"]):
    import leery
    from leery import inputs
    from leery.models import load_model

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import nn

FOLDER = Path(tempfile.mkdtemp(prefix="leery-fuzz-"))
CANARY = FOLDER / "code-was-run"
FORM = inputs.Format()


class Bait:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (CANARY,)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)
    )


def detector_file() -> bytes:
    images = torch.rand(60, 1, 3, 4)
    found = leery.Detector(model(), passes=2, bandwidth=1.0)
    found.fit(images, torch.arange(60) % 2).calibrate(torch.rand(200, 1, 3, 4))
    found.save(FOLDER / "seed")
    return (FOLDER / "seed").read_bytes()


def array_file(*, zipped: bool) -> bytes:
    content = io.BytesIO()
    images = np.zeros((3, 1, 2, 2), np.uint8)
    if zipped:
        np.savez_compressed(content, images=images, labels=np.arange(3))
    else:
        np.save(content, images)
    return content.getvalue()


def picture_file(kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (3, 3)).save(content, kind)
    return content.getvalue()


def parquet_file() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"images": [picture_file()] * 2, "labels": [0, 1]}), content)
    return content.getvalue()


def weights_file() -> bytes:
    content = io.BytesIO()
    torch.save(model().state_dict(), content)
    return content.getvalue()


def read(path: Path) -> None:
    """What the readers do with a file, as far as a user would go on."""
    inputs.count([path], FORM)
    for item in islice(inputs.read([path], FORM), 100):
        assert (item.image is None) == bool(item.error)
    for _ in islice(inputs.read([path], FORM, start=1), 100):
        pass


def load_detector(path: Path) -> None:
    found = leery.Detector.load(path, model())
    if found.passes <= 100:
        found.flag(torch.rand(3, 1, 3, 4))


def load_weights(path: Path) -> None:
    sys.modules["fuzz_net"] = sys.modules[__name__]
    load_model("fuzz_net:model", path)


TARGETS: dict[str, tuple[str, Callable[[Path], None], Callable[[], list[bytes]]]] = {
    "detector": ("guard.leery", load_detector, lambda: [detector_file()]),
    "npz": ("some.npz", read, lambda: [array_file(zipped=True)]),
    "npy": ("some.npy", read, lambda: [array_file(zipped=False)]),
    "parquet": ("some.parquet", read, lambda: [parquet_file()]),
    "picture": (
        "some.png",
        read,
        lambda: [picture_file(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")],
    ),
    "weights": ("some.pt", load_weights, lambda: [weights_file(), pickle.dumps(Bait())]),
}


def mutated_detector(data: bytes, limit: int, seed: int) -> bytes:
    """Half the time a change of the JSON or of a tensor that keeps the file whole."""
    random = np.random.default_rng(seed)
    if random.random() < 0.5:
        return atheris.Mutate(data, limit)
    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        facts: Any = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["leery"])
    except Exception:
        return atheris.Mutate(data, limit)
    odd = [0, -1, 10**12, 1e308, float("nan"), "", "hidden", None, [], {}, True, [[1]], "1"]
    branch = facts
    while isinstance(branch, dict) and branch:
        key = list(branch)[random.integers(len(branch))]
        if isinstance(branch[key], dict) and random.random() < 0.7:
            branch = branch[key]
            continue
        branch[key] = odd[random.integers(len(odd))]
        break
    if tensors and random.random() < 0.5:
        name = list(tensors)[random.integers(len(tensors))]
        shapes = [(0,), (1,), (2, 2), (3, 6), (2, 3, 4), tensors[name].shape]
        kinds = [torch.float32, torch.float64, torch.int64, torch.bool, torch.float16]
        shape = shapes[random.integers(len(shapes))]
        filled = torch.full(shape, [0.0, 1e30, -1.0, 5.0][random.integers(4)])
        tensors[name] = filled.to(kinds[random.integers(len(kinds))])
        if random.random() < 0.2:
            tensors.pop(name)
    return bytes(save(tensors, {"leery": json.dumps(facts)}))[:limit]


def main() -> None:
    name = sys.argv.pop(1)
    file, work, seeds = TARGETS[name]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds()):
        (corpus / str(number)).write_bytes(content)
    path = FOLDER / file

    def once(data: bytes) -> None:
        path.write_bytes(data)
        try:
            work(path)
        except leery.LeeryError as error:
            assert "\n" not in str(error), "an error of several lines"
        assert not CANARY.exists(), "code in the input was run"

    limits = ["-rss_limit_mb=2048", "-timeout=20", "-max_len=20000", "-len_control=0"]
    settings: dict[str, Any] = {}
    if name == "detector":
        settings["custom_mutator"] = mutated_detector
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:], str(corpus)], once, **settings)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
