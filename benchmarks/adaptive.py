"""What attackers achieve who know the detector, and whether their attacks work at all.

    python benchmarks/adaptive.py falls       attacks on the paper's six metrics, one by one
    python benchmarks/adaptive.py budget      evasions by epsilon, for each guard
    python benchmarks/adaptive.py distance    the smallest L2 changes that evade each guard
    python benchmarks/adaptive.py active      the active test and the inverted one
    python benchmarks/adaptive.py masks       the paper's six with known, unknown and fresh masks
    python benchmarks/adaptive.py alarms      evasions, or false alarms that an attacker causes
    python benchmarks/adaptive.py hardened    robust error with rejection of the hardened DigitNet

An attack succeeds if the image is misclassified and not flagged. Tables are written to
docs/results/adaptive. Guards are calibrated for 1 % false alarms on the second half of the test
images; the first images of the other half that the classifier gets right are attacked.
"""

import argparse
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import leery
from leery import Detector
from leery.attacks import PGD, Attack
from leery.attacks.adaptive import (
    FalseAlarm,
    SmallestEvasion,
    Target,
    active_test,
    adaptive_attacks,
    worst_case,
)
from leery.certify import pretrained_sentinel
from leery.classifiers import pretrained
from leery.data import data_sums, load
from leery.evaluation import share_interval, target_of
from leery.models import predict, run_fast

RESULTS = Path("docs/results/adaptive")
KEPT = Path("runs/adaptive")
RATES = (0.01, 0.05)
EPSILON = 0.3
DRAWS = 20
"""Number of draws of dropout masks that are averaged, and that judge."""

NAMES = ("selective", "orthogonal", "weighted", "confident")
"""The attacks that are judged one by one; the fifth one is that towards every class."""

Row = dict[str, object]
Labelled = tuple[Tensor, Tensor]


def attacked(count: int) -> Labelled:
    """The first test images that DigitNet gets right, and their classes."""
    images, labels = (part[:5000] for part in load("mnist", "test"))
    right = predict(pretrained("mnist").model, images) == labels
    return images[right][:count], labels[right][:count]


@cache
def detector(name: str) -> Detector:
    """A detector of DigitNet, fitted on all training images; kept in a file once it is made."""
    model, path = pretrained("mnist").model, KEPT / f"{name}.leery"
    if path.exists():
        return Detector.load(path, model)
    if name == "with sentinel":
        made = detector("default").with_sentinel(pretrained_sentinel("mnist", model))
    else:
        metrics = leery.PAPER_METRICS if name == "six" else leery.RECOMMENDED_METRICS
        made = Detector(model, metrics=metrics).fit(*load("mnist", "train"))
    images, labels = load("mnist", "test")
    made.calibrate(images[5000:], labels[5000:], fpr=RATES[0])
    KEPT.mkdir(parents=True, exist_ok=True)
    made.save(path)
    return made


class Confidence:
    """Flags images of which a classifier is not confident: minus its largest log-probability."""

    differentiable = True

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def score(self, images: Tensor) -> np.ndarray:
        with torch.no_grad():
            found = [self.differentiable_score(batch) for batch in images.split(1000)]
        return torch.cat(found).double().numpy()

    def differentiable_score(self, images: Tensor) -> Tensor:
        return -run_fast(self.model, images).log_softmax(1).amax(1)


def unguarded() -> Target:
    """DigitNet without a detector."""
    return Target.of_scorer(Confidence(pretrained("mnist").model), 1e6)


GUARDS: Mapping[str, Callable[[], Target]] = {
    "unguarded": unguarded,
    "six": lambda: target_of(detector("six")),
    "default": lambda: target_of(detector("default")),
    "with sentinel": lambda: target_of(detector("with sentinel")),
}


def share(hits: Tensor | pd.Series) -> Row:
    """A share with its 95 % confidence interval."""
    found = share_interval(int(hits.sum()), len(hits))
    return {"images": len(hits), "share": found.estimate, "low": found.low, "high": found.high}


