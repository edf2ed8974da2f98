"""What the shipped sentinels certify, and attacks that try to refute them.

    python benchmarks/certificates.py shares    certified shares of the test images
    python benchmarks/certificates.py sound     points inside certified balls: none may be accepted
    python benchmarks/certificates.py attack    certified, broken and undecided images
    python benchmarks/certificates.py sizes     shares by number of training images and of epochs
    python benchmarks/certificates.py detector  shares with half of the false-alarm rate
    python benchmarks/certificates.py costs     times as multiples of classifying the images

Tables are written to docs/results/certificates. All images are shuffled test images; each threshold
is set on the 5,000 training images that the sentinel was not trained on.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from pairs import Timed, in_turn
from scenes import OUT, plain_digits
from sentinels import EPSILONS, HELD, RATES, Labelled, split
from sentinels import WEIGHTS as SENTINELS
from torch import Tensor, nn

import leery.classifiers
from leery import Detector
from leery.attacks import PGD
from leery.certify import Box, Sentinel, pretrained_sentinel
from leery.classifiers import pretrained
from leery.data import data_sums, load
from leery.evaluation import certificates, certified_shares, share_interval
from leery.models import predict, run_fast
from leery.training import SentinelNetwork, SentinelRecipe, TrainingSet, train_sentinel

RESULTS = Path("docs/results/certificates")
CLASSIFIERS = Path(leery.classifiers.__file__).parent / "weights"
BOXES = {"mnist": 128, "fashion-mnist": 1}
"""Open boxes per image of branch and bound; none for articles, where too many pixels matter."""


Row = dict[str, object]
Points = Callable[[Sentinel, Tensor, Tensor, float], Iterator[Tensor]]
"""Function of sentinel, images, labels and epsilon that yields points of the balls, one each."""


@dataclass(frozen=True)
class Guard:
    """A classifier and its dataset."""

    dataset: str
    name: str
    model: nn.Module

    @property
    def facts(self) -> Row:
        """The columns that name it."""
        return {"dataset": self.dataset, "classifier": self.name}

    def sentinel(self, rate: float) -> Sentinel:
        """The shipped sentinel, calibrated for this classifier."""
        _, held = split(self.dataset)
        return pretrained_sentinel(self.dataset, self.model).calibrate(*held, fpr=rate)


def shipped(dataset: str, name: str) -> Guard:
    """The classifier that ships with leery for a dataset."""
    return Guard(dataset, name, pretrained(dataset).model)


def foreign() -> Guard:
    """A digit classifier that does not ship with leery."""
    OUT.mkdir(parents=True, exist_ok=True)
    return Guard("mnist", "foreign", plain_digits(OUT).model)


def interval_trained() -> Guard:
    """A digit classifier trained as the sentinel is, from another seed and for fewer epochs."""
    OUT.mkdir(parents=True, exist_ok=True)
    path, recipe = OUT / "interval-trained.pt", SentinelRecipe(epochs=20)
    if not path.exists():
        train, _ = split("mnist")
        trained = train_sentinel(TrainingSet(*train), classes=10, recipe=recipe, seed=1)
        torch.save(trained.state_dict(), path)
    weights = torch.load(path)
    hidden = len(weights["layers.6.bias"])
    network = SentinelNetwork((1, 28, 28), 10, ramp=True, width=recipe.width, hidden=hidden)
    network.load_state_dict(weights)
    return Guard("mnist", "interval-trained", network.eval())


GUARDS: Mapping[str, Callable[[], Guard]] = {
    "DigitNet": partial(shipped, "mnist", "DigitNet"),
    "foreign": foreign,
    "interval-trained": interval_trained,
    "FashionNet": partial(shipped, "fashion-mnist", "FashionNet"),
}
"""The classifiers that are guarded; each one is measured in a process of its own."""


def shuffled(dataset: str, count: int = 10_000) -> Labelled:
    """Test images and their labels, in a random order."""
    images, labels = load(dataset, "test")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    return images[order], labels[order]


# ---- shares --------------------------------------------------------------------------------------


def shares(guard: Guard) -> Iterator[Row]:
    """Certified shares for every rate and epsilon."""
    images, labels = shuffled(guard.dataset)
    epsilons = EPSILONS[guard.dataset]
    for rate in RATES:
        sentinel = guard.sentinel(rate)
        for boxes in sorted({1, BOXES[guard.dataset]}):
            found = certificates(
                sentinel, images, labels, epsilons=epsilons, boxes=boxes, radii=False
            )
            for row in certified_shares(found).to_dict("records"):
                if boxes == 1 or str(row["what"]).startswith("certified"):
                    yield {**guard.facts, "rate": rate, "boxes": boxes, **row}
    if guard.name in ("DigitNet", "FashionNet"):
        yield from alone(guard, images, labels)


def alone(guard: Guard, images: Tensor, labels: Tensor) -> Iterator[Row]:
    """The sentinel's network as the classifier: what it gets right, and right in the whole ball."""
    network = pretrained_sentinel(guard.dataset, guard.model).network_
    facts = {"dataset": guard.dataset, "classifier": "sentinel alone", "boxes": 1}
    right = {
        "accuracy of the classifier": predict(guard.model, images) == labels,
        "accuracy of the sentinel's network": predict(network, images) == labels,
    }
    for what, hits in right.items():
        yield {**facts, "what": what, **counted(hits)}
    for epsilon in EPSILONS[guard.dataset]:
        with torch.no_grad():
            proved = [
                (network.margins(Box.around(batch, epsilon, (0, 1)), truth) > 0).all(1)
                for batch, truth in zip(images.split(100), labels.split(100), strict=True)
            ]
        yield {**facts, "what": "verified", "epsilon": epsilon, **counted(torch.cat(proved))}


