"""What attackers achieve who know the detector, and whether their attacks work at all.

    python benchmarks/adaptive.py falls       attacks on the paper's six metrics, one by one
    python benchmarks/adaptive.py budget      evasions by epsilon, for each guard
    python benchmarks/adaptive.py distance    the smallest L2 changes that evade each guard
    python benchmarks/adaptive.py active      the active test and the inverted one
    python benchmarks/adaptive.py queries     attacks without a gradient beside those with one
    python benchmarks/adaptive.py masks       the paper's six with known, unknown and fresh masks
    python benchmarks/adaptive.py alarms      evasions, or false alarms that an attacker causes
    python benchmarks/adaptive.py hardened    robust error with rejection of the hardened DigitNet
    python benchmarks/adaptive.py threats     what holds against whom, for each guard
    python benchmarks/adaptive.py signs       six signs that an attack has failed, for each guard
    python benchmarks/adaptive.py growth      guards of the hardened DigitNet, attack by attack
    python benchmarks/adaptive.py robust      suite against PGD-100 where nothing is guarded

An attack succeeds if the image is misclassified and not flagged. Tables are written to
docs/results/adaptive. Guards are calibrated for 1 % false alarms on the second half of the test
images; the first images of the other half that the classifier gets right are attacked. Images are
attacked in parts, whose results are kept in runs/adaptive until a file of leery changes: a run that
was stopped goes on where it stood.
"""

import argparse
import hashlib
import importlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import eagerpy
import foolbox
import joblib  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import leery
from leery import Detector
from leery.attacks import BIM, FGSM, PGD, Attack, GradientAttack, NormName
from leery.attacks.adaptive import (
    Decisions,
    FalseAlarm,
    Joint,
    SmallestEvasion,
    Target,
    active_test,
    adaptive_attacks,
    indicators,
    worst_case,
)
from leery.certify import pretrained_sentinel
from leery.classifiers import pretrained
from leery.data import data_sums, load
from leery.evaluation import robust_error, share_interval, target_of
from leery.models import predict, run_fast

RESULTS = Path("docs/results/adaptive")
KEPT = Path("runs/adaptive")
RATES = (0.01, 0.05)
EPSILON = 0.3
PART = 125
"""Number of images that are attacked at once, and whose results are kept."""

DRAWS = 20
"""Number of draws of dropout masks that are averaged, and that judge."""

NAMES = ("selective", "orthogonal", "weighted", "confident")
"""The attacks that are judged one by one; the fifth one is that towards every class."""

SOURCES = sorted(Path(leery.__file__).parent.rglob("*.py"))
CODE = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:12]
KEEP = joblib.Memory(KEPT / CODE, verbose=0).cache

Row = dict[str, object]
Labelled = tuple[Tensor, Tensor]


def right(count: int, recipe: str = "plain") -> list[int]:
    """Numbers of the first test images that DigitNet gets right."""
    images, labels = (part[:5000] for part in load("mnist", "test"))
    hits = predict(pretrained("mnist", recipe).model, images) == labels
    return hits.nonzero().squeeze(1).tolist()[:count]


def attacked(count: int, recipe: str = "plain") -> Labelled:
    """The first test images that DigitNet gets right, and their classes."""
    images, labels = load("mnist", "test")
    chosen = right(count, recipe)
    return images[chosen], labels[chosen]


@cache
def detector(name: str, recipe: str = "plain") -> Detector:
    """A detector of DigitNet, fitted on all training images; kept in a file once it is made."""
    model, path = pretrained("mnist", recipe).model, KEPT / f"{name}-{recipe}.leery"
    if path.exists():
        return Detector.load(path, model)
    if name == "with sentinel":
        made = detector("default", recipe).with_sentinel(pretrained_sentinel("mnist", model))
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

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def score(self, images: Tensor) -> np.ndarray:
        with torch.no_grad():
            found = [self.differentiable_score(batch) for batch in images.split(1000)]
        return torch.cat(found).double().numpy()

    def differentiable_score(self, images: Tensor) -> Tensor:
        return -run_fast(self.model, images).log_softmax(1).amax(1)


