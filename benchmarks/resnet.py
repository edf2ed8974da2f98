"""MC dropout on a ResNet-18 with dropout before its last layer, against one plain forward pass.

    python benchmarks/resnet.py [--images 16] [--pairs 7] [--threads 1]

The plain forward pass, leery's T passes and the plain loop of T passes run in turn in one process
on the same images; what is printed are ratios to the plain forward pass, median and range over
the pairs. Before that, leery's passes are compared with the plain loop's.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from leery.mc_dropout import MCDropout
from models import ResNet18

PASSES = 50


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = ResNet18().eval()
    images = torch.rand(options.images, 3, 224, 224)
    sampler = MCDropout(model, PASSES)

    @torch.no_grad()
    def plain() -> Tensor:
        out: Tensor = model(images)
        return out

    @torch.no_grad()
    def loop() -> list[Tensor]:
        model.dropout.train()
        passes = [model(images).softmax(-1) for _ in range(PASSES)]
        model.eval()
        return passes

    mean = sampler.sample(images).mean(0)
    other = torch.stack(loop()).mean(0)
    far = float((mean - other).abs().max())
    spread = float(sampler.sample(images).std(0).max())
    print(sampler.explain_plan(images))
    print(
        f"mean over {PASSES} passes: differs by {far:.1e} from the loop's; sd of one {spread:.1e}"
    )

    ours, theirs = [], []
    for pair in range(options.pairs):
        one = seconds(plain)
        ours.append(seconds(lambda: sampler.sample(images)) / one)
        if pair < 2:
            theirs.append(seconds(loop) / one)
    for name, ratios in (("leery", ours), ("plain loop", theirs)):
        low, high = min(ratios), max(ratios)
        print(
            f"{name}, {PASSES} passes: {statistics.median(ratios):.2f} times one plain forward "
            f"pass ({low:.2f} to {high:.2f}, {len(ratios)} pairs)"
        )
    print(
        f"{options.images} images, {options.threads} threads, torch {torch.__version__}, "
        f"{platform.machine()}"
    )


if __name__ == "__main__":
    main()