def counted(hits: Tensor) -> dict[str, float]:
    """A share with its interval."""
    found = share_interval(int(hits.sum()), len(hits))
    return {"images": len(hits), "share": found.estimate, "low": found.low, "high": found.high}


# ---- soundness -----------------------------------------------------------------------------------


def sound(guard: Guard) -> Iterator[Row]:
    """Points of many kinds inside balls; counts what refutes the proof.

    A point does so if for any wrong class its score would not exceed the threshold, whatever class
    the classifier gives it. Balls that are not certified show how often that kind of point finds
    such a class where there is one.
    """
    sentinel = guard.sentinel(RATES[0])
    for epsilon in EPSILONS[guard.dataset]:
        images, labels = shuffled(guard.dataset, 1000)
        certified = torch.from_numpy(
            sentinel.certify(images, labels, epsilon=epsilon, boxes=BOXES[guard.dataset])
        )
        for balls, rows in (("certified", certified), ("not certified", ~certified)):
            for kind, points in POINTS.items():
                row = {**guard.facts, "epsilon": epsilon, "points": kind, "balls": balls}
                found = counted_points(sentinel, points, images[rows], labels[rows], epsilon)
                yield {**row, "count": int(rows.sum()), **found}


def counted_points(
    sentinel: Sentinel, points: Points, images: Tensor, labels: Tensor, epsilon: float
) -> Row:
    """How many points were tried, and how many accept a wrong class, or evade."""
    tried = accepting = evading = 0
    for made in points(sentinel, images, labels, epsilon) if len(images) else ():
        assert float((made - images).abs().max()) <= epsilon + ROUNDING
        tried += len(made)
        accepting += int(accepts_a_wrong_class(sentinel, made, labels).sum())
        evading += int(evades(sentinel, made, labels).sum())
    return {"tried": tried, "accepting a wrong class": accepting, "evading": evading}


