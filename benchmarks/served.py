"""The process of one version of leery: names its cases, then answers each with its seconds.

benchmarks/versions.py starts it with the folder of the version on the import path.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial

import torch
from pairs import seconds_a_call
from torch import Tensor

from leery import PAPER_METRICS, RECOMMENDED_METRICS, Detector, data
from leery.attacks import PGD
from leery.mc_dropout import MCDropout
from models import classifier, images_of

TURN = 0.2
NAMES = ("DigitNet", "FashionNet", "ResNet-18, 64 x 64", "small vision transformer")

Work = Callable[[], object]


def passes(name: str, count: int) -> Work:
    """50 passes."""
    return partial(MCDropout(classifier(name), 50).sample, images_of(name, count))


def first_call(name: str) -> Work:
    """What is found out about a classifier before its first images are sampled."""
    model, images = classifier(name), images_of(name, 2)
    return lambda: MCDropout(model, 50).sample(images)


def attack(name: str, count: int) -> Work:
    """Ten steps of PGD."""
    model, images = classifier(name), images_of(name, count)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return lambda: PGD(0.1, steps=10, step_size=0.01)(model, images, labels)


def gradient(name: str) -> Work:
    """A gradient through 50 passes."""
    sampler, images = MCDropout(classifier(name), 50), images_of(name, 64)

    def work() -> Tensor:
        variable = images.clone().requires_grad_()
        probs = sampler.observe_with_gradient(variable).probs
        return torch.autograd.grad(probs.square().sum(), variable)[0]

    return work


@cache
def fitted() -> Detector:
    """The six metrics of the paper on DigitNet, with all 60,000 references."""
    made = Detector(
        classifier("DigitNet"), metrics=PAPER_METRICS, feature_layer="hidden", bandwidth=1.7
    )
    return made.fit(*data.load("mnist", "train"))


def six(count: int) -> Work:
    """Its metrics of some images."""
    return partial(fitted().measure, images_of("DigitNet", count))


@cache
def calibrated() -> Detector:
    """The recommended metrics but the one that needs training, on DigitNet, calibrated."""
    metrics = [name for name in RECOMMENDED_METRICS if name != "auxiliary_agreement"]
    made = Detector(classifier("DigitNet"), metrics=metrics).fit(*data.load("mnist", "train"))
    return made.calibrate(data.load("mnist", "test")[0][-5000:], fpr=0.01)


def verdicts(count: int) -> Work:
    """Its verdicts on some images."""
    return partial(calibrated().judge, images_of("DigitNet", count))


def cases() -> Iterator[tuple[str, Callable[[], Work]]]:
    """Each case's name and what makes it ready."""
    counts = {"DigitNet": (1, 8, 64, 256, 1000), "FashionNet": (1, 8, 64, 256)}
    for name in NAMES:
        for count in counts.get(name, (1, 8, 64)):
            yield f"50 passes, {name}, images: {count:,}", partial(passes, name, count)
    for name in NAMES:
        yield f"first call, {name}", partial(first_call, name)
    for name in NAMES:
        for count in (8, 64):
            yield f"PGD, 10 steps, {name}, images: {count}", partial(attack, name, count)
        yield f"gradient through 50 passes, {name}, images: 64", partial(gradient, name)
    for count in (1, 8, 64, 256, 1000):
        yield f"six metrics, DigitNet, images: {count:,}", partial(six, count)
        yield f"verdicts, DigitNet, images: {count:,}", partial(verdicts, count)


def main(threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    every = dict(cases())
    print(json.dumps(list(every)), flush=True)
    ready: dict[str, Work] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready = {name: every[name]()}
            ready[name]()
            ready[name]()
        print(json.dumps(seconds_a_call(ready[name], TURN)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