def one_by_one(target: Target, epsilon: float, steps: int) -> dict[str, dict[str, Attack]]:
    """The attacks that are judged one by one, by name."""
    made = adaptive_attacks(target, epsilon, classes=10, steps=steps)
    towards = {name: attack for name, attack in made.items() if name.startswith("towards")}
    return {**{name: {name: made[name]} for name in NAMES}, "towards every class": towards}


def falls() -> Iterator[Row]:
    """Each attack alone on the paper's six metrics."""
    target, (images, labels) = GUARDS["six"](), attacked(300)
    for name, own in one_by_one(target, EPSILON, 1000).items():
        found = worst_case(target, own, images, labels).rows
        steps = found.steps[found.evaded]
        by_steps = {f"after {most}": int((steps <= most).sum()) for most in (10, 100, 1000)}
        yield {
            "guard": "six",
            "attack": name,
            "epsilon": EPSILON,
            **share(found.evaded),
            **by_steps,
        }


def budget() -> Iterator[Row]:
    """The worst of all attacks, by epsilon."""
    images, labels = attacked(50)
    for name, make in GUARDS.items():
        target = make()
        for epsilon in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
            attacks = adaptive_attacks(target, epsilon, classes=10, steps=200)
            found = worst_case(target, attacks, images, labels).rows
            yield {"guard": name, "epsilon": epsilon, "steps": 200, **share(found.evaded)}


def distance() -> Iterator[Row]:
    """The median smallest L2 change that evades each guard."""
    images, labels = attacked(50)
    for name, make in GUARDS.items():
        target = make()
        excess = None if name == "unguarded" else target.excess
        made = SmallestEvasion(excess, steps=500)(target.model, images, labels)
        hits = target.evaded_by(made, labels)
        lengths = (made - images).flatten(1).norm(dim=1)
        median = float(torch.where(hits, lengths, torch.inf).median())
        yield {"guard": name, "steps": 500, "median L2": median, **share(hits)}


def active() -> Iterator[Row]:
    """The active test of each attack, plain and inverted, on the paper's six metrics."""
    target, (images, _) = GUARDS["six"](), attacked(128)
    for name in (*NAMES, "towards +1", "transfer"):
        for inverted in (False, True):
            found = active_test(
                target,
                lambda planted, name=name: adaptive_attacks(  # type: ignore[misc]
                    planted, EPSILON, classes=2, steps=500
                )[name],
                images,
                epsilon=EPSILON,
                inverted=inverted,
                random_points=50 if name == "selective" else 1,
            )
            tried = found.by_chance if name == "selective" else None
            yield {
                "guard": "six", "attack": name, "inverted": inverted, "planted": found.planted,
                "found": found.found, "by chance": tried,
            }  # fmt: skip


def masks() -> Iterator[Row]:
    """The paper's six, where the attacker knows the dropout masks, does not, or where none last.

    The verdicts that count are of draws that no attack has seen.
    """
    guard, (images, labels) = detector("six"), attacked(30)
    fresh = guard.with_masks("fresh")
    targets = {
        "known": target_of(guard),
        "unknown": target_of(guard.with_masks(1)),
        "fresh": averaged(fresh),
    }
    for kind, target in targets.items():
        attacks = adaptive_attacks(target, EPSILON, classes=10, steps=100)
        own = {name: attacks[name] for name in ("selective", "weighted")}
        made = worst_case(target, own, images, labels).images
        judges = [target_of(fresh)] * DRAWS if kind == "fresh" else [target_of(guard)]
        hits = torch.stack([judge.evaded_by(made, labels) for judge in judges]).double()
        row = {"guard": "six", "masks": kind, "epsilon": EPSILON, "images": len(images)}
        yield {**row, "draws": len(judges), "evaded": float(hits.mean())}