@torch.no_grad()
def accepts_a_wrong_class(sentinel: Sentinel, images: Tensor, labels: Tensor) -> Tensor:
    """Whether for some wrong class the score of each image does not exceed the threshold."""
    found = torch.zeros(len(images), dtype=torch.bool)
    for wrong, threshold in enumerate(sentinel.thresholds_):
        classes = torch.full_like(labels, wrong)
        found |= (sentinel.score_of(images, classes) <= threshold) & (labels != wrong)
    return found


ROUNDING = 1e-7
"""What float32 may add to a distance; the certified balls are wider by more."""


def uniform(
    _sentinel: Sentinel, images: Tensor, _labels: Tensor, epsilon: float
) -> Iterator[Tensor]:
    """Uniform noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        noise = 2 * torch.rand(images.shape, generator=generator) - 1
        yield (images + epsilon * noise).clamp(0, 1)


def corners(
    _sentinel: Sentinel, images: Tensor, _labels: Tensor, epsilon: float
) -> Iterator[Tensor]:
    """Random corners of the ball."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        signs = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
        yield (images + epsilon * signs).clamp(0, 1)


def against_classifier(
    sentinel: Sentinel, images: Tensor, labels: Tensor, epsilon: float
) -> Iterator[Tensor]:
    """PGD on the classifier alone."""
    for seed in range(2):
        yield PGD(epsilon)(sentinel.model, images, labels, seed=seed)


def against_sentinel(
    sentinel: Sentinel, images: Tensor, labels: Tensor, epsilon: float
) -> Iterator[Tensor]:
    """PGD on the sentinel alone, towards a wrong class that it accepts."""
    for seed in range(10):
        attack = PGD(epsilon, objective=partial(Unflagged, sentinel=sentinel, weight=torch.inf))
        yield attack(sentinel.model, images, labels, seed=seed)


def against_both(
    sentinel: Sentinel, images: Tensor, labels: Tensor, epsilon: float
) -> Iterator[Tensor]:
    """PGD on classifier and sentinel together."""
    for seed, weight in enumerate((0.3, 1.0, 3.0)):
        attack = PGD(epsilon, objective=partial(Unflagged, sentinel=sentinel, weight=weight))
        yield attack(sentinel.model, images, labels, seed=seed)


POINTS: Mapping[str, Points] = {
    "uniform": uniform,
    "corners": corners,
    "PGD on the classifier": against_classifier,
    "PGD on the sentinel": against_sentinel,
    "PGD on classifier and sentinel": against_both,
}


@dataclass(frozen=True)
class Unflagged:
    """How far each image is from being misclassified and not flagged; 0 where it is.

    For each wrong class k, the sum of two shortfalls: by how much another logit of the classifier
    exceeds that of k, and, weighted, by how much the sentinel's score for k exceeds its threshold.
    The wrong class with the smallest sum counts; the objective is its negative. With an infinite
    weight only the sentinel counts.

    Args:
        model: the classifier, in eval mode.
        sentinel: the sentinel.
        weight: weight of the sentinel's shortfall.
        movable: bool like the images, the pixels whose gradient through the sentinel counts; None
            for all of them.
    """

    model: nn.Module
    sentinel: Sentinel
    weight: float
    movable: Tensor | None = None
    chooses = True

    def value(self, images: Tensor, labels: Tensor) -> Tensor:
        seen = images
        if self.movable is not None:
            seen = torch.where(self.movable, images, images.detach())
        thresholds = torch.from_numpy(self.sentinel.thresholds_).float()
        lacks = (excess(self.sentinel.network_(seen)) - thresholds + MARGIN).relu()
        if self.weight < torch.inf:
            own = (excess(run_fast(self.model, images)) + MARGIN).relu()
            lacks = own + self.weight * lacks
        return -lacks.scatter(1, labels.unsqueeze(1), torch.inf).amin(1)

    def direction(self, gradients: Tensor) -> Tensor:
        return gradients[0]

    def better(self, new: Tensor, old: Tensor) -> Tensor:
        return new > old


MARGIN = 1e-3
"""What an attack exceeds the decisions by, so that rounding does not undo them."""