class RunOnce(nn.Module):
    """A classifier that runs once where an attack asks for the gradient of logits and of score."""

    last: tuple[Tensor, Tensor] | None = None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return self.model(images)  # type: ignore[no-any-return]
        # Each time an attack differentiates, it makes a new leaf of the graph.
        variable = images if images.is_leaf else images.grad_fn.next_functions[0][0].variable  # type: ignore[union-attr]
        if RunOnce.last is None or RunOnce.last[0] is not variable:
            RunOnce.last = variable, self.model(images)
        return RunOnce.last[1]


def unguarded(recipe: str = "plain") -> Target:
    """DigitNet without a detector."""
    return Target.of_scorer(Confidence(pretrained("mnist", recipe).model), 1e6)


def by_confidence(rate: float) -> Target:
    """The hardened DigitNet, which rejects the images of which it is least confident."""
    model = RunOnce(pretrained("mnist", "adversarial").model).eval()
    guard, (images, labels) = Confidence(model), load("mnist", "test")
    held, truth = images[5000:], labels[5000:]
    scores = guard.score(held)[(predict(model, held) == truth).numpy()]
    return Target.of_scorer(guard, float(np.quantile(scores, 1 - rate, method="higher")))


GUARDS: Mapping[str, Callable[[], Target]] = {
    "unguarded": unguarded,
    "six": lambda: target_of(detector("six")),
    "default": lambda: target_of(detector("default")),
    "with sentinel": lambda: target_of(detector("with sentinel")),
    "hardened, unguarded": lambda: unguarded("adversarial"),
    "hardened, 1 % rejected": lambda: by_confidence(0.01),
    "hardened, 5 % rejected": lambda: by_confidence(0.05),
    "hardened, default": lambda: target_of(detector("default", "adversarial")),
    "hardened, with sentinel": lambda: target_of(detector("with sentinel", "adversarial")),
}
"""Guards by name."""


@cache
def guard(name: str) -> Target:
    """The guard of a name, made once in each process."""
    return GUARDS[name]()


@dataclass(frozen=True)
class Case:
    """A guard, and how hard it is attacked.

    Attributes:
        guard: its name.
        epsilon: the radius of the ball.
        steps: number of steps of each attack.
        restarts: number of restarts of each attack.
        norm: "linf" or "l2".
        only: beginnings of the names of the attacks that take part; all of them by default.
    """

    guard: str
    epsilon: float
    steps: int
    restarts: int = 1
    norm: NormName = "linf"
    only: tuple[str, ...] = ("",)


@KEEP  # type: ignore[untyped-decorator]
def evasions_of(case: Case, numbers: list[int]) -> pd.DataFrame:
    """What attacks achieve on test images of these numbers."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    target = guard(case.guard)
    made = adaptive_attacks(
        target, case.epsilon, classes=10, steps=case.steps, norm=case.norm, pool=images
    )
    own = {name: attack for name, attack in made.items() if name.startswith(case.only)}
    return worst_case(target, own, images, labels, restarts=case.restarts).rows


def evasions(case: Case, numbers: list[int]) -> pd.DataFrame:
    """What attacks achieve, part by part, in as many processes as there are processors."""
    parts = joblib.Parallel(n_jobs=-1)(
        joblib.delayed(evasions_of)(case, numbers[first : first + PART])
        for first in range(0, len(numbers), PART)
    )
    return pd.concat(parts, ignore_index=True)


def share(hits: Tensor | pd.Series) -> Row:
    """A share with its 95 % confidence interval."""
    found = share_interval(int(hits.sum()), len(hits))
    return {"images": len(hits), "share": found.estimate, "low": found.low, "high": found.high}


def falls() -> Iterator[Row]:
    """Each attack alone on the paper's six metrics."""
    for name in (*NAMES, "towards"):
        case = Case("six", EPSILON, 1000, only=(name,))
        found = evasions(case, right(300))
        steps = found.steps[found.evaded]
        by_steps = {f"after {most}": int((steps <= most).sum()) for most in (10, 100, 1000)}
        yield {**described(case), "attack": name, **share(found.evaded), **by_steps}


