"""Few images, in plain forward passes of the same batch; the first call; dropout in one place.

    .venv-peers/bin/python benchmarks/few.py [--rounds 11] [--only WORDS]

One torch thread. Contestants work in turn. The tables go to benchmarks/few.md.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pairs import in_turn
from rivals import torch_uncertainty
from torch import Tensor, nn

from leery import PAPER_METRICS, Detector, data
from leery.mc_dropout import MCDropout
from models import ResNet18, VisionTransformer, default_layout, waves

HERE = Path(__file__).parent
PASSES = 50
CALLS = 400
"""Calls of each contestant of which the percentiles are taken, in turns of 20."""

Work = Callable[[], object]


def plain(model: nn.Module, images: Tensor) -> Work:
    """One forward pass as a user would run it."""

    @torch.inference_mode()
    def work() -> Tensor:
        output: Tensor = model(images)
        return output

    return work


def percentiles(works: Mapping[str, Work], calls: int) -> dict[str, np.ndarray]:
    """Seconds of single calls by contestant: the median and the 99th percentile."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order = deque(works)
    for _ in range(max(1, calls // 20)):
        for name in order:
            for _ in range(20):
                start = time.perf_counter()
                works[name]()
                seconds[name].append(time.perf_counter() - start)
        order.rotate(-1)
    return {name: np.percentile(own, [50, 99]) for name, own in seconds.items()}


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
    """What is found out about a classifier once, against its export; both in a warm process."""
    yield "| classifier | prepared in, ms | export, ms | leery / export | / export for 2 images |"
    yield "| --- | --- | --- | --- | --- |"
    test = data.load("mnist", "test")[0]
    torch.manual_seed(0)
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        "DigitNet": (default_layout("mnist"), test[:2]),
        "FashionNet": (default_layout("fashion-mnist"), data.load("fashion-mnist", "test")[0][:2]),
        "ResNet-18, 64 x 64": (ResNet18().eval(), waves(2)),
        "small vision transformer": (VisionTransformer().eval(), test[:2]),
    }
    batch = torch.export.Dim("batch", min=2)
    for name, (model, images) in cases.items():
        works: dict[str, Work] = {
            "leery": lambda model=model, images=images: MCDropout(model, PASSES).sample(images),
            "export": lambda model=model, images=images: torch.export.export(
                model, (images,), dynamic_shapes=({0: batch},)
            ),
            "fixed": lambda model=model, images=images: torch.export.export(model, (images,)),
        }
        for work in works.values():
            work()
        timed = in_turn(works, rounds)
        times = " | ".join(f"{1e3 * timed.median(who):.0f}" for who in ("leery", "export"))
        ratios = [timed.ratio("leery", who) for who in ("export", "fixed")]
        shown = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in ratios)
        yield f"| {name} | {times} | {shown} |"


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
        for work in works.values():
            work()
        timed = in_turn(works, rounds)
        times = " | ".join(f"{1e3 * timed.median(who):.3g}" for who in works)
        ratio = timed.ratio("torch-uncertainty")
        yield f"| {count} | {times} | {ratio[0]:.2f} ({ratio[1]:.2f} to {ratio[2]:.2f}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", default="", help="words in the title of a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "few.md"
    kept = path.read_text().split("\n## ")[1:] if path.exists() else []
    found = dict(part.rstrip().split("\n\n", 1) for part in kept)
    tables = {
        "In plain forward passes of the same batch": few_images,
        "Preparing a classifier against torch.export for any number of images": first_calls,
        "Dropout before the last layer only": dropout_in_one_place,
    }
    for title, table in tables.items():
        if options.only not in title:
            continue
        lines = []
        for line in table(options.rounds):
            print(line, flush=True)
            lines.append(line)
        found[title] = "\n".join(lines)
        about = "\n".join((__doc__ or "").splitlines()[4:])
        parts = [f"## {name}\n\n{found[name]}" for name in tables if name in found]
        path.write_text("\n\n".join(["# Few images", about, *parts]) + "\n")


if __name__ == "__main__":
    main()