def excess(logits: Tensor) -> Tensor:
    """The largest other logit minus each logit, ``(N, classes)``."""
    (first, second), (place, _) = (part.unbind(1) for part in logits.topk(2, dim=1))
    own = torch.arange(logits.shape[1]) == place.unsqueeze(1)
    return torch.where(own, second.unsqueeze(1), first.unsqueeze(1)) - logits


def evades(sentinel: Sentinel, images: Tensor, labels: Tensor) -> Tensor:
    """Whether each image is misclassified and not flagged."""
    return (predict(sentinel.model, images) != labels) & ~torch.from_numpy(sentinel.flag(images))


# ---- attack --------------------------------------------------------------------------------------

STEPS, IMAGES = 500, 500
MOST_BOXES = {"mnist": 8192, "fashion-mnist": 1}
ATTACKED = {"DigitNet": EPSILONS["mnist"], "FashionNet": (0.05,)}
"""Classifiers that are attacked, and at which epsilons."""

WEIGHTS = (1.0, 0.3, 3.0, 0.1, 10.0)
"""One per restart: what the sentinel's shortfall counts against the classifier's."""


def attack(guard: Guard) -> Iterator[Row]:
    """Of 500 images that the classifier gets right: certified, broken, undecided."""
    for epsilon in ATTACKED.get(guard.name, ()):
        sentinel = guard.sentinel(RATES[0])
        images, labels = shuffled(guard.dataset)
        right = predict(guard.model, images) == labels
        images, labels = images[right][:IMAGES], labels[right][:IMAGES]
        by_bounds, certified = (
            torch.from_numpy(sentinel.certify(images, labels, epsilon=epsilon, boxes=boxes))
            for boxes in (1, MOST_BOXES[guard.dataset])
        )
        broken = broken_by_attack(sentinel, images, labels, certified, epsilon)
        counts = {
            "certified without splitting": by_bounds,
            "certified": certified,
            "broken": broken,
            "undecided": ~certified & ~broken,
        }
        row = {**guard.facts, "rate": RATES[0], "epsilon": epsilon, "images": len(images)}
        yield row | {name: int(hits.sum()) for name, hits in counts.items()}


def broken_by_attack(
    sentinel: Sentinel, images: Tensor, labels: Tensor, certified: Tensor, epsilon: float
) -> Tensor:
    """Whether an attack made an image that is misclassified and not flagged.

    The first restart attacks certified images, too: nothing may be found there. Every second one
    ignores the sentinel's gradient in pixels that its ramp does not let through anywhere in the
    ball, where only the classifier can be moved.
    """
    broken = evades(sentinel, images, labels)
    first = sentinel.network_.layers[0]
    ends = (first((images + sign * epsilon).clamp(0, 1)) for sign in (-1, 1))
    movable = torch.ne(*ends)
    for restart, weight in enumerate(WEIGHTS):
        rest = ~broken & ~certified if restart else ~broken
        if not rest.any():
            break
        objective = partial(
            Unflagged,
            sentinel=sentinel,
            weight=weight,
            movable=None if restart % 2 else movable[rest],
        )
        attacker = PGD(epsilon, steps=STEPS, step_size=epsilon / 20, objective=objective)
        made = attacker(
            sentinel.model, images[rest], labels[rest], seed=restart, batch_size=len(images)
        )
        broken[rest] = evades(sentinel, made, labels[rest])
    assert not (broken & certified).any()
    return broken


# ---- costs ---------------------------------------------------------------------------------------

NET = """
from leery.classifiers import pretrained

def make():
    return pretrained("{dataset}").model
"""

COMMAND = (sys.executable, "-m", "leery", "certify")


def costs(guard: Guard) -> Iterator[Row]:
    """Times as multiples of others, alternating in one run on one thread."""
    yield from costs_of_images(guard)
    yield cost_of_training()
    yield cost_of_command(guard)