def averaged(fresh: Detector) -> Target:
    """A detector with fresh masks: excess and verdict are means over many draws."""
    one = target_of(fresh)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        found = [one.judge(images) for _ in range(DRAWS)]
        return found[0][0], torch.stack([excess for _, excess in found]).mean(0)

    def excess(images: Tensor) -> Tensor:
        return torch.stack([one.excess(images) for _ in range(DRAWS)]).mean(0)

    return Target(fresh.model, excess, judge)


def alarms() -> Iterator[Row]:
    """R(alpha): evaded within epsilon, or flagged within alpha epsilon, by an attacker's choice.

    Source:
        Chen et al. (2023), stratified rejection.
    """
    images, labels = attacked(50)
    for name in ("six", "default", "with sentinel"):
        target = GUARDS[name]()
        attacks = adaptive_attacks(target, EPSILON, classes=10, steps=200)
        evaded = torch.tensor(worst_case(target, attacks, images, labels).rows.evaded.to_numpy())
        for alpha in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0):
            radius = alpha * EPSILON
            attack = PGD(
                radius,
                steps=100,
                step_size=radius / 10 or None,
                objective=partial(FalseAlarm, excess=target.excess),
            )
            _, excess = target.judge(attack(target.model, images, labels))
            flagged = excess > 0
            row = {"guard": name, "epsilon": EPSILON, "alpha": alpha, **share(evaded | flagged)}
            yield {**row, "flagged": float(flagged.double().mean())}


def hardened() -> Iterator[Row]:
    """Robust error with rejection, the worst over all attacks."""
    model = pretrained("mnist", "adversarial").model
    guard, (images, labels) = Confidence(model), load("mnist", "test")
    held, truth = images[5000:], labels[5000:]
    scores = guard.score(held)[(predict(model, held) == truth).numpy()]
    for rate in RATES:
        threshold = float(np.quantile(scores, 1 - rate, method="higher"))
        target = Target.of_scorer(guard, threshold)
        for norm, epsilon in (("linf", 0.3), ("linf", 0.4), ("l2", 3.0)):
            attacks = adaptive_attacks(target, epsilon, classes=10, steps=300, norm=norm)  # type: ignore[arg-type]
            own, classes = images[:500], labels[:500]
            found = worst_case(target, attacks, own, classes, restarts=2).rows
            yield {
                "norm": norm, "epsilon": epsilon, "rejected": rate, "images": 500, "steps": 300,
                "restarts": 2, "robust error": robust_error(target, own, classes, found.evaded),
                "evaded": float(found.evaded.mean()),
            }  # fmt: skip


def robust_error(target: Target, images: Tensor, labels: Tensor, evaded: pd.Series) -> float:
    """Robust error with rejection of Stutz et al. (2020), equation 7."""
    classes, excess = target.judge(images)
    right, accepted = (classes == labels).numpy(), ~(excess > 0).numpy()
    changed = evaded.to_numpy() & right
    wrong = (~right & accepted) | changed
    return float(wrong.sum() / (accepted | changed).sum())


TABLES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "falls": falls,
    "budget": budget,
    "distance": distance,
    "active": active,
    "masks": masks,
    "alarms": alarms,
    "hardened": hardened,
}


def write(table: str, rows: list[Row]) -> None:
    """Write a table and what it was computed with."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS / f"{table}.csv", index=False, float_format="%.6g")
    path = RESULTS / "manifest.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    names = ("leery", "torch", "numpy", "pandas")
    known[table] = {
        "again": f"python benchmarks/adaptive.py {table}",
        "data_sha256": data_sums("mnist"),
        "versions": {name: version(name) for name in names},
        "processor": platform.processor() or platform.machine(),
    }
    path.write_text(json.dumps(known, indent=2) + "\n")


def main() -> None:
    """Write the tables that the command line names, row by row."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=TABLES)
    for table in parser.parse_args().tables:
        rows: list[Row] = []
        for row in TABLES[table]():
            print(row, flush=True)
            rows.append(row)
            write(table, rows)


if __name__ == "__main__":
    main()
