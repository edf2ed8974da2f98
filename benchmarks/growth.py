"""How time and memory grow: one case in a process of its own, whose peak is what it needed.

    python benchmarks/growth.py CASE SIZE

prints JSON: the seconds of the second of two runs, and by how many bytes the memory of the process
grew in them at most (Linux).
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from leery import PAPER_METRICS, Detector, data
from leery.classifiers import pretrained
from leery.inputs import Format
from leery.mc_dropout import MCDropout
from leery.metrics import KernelDensity, predictive_entropy
from leery.scoring import score_to_file

__all__ = ["CASES", "SIZES"]

Work = Callable[[], object]


def fit_detector(folder: Path, images: int) -> None:
    """Leave a detector and a file of images to score."""
    fitted = Detector(
        pretrained("mnist").model, metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=1.7
    )
    clean = data.load("mnist", "test")[0][:2000]
    fitted.fit(*data.load("mnist", "train")).fit_combiner(clean).save(folder / "guard.leery")
    pixels = (clean[:, 0] * 255).byte().numpy()
    np.save(folder / "images.npy", np.resize(pixels, (images, 1, 28, 28)))


def scoring(images: int) -> Work:
    """A file of images into a file of scores."""
    folder = Path(tempfile.mkdtemp())
    # In another process, so that this one needs what scoring needs.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(fit_detector, folder, images).result()
    fitted = Detector.load(folder / "guard.leery", pretrained("mnist").model)

    def work() -> None:
        sources, out = [folder / "images.npy"], folder / "scores.parquet"
        done = score_to_file(fitted, "bench", sources, Format(), out)
        assert done.unreadable == 0, done

    return work


def measuring(images: int) -> Work:
    """All six metrics of images in memory."""
    detector = Detector(
        pretrained("mnist").model, metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=1.7
    )
    detector.fit(*data.load("mnist", "train"))
    shown = data.load("mnist", "test")[0][:images]
    return lambda: detector.measure(shown)


def passes(count: int) -> Work:
    """Digits, so many passes."""
    shown = data.load("mnist", "test")[0][:1024]
    sampler = MCDropout(pretrained("mnist").model, count)
    return lambda: [predictive_entropy(seen.probs) for seen in sampler.stream(shown)]


def classes(count: int) -> Work:
    """All six metrics of a small network with so many classes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Dropout(), nn.Linear(128, count)
    )
    detector = Detector(model.eval(), metrics=PAPER_METRICS, bandwidth=1.7)
    images = data.load("mnist", "train")[0][:20_000]
    detector.fit(images, torch.arange(len(images)) % count)
    shown = data.load("mnist", "test")[0][:1024]
    return lambda: detector.measure(shown)


def density(references: int, width: int, classes: int = 1) -> Work:
    """So many references a class; 256 queries, of the classes in turn."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(references * classes, width, generator=generator)
    queries = torch.randn(256, width, generator=generator)

    def work() -> object:
        fitted = KernelDensity(2.0).fit(points, torch.arange(len(points)) % classes)
        start = time.perf_counter()
        fitted.score(queries, torch.arange(len(queries)) % classes)
        return time.perf_counter() - start

    return work


def restored(width: int) -> Work:
    """100,000 references of a class from a file, as a loaded detector has them; 256 queries."""
    file = Path(tempfile.mkdtemp()) / "density.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"0": torch.randn(100_000, width, generator=generator)}, file)
    queries = torch.randn(256, width, generator=generator)

    def work() -> object:
        fitted = KernelDensity(2.0).restore(load_file(file))
        start = time.perf_counter()
        fitted.score(queries, torch.zeros(len(queries), dtype=torch.int64))
        return time.perf_counter() - start

    return work


CASES: Mapping[str, Callable[[int], Work]] = {
    "scoring, images": scoring,
    "measuring, images": measuring,
    "passes": passes,
    "classes": classes,
    "density, references": lambda count: density(count, 128),
    "density, dimension": lambda width: density(6000, width),
    "density, wide references": lambda count: density(count, 2048),
    "density, classes of 100,000": lambda count: density(100_000, 128, count),
    "density of a file, dimension": restored,
}

SIZES: Mapping[str, tuple[int, ...]] = {
    "scoring, images": (10_000, 60_000),
    "measuring, images": (2500, 5000, 10_000),
    "passes": (10, 50, 200),
    "classes": (10, 100, 1000),
    "density, references": (6000, 25_000, 100_000),
    "density, dimension": (128, 512, 2048),
    "density, wide references": (6000, 100_000),
    "density, classes of 100,000": (1, 10),
    "density of a file, dimension": (128, 2048),
}


def memory(field: str) -> int:
    """Of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    case, size = sys.argv[1], int(sys.argv[2])
    work = CASES[case](size)
    before = memory("VmRSS")
    # From here on the peak is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    work()
    start = time.perf_counter()
    own = work()
    seconds = own if isinstance(own, float) else time.perf_counter() - start
    peak = memory("VmHWM")
    print(json.dumps({"seconds": seconds, "grown": peak - before, "peak": peak}))


if __name__ == "__main__":
    main()