def costs_of_images(guard: Guard) -> Iterator[Row]:
    """Flagging and certifying, by classifying the same images."""
    sentinel, epsilon = guard.sentinel(RATES[0]), EPSILONS[guard.dataset][0]
    images, labels = shuffled(guard.dataset, 1000)
    predicted = predict(guard.model, images)
    works: dict[str, Callable[[], object]] = {
        "classify": lambda: run_fast(guard.model, images),
        "flag": lambda: sentinel.score_of(images, predicted),
        "certify": lambda: sentinel.certify(images, labels, epsilon=epsilon),
    }
    with torch.no_grad():
        timed = in_turn(works, rounds=15)
    for what, name in (
        ("flagging, given the class", "flag"),
        ("certifying at one epsilon", "certify"),
    ):
        yield compared(what, "classifying", timed.ratio(name, "classify"))


def cost_of_training() -> Row:
    """An epoch of a sentinel's training, by one on the clean images alone."""
    train, _ = split("mnist")
    few, recipe = TrainingSet(train[0][:10_000], train[1][:10_000]), SentinelRecipe(epochs=1)
    recipes = {"sentinel": recipe, "plain": replace(recipe, clean_weight=1.0)}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    for _ in range(5):
        for name, own in recipes.items():
            seconds[name].append(seconds_of_steps(few, own))
    ratio = Timed(seconds).ratio("sentinel", "plain")
    return compared("an epoch of training", "a plain epoch", ratio)


def seconds_of_steps(data: TrainingSet, recipe: SentinelRecipe) -> float:
    """Seconds of all training steps but the first, without what comes before and after."""
    times: list[float] = []
    train_sentinel(
        data, classes=10, recipe=recipe, progress=lambda _: times.append(time.perf_counter())
    )
    return times[-1] - times[0]