def described(case: Case) -> Row:
    """Guard, norm, epsilon, steps and restarts of a case."""
    names = ("guard", "norm", "epsilon", "steps", "restarts")
    return {name: getattr(case, name) for name in names}


def budget() -> Iterator[Row]:
    """The worst of all attacks, by epsilon."""
    for epsilon in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4):
        for name in ("unguarded", "six", "default", "with sentinel"):
            case = Case(name, epsilon, 200)
            yield {**described(case), **share(evasions(case, right(50)).evaded)}


def distance() -> Iterator[Row]:
    """The median smallest L2 change that evades each guard."""
    images, labels = attacked(50)
    for name in ("unguarded", "six", "default", "with sentinel"):
        target = guard(name)
        excess = None if name == "unguarded" else target.excess
        made = SmallestEvasion(excess, steps=500)(target.model, images, labels)
        hits = target.evaded_by(made, labels)
        lengths = (made - images).flatten(1).norm(dim=1)
        median = float(torch.where(hits, lengths, torch.inf).median())
        yield {"guard": name, "steps": 500, "median L2": median, **share(hits)}


def active() -> Iterator[Row]:
    """The active test of each attack, plain and inverted, on the paper's six metrics."""
    target, (images, _) = guard("six"), attacked(128)
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


def queries() -> Iterator[Row]:
    """Attacks that use no gradient of the score, beside those that do."""
    for name, epsilon in (("six", 0.1), ("default", 0.25), ("hardened, 1 % rejected", 0.4)):
        recipe = "adversarial" if name.startswith("hardened") else "plain"
        own = right(50, recipe)
        kinds = {
            "with gradients": (*NAMES, "features", "towards"),
            "transfer": ("transfer",),
            "random squares on the score": ("squares",),
        }
        for kind, only in kinds.items():
            case = Case(name, epsilon, 1000 if kind != "with gradients" else 200, only=only)
            yield {**described(case), "attack": kind, **share(evasions(case, own).evaded)}
        target, (images, labels) = guard(name), attacked(50, recipe)
        row = {"guard": name, "norm": "linf", "epsilon": epsilon}
        hits = hop_skip_jump(target, images, labels, epsilon)
        yield {**row, "attack": "HopSkipJump on the verdict", **share(hits)}
        hits = rotated(target, images, labels)
        yield {**row, "epsilon": None, "attack": "rotation and shift", **share(hits)}


