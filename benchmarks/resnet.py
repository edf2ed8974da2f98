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
from itertools import pairwise

import torch
from torch import Tensor, nn

from leery.mc_dropout import MCDropout

PASSES = 50


class Block(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.around = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.around = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu(self.first_norm(self.first(images)))
        hidden = self.second_norm(self.second(hidden))
        return self.relu(hidden + self.around(images))


class ResNet18(nn.Module):
    """The layers of He et al. (2016), table 1, with dropout before the last."""

    def __init__(self, classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
        widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
        self.blocks = nn.Sequential(
            *(
                Block(inputs, outputs, stride=1 if inputs == outputs else 2)
                for inputs, outputs in pairwise(widths)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.blocks(self.stem(images))).flatten(1)
        out: Tensor = self.fc(self.dropout(hidden))
        return out


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