def cost_of_command(guard: Guard) -> Row:
    """The whole command, by classifying its images."""
    images, labels = shuffled(guard.dataset)
    epsilons = [str(epsilon) for epsilon in EPSILONS[guard.dataset]]
    (train, classes), held = split(guard.dataset)
    detector = Detector(guard.model, metrics=("max_softmax",)).fit(train[:1000], classes[:1000])
    detector = detector.with_sentinel(guard.sentinel(RATES[0])).calibrate(*held, fpr=2 * RATES[0])
    with TemporaryDirectory() as folder:
        file, data = Path(folder, "guard.leery"), Path(folder, "images.npz")
        detector.save(file)
        np.savez(data, images=images, labels=labels)
        Path(folder, "net.py").write_text(NET.format(dataset=guard.dataset))
        command = [*COMMAND, file, "--model", "net:make", "--data", data]
        run = partial(
            subprocess.run,
            [*command, "--epsilon", *epsilons, "--out", folder],
            check=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        works: dict[str, Callable[[], object]] = {
            "classify": lambda: predict(guard.model, images, batch_size=1000),
            "command": run,
        }
        timed = in_turn(works, rounds=3)
    what = f"`leery certify` at {len(epsilons)} epsilons with radii, as a whole"
    return compared(what, "classifying", timed.ratio("command", "classify"))


def compared(what: str, of: str, ratio: tuple[float, float, float]) -> Row:
    """A row of the table of costs."""
    median, least, most = ratio
    return {"what": what, "of": of, "ratio": median, "least": least, "most": most}


# ---- sizes ---------------------------------------------------------------------------------------


def sizes(guard: Guard) -> Iterator[Row]:
    """Certified shares of sentinels trained on fewer images, or for fewer epochs.

    Judged on training images that neither the sentinel nor its threshold has seen.
    """
    if guard.name != "DigitNet":
        return
    (images, labels), (held, truth) = split(guard.dataset, 2 * HELD)
    for count, epochs in product((5_000, 20_000), (5, 20, 80)):
        sentinel = Sentinel(guard.model, recipe=SentinelRecipe(epochs=epochs))
        sentinel.fit(images[:count], labels[:count])
        sentinel.calibrate(held[:HELD], truth[:HELD], fpr=RATES[0])
        found = certificates(
            sentinel, held[HELD:], truth[HELD:], epsilons=EPSILONS[guard.dataset], radii=False
        )
        for row in certified_shares(found).to_dict("records"):
            yield {**guard.facts, "training images": count, "epochs": epochs, **row}


# ---- in a detector -------------------------------------------------------------------------------


def in_a_detector(guard: Guard) -> Iterator[Row]:
    """Certified shares of a detector that gives half of its false alarms to the sentinel."""
    if guard.name not in ("DigitNet", "FashionNet"):
        return
    (train, classes), (held, truth) = split(guard.dataset)
    images, labels = shuffled(guard.dataset)
    plain = Detector(guard.model, metrics=("max_softmax",)).fit(train[:1000], classes[:1000])
    detector = plain.with_sentinel(pretrained_sentinel(guard.dataset, guard.model))
    for right_only, with_harmless in product((False, True), (True, False)):
        detector.calibrate(
            held,
            truth if right_only else None,
            fpr=RATES[0],
            harmless=None if with_harmless else {},
        )
        assert detector.sentinel_ is not None
        found = certificates(
            detector.sentinel_, images, labels, epsilons=EPSILONS[guard.dataset], radii=False
        )
        for row in certified_shares(found).to_dict("records"):
            own = {"right only": right_only, "harmless changes": with_harmless}
            yield {**guard.facts, "rate": RATES[0], **own, **row}


# ---- tables --------------------------------------------------------------------------------------

TABLES: Mapping[str, Callable[[Guard], Iterator[Row]]] = {
    "attack": attack,
    "sound": sound,
    "sizes": sizes,
    "shares": shares,
    "detector": in_a_detector,
    "costs": costs,
}
"""The longest first; costs last, when nothing else runs."""


def prepare(name: str) -> None:
    """Train a classifier that is not there yet."""
    torch.set_num_threads(1)
    GUARDS[name]()


def rows_of(table: str, name: str) -> list[Row]:
    """The rows of a table for one classifier, which are printed as they come."""
    torch.set_num_threads(1)
    rows = []
    for row in TABLES[table](GUARDS[name]()):
        print(row, flush=True)
        rows.append(row)
    return rows


def manifest(table: str) -> Row:
    """What a table was computed with."""
    names = ("leery", "torch", "numpy", "pandas")
    return {
        "again": f"python benchmarks/certificates.py {table}",
        "sentinels": {name: recorded_sum(SENTINELS, name) for name in EPSILONS},
        "classifiers": {name: recorded_sum(CLASSIFIERS, name) for name in EPSILONS},
        "data_sha256": {name: data_sums(name) for name in EPSILONS},
        "versions": {name: version(name) for name in names},
        "processor": platform.processor() or platform.machine(),
    }


def recorded_sum(folder: Path, dataset: str) -> str:
    """The checksum of shipped weights."""
    return str(json.loads((folder / f"{dataset}.json").read_text())["weights_sha256"])


def write(table: str, rows: list[Row]) -> None:
    """Write a table and add it to the manifest."""
    path = RESULTS / "manifest.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    frame = pd.DataFrame(rows)
    frame.to_csv(RESULTS / f"{table}.csv", index=False, float_format="%.6g")
    path.write_text(json.dumps({**known, table: manifest(table)}, indent=2) + "\n")


def main() -> None:
    """Write the tables that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES)
    chosen = parser.parse_args().tables
    RESULTS.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        # Once, or two tables would train the same classifier.
        for part in [pool.submit(prepare, name) for name in GUARDS]:
            part.result()
        made = {
            table: [pool.submit(rows_of, table, name) for name in GUARDS]
            for table in TABLES
            if table in chosen and table != "costs"
        }
        for table, parts in made.items():
            write(table, [row for part in parts for row in part.result()])
    if "costs" in chosen:
        write("costs", rows_of("costs", "DigitNet"))


if __name__ == "__main__":
    main()
