"""Few images in plain forward passes of the same batch, the first call, dropout in one place.

    .venv-peers/bin/python benchmarks/few.py [--rounds 11]

One torch thread. Contestants work in turn. The tables go to benchmarks/few.md.
"""

import argparse
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pairs import Timed, in_turn
from pieces import alike
from rivals import torch_uncertainty
from served import NAMES
from torch import Tensor, nn

from leery import PAPER_METRICS, Detector, data
from leery.mc_dropout import MCDropout
from models import ResNet18, VisionTransformer, default_layout, waves

HERE = Path(__file__).parent
PASSES = 50
CALLS = 400
"""Calls of each contestant of which the percentiles are taken, in turns of 20, or as many as take
20 seconds; of fewer than 100 there is no 99th percentile."""

FIRST_CALL = """
import sys, time, torch
torch.set_num_threads(1)
from leery.mc_dropout import MCDropout
from models import classifier, images_of
model, images = classifier(sys.argv[1]), images_of(sys.argv[1], 2)
start = time.perf_counter()
{work}
print(time.perf_counter() - start)
"""
"""A process that has loaded a classifier, and what it is timed at."""

Work = Callable[[], object]


def plain(model: nn.Module, images: Tensor) -> Work:
    """One forward pass as a user would run it."""

    @torch.inference_mode()
    def work() -> Tensor:
        output: Tensor = model(images)
        return output

    return work


def percentiles(works: Mapping[str, Work], calls: int) -> dict[str, np.ndarray]:
    """Seconds of single calls by contestant: the median and the 99th percentile, NaN of few."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order = deque(works)
    for _ in range(max(1, calls // 20)):
        for name in order:
            for _ in range(20):
                start = time.perf_counter()
                works[name]()
                seconds[name].append(time.perf_counter() - start)
        order.rotate(-1)
    found = {name: np.percentile(own, [50, 99]) for name, own in seconds.items()}
    if calls < CALLS // 4:
        for own in found.values():
            own[1] = np.nan
    return found


def row(what: str, count: int, works: Mapping[str, Work], rounds: int) -> str:
    """A line of the table: ``works`` are "leery" and "plain"."""
    for work in works.values():
        work()
        work()
    timed = in_turn(works, rounds)
    ratio = "{:.2f} ({:.2f} to {:.2f})".format(*timed.ratio("leery", "plain"))
    calls = min(CALLS, int(20 / timed.median("leery")))
    found = {name: 1e3 * own for name, own in percentiles(works, calls).items()}
    shown = " | ".join(f"{own[0]:.3g} | {own[1]:.3g}" for own in found.values())
    shown = shown.replace("nan", "")
    return f"| {what} | {count:,} | {ratio} | {shown} |"


def few_images(rounds: int) -> Iterator[str]:
    """The table of few images."""
    yield "| work | images | leery / plain (range) | leery, p50, ms | p99 | plain, p50 | p99 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    digits, labels = data.load("mnist", "train")
    test = data.load("mnist", "test")[0]
    net = default_layout("mnist")
    paper = {"metrics": PAPER_METRICS, "feature_layer": "hidden", "bandwidth": 1.7}
    six = Detector(net, **paper).fit(digits, labels)  # type: ignore[arg-type]
    for count in (1, 8, 64, 256, 1000):
        images = test[:count]
        works = {"leery": partial(six.measure, images), "plain": plain(net, images)}
        yield row("six metrics, DigitNet", count, works, rounds)
    default = Detector(net).fit(digits[:10_000], labels[:10_000])
    default.calibrate(test[5000:7000], fpr=0.01)
    for count in (1, 8, 64, 256):
        images = test[:count]
        works = {"leery": partial(default.judge, images), "plain": plain(net, images)}
        yield row("verdicts of the default detector, DigitNet", count, works, rounds)
    torch.manual_seed(0)
    fashion = data.load("fashion-mnist", "test")[0]
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        "DigitNet": (net, test),
        "FashionNet": (default_layout("fashion-mnist"), fashion),
        "ResNet-18, 224 x 224": (ResNet18().eval(), waves(8, 224)),
        "small vision transformer": (VisionTransformer().eval(), test),
    }
    for name, (model, images) in cases.items():
        for count in (1, 8):
            sampler, batch = MCDropout(model, PASSES), images[:count]
            works = {"leery": partial(sampler.sample, batch), "plain": plain(model, batch)}
            yield row(f"{PASSES} passes, {name}", count, works, rounds)


def first_calls(rounds: int) -> Iterator[str]:
    """The first call after loading and torch.export of the same model, each in a new process."""
    yield "| classifier | first call, s | torch.export, s | leery / export (range) |"
    yield "| --- | --- | --- | --- |"
    works = {
        "leery": "MCDropout(model, 50).sample(images)",
        "export": "torch.export.export(model, (images,))",
    }
    for name in NAMES:
        seconds: dict[str, list[float]] = {who: [] for who in works}
        for _ in range(rounds):
            for who, work in works.items():
                command = [sys.executable, "-c", FIRST_CALL.format(work=work), name]
                done = subprocess.run(command, capture_output=True, check=True, cwd=HERE)  # noqa: S603 - our own
                seconds[who].append(float(done.stdout))
        timed = Timed(seconds)
        times = " | ".join(f"{timed.median(who):.2f}" for who in works)
        ratio = timed.ratio("leery", "export")
        yield f"| {name} | {times} | {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) |"


def dropout_in_one_place(rounds: int) -> Iterator[str]:
    """The transformer with dropout before its last layer only, where torch-uncertainty drops."""
    yield "| images | leery, ms | torch-uncertainty, ms | torch-uncertainty / leery (range) |"
    yield "| --- | --- | --- | --- |"
    torch.manual_seed(0)
    model = VisionTransformer().eval()
    for module in model.blocks.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    test = data.load("mnist", "test")[0]
    for count in (1, 64, 256):
        images, sampler = test[:count], MCDropout(model, PASSES)
        works: dict[str, Work] = {
            "leery": partial(sampler.sample, images),
            "torch-uncertainty": partial(torch_uncertainty, model, images, PASSES),
        }
        agrees, note = alike(*(work() for work in works.values()))  # type: ignore[arg-type]
        assert agrees, note
        timed = in_turn(works, rounds)
        times = " | ".join(f"{1e3 * timed.median(who):.3g}" for who in works)
        ratio = timed.ratio("torch-uncertainty")
        yield f"| {count} | {times} | {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["# Few images", "", *(__doc__ or "").splitlines()[4:]]
    tables = {
        "In plain forward passes of the same batch": few_images,
        "The first call after loading, in a new process": first_calls,
        "Dropout before the last layer only": dropout_in_one_place,
    }
    for title, table in tables.items():
        lines += ["", f"## {title}", ""]
        for line in table(options.rounds):
            print(line, flush=True)
            lines.append(line)
        (HERE / "few.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