def hop_skip_jump(target: Target, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Whether HopSkipJump, which sees class and verdict, evades the guard within epsilon."""
    model = foolbox.PyTorchModel(Decisions(target, classes=10).eval(), (0, 1))
    accepted = ~(target.judge(images)[1] > 0)
    classes = predict(target.model, images)
    starts = torch.stack([images[accepted & (classes != label)][0] for label in labels])
    attack = foolbox.attacks.HopSkipJumpAttack(
        steps=32, max_gradient_eval_steps=1000, constraint="linf"
    )
    made, *_ = attack(model, images, Evaded(labels), epsilons=None, starting_points=starts)
    near: Tensor = (made - images).flatten(1).abs().amax(1) <= epsilon
    return near & target.evaded_by(made, labels)


def rotated(target: Target, images: Tensor, labels: Tensor) -> Tensor:
    """Whether a rotation by at most 15 degrees and a shift by 2 pixels evades the guard."""
    model = foolbox.PyTorchModel(Decisions(target, classes=10).eval(), (0, 1))
    attack = foolbox.attacks.SpatialAttack(max_rotation=15, max_translation=2)
    made, *_ = attack(model, images, Evaded(labels))
    return target.evaded_by(made, labels)


class Evaded(foolbox.criteria.Criterion):  # type: ignore[misc]
    """Another class than the true one and than the last, which stands for "flagged"."""

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.labels = labels

    def __repr__(self) -> str:
        return "Evaded()"

    def __call__(self, perturbed: object, outputs: object) -> Any:  # noqa: ANN401 - eagerpy's
        del perturbed
        seen, kind = eagerpy.astensor_(outputs)
        classes = seen.raw.argmax(1)
        wrong = (classes != self.labels) & (classes != seen.shape[1] - 1)
        return kind(eagerpy.astensor(wrong))


def masks() -> Iterator[Row]:
    """The paper's six, where the attacker knows the dropout masks, does not, or where none last.

    Fresh masks are judged on draws that no attack has seen, unknown ones on the detector's own.
    """
    fixed, (images, labels) = detector("six"), attacked(30)
    fresh = fixed.with_masks("fresh")
    targets = {
        "known": target_of(fixed),
        "unknown": target_of(fixed.with_masks(1)),
        "fresh": averaged(fresh),
    }
    for kind, target in targets.items():
        attacks = adaptive_attacks(target, EPSILON, classes=10, steps=100)
        own = {name: attacks[name] for name in ("selective", "weighted")}
        made = worst_case(target, own, images, labels).images
        judges = [target_of(fresh)] * DRAWS if kind == "fresh" else [target_of(fixed)]
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
        target = guard(name)
        found = evasions(Case(name, EPSILON, 200), right(50))
        evaded = torch.tensor(found.evaded.to_numpy())
        flagged = torch.zeros(len(images), dtype=torch.bool)
        for alpha in (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0):
            radius = alpha * EPSILON
            attack = PGD(
                radius,
                steps=100,
                step_size=radius / 10 or None,
                random_start=False,
                objective=partial(FalseAlarm, excess=target.excess),
            )
            _, excess = target.judge(attack(target.model, images, labels))
            # What alarms within a smaller ball alarms within this one, too.
            flagged |= excess > 0
            row = {"guard": name, "epsilon": EPSILON, "alpha": alpha, **share(evaded | flagged)}
            yield {**row, "flagged": float(flagged.double().mean())}


def hardened() -> Iterator[Row]:
    """Robust error with rejection of the hardened DigitNet, the worst over all attacks.

    An image that evades the guard that rejects 5 % evades the one that rejects 1 %, too. So only
    those that evaded the latter are attacked again.
    """
    images, labels = (part[:500] for part in load("mnist", "test"))
    mistakes = pd.Series(index=range(500), data=True)
    mistakes[[number for number in right(500, "adversarial") if number < 500]] = False
    budgets: tuple[tuple[NormName, float], ...] = (("linf", 0.3), ("linf", 0.4), ("l2", 3.0))
    for norm, epsilon in budgets:
        evaded = ~mistakes
        for rate, name in zip(RATES, ("1 %", "5 %"), strict=True):
            case = Case(f"hardened, {name} rejected", epsilon, 1000, 10, norm)
            again = evaded.index[evaded].tolist()
            evaded.loc[again] = evasions(case, again).evaded.to_numpy()
            classes, excess = guard(case.guard).judge(images)
            clean = (classes == labels).numpy(), ~(excess > 0).numpy()
            error = robust_error(*clean, evaded.to_numpy())
            yield {**described(case), "rejected": rate, **share(evaded), "robust error": error}


def threats() -> Iterator[Row]:
    """For how many digits each guard holds: against attackers who know the classifier only, against
    those who know the guard, and against any (proved).
    """
    for name in ("unguarded", "six", "default", "with sentinel", *HARDENED_GUARDS):
        own = right(100, "adversarial" if name.startswith("hardened") else "plain")
        target = guard(name)
        images, labels = (part[own] for part in load("mnist", "test"))
        grey = worst_case(target, grey_box(EPSILON), images, labels, restarts=2).rows.evaded
        case = Case(name, EPSILON, 200)
        known = evasions(case, own).evaded
        proved = certified(name, images, labels)
        yield {
            **described(case), "images": len(own),
            "holds against who knows the classifier": float(1 - grey.mean()),
            "holds against who knows the guard": float(1 - (known | grey).mean()),
            "proved": float(proved.mean()),
        }  # fmt: skip


def signs() -> Iterator[Row]:
    """Six signs that an attack has failed, for three attacks on each guard."""
    for name in ("unguarded", "six", "default", "with sentinel", *HARDENED_GUARDS):
        images, labels = attacked(20, "adversarial" if name.startswith("hardened") else "plain")
        target = guard(name)
        attacks = adaptive_attacks(target, EPSILON, classes=10, steps=200)
        for attack in ("selective", "weighted", "confident"):
            tried = attacks[attack]
            assert isinstance(tried, GradientAttack)
            found = indicators(target, tried, images, labels)
            row = {"guard": name, "attack": attack, "epsilon": EPSILON, "images": len(images)}
            yield {**row, **asdict(found), "failed": " ".join(found.failed)}


HARDENED_GUARDS = ("hardened, 1 % rejected", "hardened, default", "hardened, with sentinel")


def grey_box(epsilon: float) -> dict[str, Attack]:
    """Attacks on the classifier alone: one step, ten steps, and many steps up the log-odds."""
    return {
        "FGSM": FGSM(epsilon),
        "BIM": BIM(epsilon),
        "PGD": PGD(epsilon),
        "log-odds": PGD(epsilon, steps=100, objective=Joint),
    }


def certified(name: str, images: Tensor, labels: Tensor) -> np.ndarray:
    """For which images it is proved that no attack within epsilon succeeds."""
    if not name.endswith("with sentinel"):
        return np.zeros(len(images), dtype=bool)
    made = detector("with sentinel", "adversarial" if name.startswith("hardened") else "plain")
    assert made.sentinel_ is not None
    return made.sentinel_.certify(images, labels, epsilon=EPSILON)


def growth() -> Iterator[Row]:
    """Each attack alone on guards of the hardened DigitNet, by steps and restarts."""
    names = (*NAMES, "transfer", "features", "squares", "towards")
    for name in ("default", "with sentinel"):
        for attack in names:
            case = Case(f"hardened, {name}", EPSILON, 500, 3, only=(attack,))
            found = evasions(case, right(100, "adversarial"))
            steps, restart = found.steps[found.evaded], found.restart[found.evaded]
            first = {
                f"after {most}": int(((steps <= most) & (restart <= 0)).sum())
                for most in (5, 50, 500)
            }
            later = {f"restart {last + 1}": int((restart <= last).sum()) for last in (1, 2)}
            yield {**described(case), "attack": attack, **share(found.evaded), **first, **later}


def robust() -> Iterator[Row]:
    """Robust accuracy of the hardened DigitNet under the suite, and under PGD-100."""
    images, labels = attacked(500, "adversarial")
    case = Case("hardened, unguarded", EPSILON, 1000)
    found = evasions(case, right(500, "adversarial"))
    yield {**described(case), "attack": "suite", **share(~found.evaded)}
    target = guard(case.guard)
    attack = PGD(EPSILON, steps=100, step_size=0.01)
    found = worst_case(target, {"pgd": attack}, images, labels, restarts=20).rows
    own = {**described(case), "steps": 100, "restarts": 20}
    yield {**own, "attack": "PGD", **share(~found.evaded)}


TABLES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "falls": falls,
    "budget": budget,
    "distance": distance,
    "active": active,
    "queries": queries,
    "masks": masks,
    "alarms": alarms,
    "hardened": hardened,
    "threats": threats,
    "signs": signs,
    "growth": growth,
    "robust": robust,
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
    # Other processes import what they run by the name of its module.
    importlib.import_module("adaptive").main()
