"""What attackers achieve who know the detector, and whether their attacks work at all.

    python benchmarks/adaptive.py falls       attacks on the paper's six metrics, one by one
    python benchmarks/adaptive.py budget      evasions by epsilon, for each guard
    python benchmarks/adaptive.py distance    the smallest L2 changes that evade each guard
    python benchmarks/adaptive.py active      the active test and the inverted one
    python benchmarks/adaptive.py queries     attacks without a gradient beside those with one
    python benchmarks/adaptive.py masks       the paper's six with known, unknown and fresh masks
    python benchmarks/adaptive.py alarms      evasions, or false alarms that an attacker causes
    python benchmarks/adaptive.py hardened    robust error with rejection of the hardened DigitNet
    python benchmarks/adaptive.py beyond      the same at larger changes and in L2
    python benchmarks/adaptive.py threats     what holds against whom, for each guard
    python benchmarks/adaptive.py signs       six signs that an attack has failed, for each guard
    python benchmarks/adaptive.py growth      five guards, attack by attack
    python benchmarks/adaptive.py robust      suite against PGD-100 where nothing is guarded
    python benchmarks/adaptive.py distillation    a distilled DigitNet beside the plain one

An attack succeeds if the image is misclassified and not flagged. Tables are written to
docs/results/adaptive once they are complete. Guards are calibrated on the second half of the test
images, for 1 % false alarms unless the name says otherwise; the first images of the other half that
the classifier gets right are attacked, except those with a certificate. Results are kept in
runs/adaptive, in parts, until leery, this file or a library changes: a run that was stopped resumes
where it stopped.
"""

import argparse
import hashlib
import importlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
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
from leery._files import make_folder
from leery.attacks import BIM, FGSM, PGD, Attack, GradientAttack, NormName
from leery.attacks.adaptive import (
    ActiveTest,
    Decisions,
    FalseAlarm,
    Indicators,
    Joint,
    SmallestEvasion,
    Target,
    active_test,
    adaptive_attacks,
    indicators,
    worst_case,
)
from leery.certify import pretrained_sentinel
from leery.classifiers import HARDENED, load_classifier, pretrained, save_classifier, train
from leery.data import data_sums, load
from leery.errors import InputError
from leery.evaluation import robust_error, share_interval, target_of
from leery.models import predict, run_fast

RESULTS = Path("docs/results/adaptive")
KEPT = Path("runs/adaptive")
RATES = (0.01, 0.05)
EPSILON = 0.3
PART = 50
"""Largest number of images that are attacked at once, and whose results are kept."""

SEED = 0
"""Seed of the attacks; each restart has the next one."""

DRAWS = 20
"""Number of draws of dropout masks that are averaged, and that judge."""

NAMES = ("selective", "orthogonal", "weighted", "confident")
"""The attacks that are judged one by one; the fifth one is that towards every class."""

FEW = ("transfer", "features", "towards")
"""The attacks that take a fifth of the steps."""

LIBRARIES = ("leery", "torch", "numpy", "pandas", "scikit-learn", "foolbox")
VERSIONS = {name: version(name) for name in LIBRARIES}

PACKAGE = Path(leery.__file__).parent
PROGRAMS = ("cli", "arena", "study", "reporting")
"""Packages of leery on which no result depends."""

SOURCES = [Path(__file__)] + [
    path
    for path in sorted(PACKAGE.rglob("*"))
    if path.is_file()
    and path.suffix != ".pyc"
    and path.relative_to(PACKAGE).parts[0] not in PROGRAMS
]
CODE = hashlib.sha256(
    json.dumps(VERSIONS).encode() + b"".join(path.read_bytes() for path in SOURCES)
).hexdigest()[:12]
"""What results depend on besides the data: code, weights and versions of libraries."""

KEEP = joblib.Memory(KEPT / CODE, verbose=0).cache

Row = dict[str, object]
Labelled = tuple[Tensor, Tensor]


@cache
def classifier(recipe: str) -> nn.Module:
    """DigitNet, as it ships or, after distillation, trained here and kept in a folder."""
    if recipe != "distillation":
        return pretrained("mnist", recipe).model
    folder = KEPT / CODE / recipe
    if not folder.exists():
        made = train("mnist", recipe=HARDENED["mnist"][recipe], progress=True)
        save_classifier(made, make_folder(folder))
    return load_classifier(folder, "mnist", recipe).model


def right(count: int, recipe: str = "plain") -> list[int]:
    """Numbers of the first test images that DigitNet gets right."""
    images, labels = (part[:5000] for part in load("mnist", "test"))
    hits = predict(classifier(recipe), images) == labels
    return hits.nonzero().squeeze(1).tolist()[:count]


def attacked(count: int, recipe: str = "plain") -> Labelled:
    """The first test images that DigitNet gets right, and their classes."""
    images, labels = load("mnist", "test")
    chosen = right(count, recipe)
    return images[chosen], labels[chosen]


METRICS = {
    "six": leery.PAPER_METRICS,
    "default": leery.RECOMMENDED_METRICS,
    "substitute": leery.RECOMMENDED_METRICS,
    "confidence": ("max_softmax",),
}
"""Metrics of the detectors by name; the substitute is what an attacker fits to the classifier."""


@cache
def detector(name: str, recipe: str = "plain") -> Detector:
    """A detector of DigitNet, fitted on all training images; kept in a file once it is made."""
    model, path = classifier(recipe), KEPT / CODE / f"{name}-{recipe}.leery"
    if path.exists():
        return Detector.load(path, model)
    if name == "with sentinel":
        made = detector("default", recipe).with_sentinel(pretrained_sentinel("mnist", model))
    else:
        seed = 1 if name == "substitute" else 0
        made = Detector(model, metrics=METRICS[name], seed=seed).fit(*load("mnist", "train"))
    images, labels = load("mnist", "test")
    made.calibrate(images[5000:], labels[5000:], fpr=RATES[0])
    path.parent.mkdir(parents=True, exist_ok=True)
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
        # Each time an attack differentiates, it makes a new leaf of the graph, and views of it.
        variable: Any = images if images.is_leaf else images.grad_fn
        while not isinstance(variable, Tensor):
            known = hasattr(variable, "variable")
            variable = variable.variable if known else variable.next_functions[0][0]
        if RunOnce.last is None or RunOnce.last[0] is not variable:
            RunOnce.last = variable, self.model(images)
        return RunOnce.last[1]


def unguarded(recipe: str = "plain") -> Target:
    """DigitNet without a detector."""
    return Target.of_scorer(Confidence(classifier(recipe)), 1e6)


def by_confidence(rate: float) -> Target:
    """The hardened DigitNet, which rejects the images of which it is least confident."""
    model = RunOnce(classifier("adversarial")).eval()
    guard, (images, labels) = Confidence(model), load("mnist", "test")
    held, truth = images[5000:], labels[5000:]
    scores = guard.score(held)[(predict(model, held) == truth).numpy()]
    return Target.of_scorer(guard, float(np.quantile(scores, 1 - rate, method="higher")))


GUARDS: Mapping[str, Callable[[], Target]] = {
    "unguarded": unguarded,
    "six": lambda: target_of(detector("six")),
    "default": lambda: target_of(detector("default")),
    "with sentinel": lambda: target_of(detector("with sentinel")),
    "distilled, unguarded": lambda: unguarded("distillation"),
    "hardened, unguarded": lambda: unguarded("adversarial"),
    "hardened, 1 % rejected": lambda: by_confidence(0.01),
    "hardened, 5 % rejected": lambda: by_confidence(0.05),
    "hardened, confidence": lambda: target_of(detector("confidence", "adversarial")),
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
    made = attacks_on(target, case)
    own = {name: attack for name, attack in made.items() if name.startswith(case.only)}
    return worst_case(target, own, images, labels, restarts=case.restarts, seed=SEED).rows


def attacks_on(target: Target, case: Case) -> dict[str, Attack]:
    """The attacks of a case; features are matched with those of 300 clean images."""
    pool, _ = attacked(300, recipe_of(case.guard))
    return adaptive_attacks(
        target, case.epsilon, classes=10, steps=case.steps, norm=case.norm, pool=pool
    )


def evasions(case: Case, numbers: list[int]) -> pd.DataFrame:
    """What attacks achieve, a row per image; images with a certificate are not attacked."""
    guard(case.guard)
    rows = pd.DataFrame({"evaded": False, "by": "", "restart": -1, "steps": 0}, index=numbers)
    proved = certified(case, numbers)
    left = [number for number, sure in zip(numbers, proved, strict=True) if not sure]
    if left:
        rows.loc[left] = pd.concat(in_parts(evasions_of, case, left)).set_axis(left)
    return rows


def in_parts(
    function: Callable[[Any, list[int]], Any], argument: object, numbers: list[int]
) -> list[Any]:
    """A function of parts of the images, in as many processes as there are processors."""
    count = max(2, -(-len(numbers) // PART))
    parts = [part.tolist() for part in np.array_split(numbers, count) if len(part)]
    found: list[Any] = joblib.Parallel(n_jobs=-1)(
        joblib.delayed(function)(argument, part) for part in parts
    )
    return found


def certified(case: Case, numbers: list[int]) -> np.ndarray:
    """For which images it is proved that no attack within epsilon succeeds."""
    if case.norm != "linf" or not case.guard.endswith("with sentinel"):
        return np.zeros(len(numbers), dtype=bool)
    made = detector("with sentinel", recipe_of(case.guard))
    images, labels = (part[numbers] for part in load("mnist", "test"))
    assert made.sentinel_ is not None
    return made.sentinel_.certify(images, labels, epsilon=case.epsilon)


def recipe_of(name: str) -> str:
    """The classifier of a guard."""
    first = name.partition(",")[0]
    return {"hardened": "adversarial", "distilled": "distillation"}.get(first, "plain")


def share(hits: Tensor | pd.Series) -> Row:
    """A share with its 95 % confidence interval."""
    found = share_interval(int(hits.sum()), len(hits))
    return {"images": len(hits), "share": found.estimate, "low": found.low, "high": found.high}


def falls() -> Iterator[Row]:
    """Each attack alone on the paper's six metrics, and two on the default, with larger changes."""
    tried = [("six", EPSILON, name) for name in (*NAMES, "towards")]
    tried += [("default", 0.5, name) for name in ("selective", "weighted")]
    for guarded, epsilon, name in tried:
        case = Case(guarded, epsilon, 1000, only=(name,))
        yield grown(case, evasions(case, right(300)))


def grown(case: Case, rows: pd.DataFrame) -> Row:
    """What one attack achieved after a hundredth, a tenth and all of its steps, and restarts."""
    (attack,) = case.only
    own = case.steps // 5 if attack in FEW else case.steps
    ladder = {"a hundredth": own / 100, "a tenth": own / 10, "all": own}
    early = rows.evaded & (rows.restart <= 0)
    first = {
        f"after {part}": int((early & (rows.steps <= most)).sum()) for part, most in ladder.items()
    }
    later = {
        f"restart {last + 1}": int((rows.evaded & (rows.restart <= last)).sum())
        for last in range(1, case.restarts)
    }
    return {
        **described(case),
        "steps": own,
        "attack": attack,
        **share(rows.evaded),
        **first,
        **later,
    }


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
    for name in ("unguarded", "six", "default", "with sentinel"):
        guard(name)
        found = pd.concat(in_parts(distances_of, name, right(50)))
        row = {"guard": name, "steps": 500, "median L2": float(found.distance.median())}
        yield {**row, **share(found.distance < np.inf)}


@KEEP  # type: ignore[untyped-decorator]
def distances_of(name: str, numbers: list[int]) -> pd.DataFrame:
    """The smallest L2 changes found that evade a guard; infinite where there are none."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    target = guard(name)
    excess = None if name == "unguarded" else target.excess
    made = SmallestEvasion(excess, steps=500)(target.model, images, labels)
    hits = target.evaded_by(made, labels)
    lengths = (made - images).flatten(1).norm(dim=1)
    return pd.DataFrame({"distance": torch.where(hits, lengths, torch.inf).numpy()})


def active() -> Iterator[Row]:
    """The active test of each attack, plain and inverted, on guards of the plain DigitNet.

    Points are planted at a radius at which the guard accepts such noise. Attacks have three runs.
    """
    for name, epsilon, count in (
        ("six", 0.3, 128),
        ("default", 0.1, 64),
        ("with sentinel", 0.1, 64),
    ):
        guard(name)
        for attack in (*NAMES, "towards +1"):
            for inverted in (False, True):
                trial = Trial(name, attack, epsilon, inverted)
                own = right(2 * count if inverted else count)
                parts = pd.concat(in_parts(planted, trial, own))
                counts = {name: int(parts[name].sum()) for name in ("planted", "found")}
                yield {
                    **asdict(trial), **counts,
                    "by chance": int(parts["by chance"].sum()) if attack == NAMES[0] else None,
                }  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """An active test of an attack on a guard."""

    guard: str
    attack: str
    epsilon: float
    inverted: bool


@KEEP  # type: ignore[untyped-decorator]
def planted(trial: Trial, numbers: list[int]) -> pd.DataFrame:
    """Numbers of planted points, and of those found by an attack and by random points."""
    torch.set_num_threads(1)
    images = load("mnist", "test")[0][numbers]

    def attack(target: Target) -> Attack:
        one = adaptive_attacks(target, trial.epsilon, classes=2, steps=500)[trial.attack]
        assert isinstance(one, GradientAttack)
        return partial(in_runs, target, one)

    try:
        found = active_test(
            guard(trial.guard),
            attack,
            images,
            epsilon=trial.epsilon,
            inverted=trial.inverted,
            random_points=50 if trial.attack == NAMES[0] else 1,
        )
    except InputError as error:
        if "got none within" not in str(error):
            raise
        found = ActiveTest(0, 0.0, 0.0)
    counts = {
        "planted": found.planted,
        "found": round(found.found * found.planted),
        "by chance": round(found.by_chance * found.planted),
    }
    return pd.DataFrame([counts])


def in_runs(
    target: Target, attack: GradientAttack, model: nn.Module, images: Tensor, labels: Tensor, *,
    seed: int = 0,
) -> Tensor:  # fmt: skip
    """What an attack achieves on all images at once in up to three runs, as in other tables."""
    made, done = images.clone(), torch.zeros(len(images), dtype=torch.bool)
    for run in range(3):
        own = replace(attack, random_start=run > 0)
        found = own(model, images, labels, seed=seed + run)
        better = target.evaded_by(found, labels) & ~done
        made[better], done = found[better], done | better
        if done.all():
            break
    return made


def queries() -> Iterator[Row]:
    """Attacks that use no gradient of the score, beside those that do."""
    for name, epsilon in (("six", 0.1), ("default", EPSILON), ("hardened, 1 % rejected", 0.4)):
        own = right(50, recipe_of(name))
        kinds = {
            "with gradients": (*NAMES, "features", "towards"),
            "transfer": ("transfer",),
            "random squares on the score": ("squares",),
        }
        for kind, only in kinds.items():
            case = Case(name, epsilon, 1000 if kind != "with gradients" else 200, only=only)
            steps = 200 if kind == "transfer" else case.steps
            found = evasions(case, own).evaded
            yield {**described(case), "steps": steps, "attack": kind, **share(found)}
        blind = {"HopSkipJump on the verdict": hop_skip_jump, "rotation and shift": rotated}
        if name == "default":
            blind["on a detector of one's own"] = from_substitute
            detector("substitute")
        for kind, attack in blind.items():
            case = Case(name, epsilon, 0)
            found = pd.concat(in_parts(attack, case, own))
            within = None if attack is rotated else epsilon
            yield {**described(case), "epsilon": within, "attack": kind, **share(found.evaded)}


def tried(case: Case, numbers: list[int]) -> tuple[Target, Tensor, Tensor]:
    """The guard of a case, test images of these numbers and their classes."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    return guard(case.guard), images, labels


def counted(target: Target, made: Tensor, labels: Tensor) -> pd.DataFrame:
    """Which images evade a guard."""
    return pd.DataFrame({"evaded": target.evaded_by(made, labels).numpy()})


@KEEP  # type: ignore[untyped-decorator]
def from_substitute(case: Case, numbers: list[int]) -> pd.DataFrame:
    """Which images evade the default that were made for another one, fitted to the same images."""
    target, images, labels = tried(case, numbers)
    known = target_of(detector("substitute"))
    attacks = attacks_on(known, replace(case, steps=200))
    hits = torch.zeros(len(images), dtype=torch.bool)
    for attack in attacks.values():
        # The attacker sees the verdicts of neither guard on the way, only the last images count.
        hits |= target.evaded_by(attack(known.model, images, labels, seed=SEED), labels)
    return pd.DataFrame({"evaded": hits.numpy()})


@KEEP  # type: ignore[untyped-decorator]
def hop_skip_jump(case: Case, numbers: list[int]) -> pd.DataFrame:
    """Which images HopSkipJump, which sees class and verdict, makes evade a guard."""
    target, images, labels = tried(case, numbers)
    model = foolbox.PyTorchModel(Decisions(target, classes=10).eval(), (0, 1))
    others, _ = attacked(50, recipe_of(case.guard))
    accepted, classes = ~(target.judge(others)[1] > 0), predict(target.model, others)
    starts = torch.stack([others[accepted & (classes != label)][0] for label in labels])
    attack = foolbox.attacks.HopSkipJumpAttack(
        steps=32, max_gradient_eval_steps=1000, constraint="linf"
    )
    made, *_ = attack(model, images, Evaded(labels), epsilons=None, starting_points=starts)
    near = (made - images).flatten(1).abs().amax(1) <= case.epsilon
    return counted(target, torch.where(near.view(-1, 1, 1, 1), made, images), labels)


@KEEP  # type: ignore[untyped-decorator]
def rotated(case: Case, numbers: list[int]) -> pd.DataFrame:
    """Which images a rotation by at most 15 degrees and a shift by 2 pixels make evade a guard."""
    target, images, labels = tried(case, numbers)
    model = foolbox.PyTorchModel(Decisions(target, classes=10).eval(), (0, 1))
    attack = foolbox.attacks.SpatialAttack(max_rotation=15, max_translation=2)
    made, *_ = attack(model, images, Evaded(labels))
    return counted(target, made, labels)


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
    detector("six")
    for kind in ("known", "unknown", "fresh"):
        found = pd.concat(in_parts(masked, kind, right(100)))
        # The draws of one image are not independent: they count as one image.
        mean = share_interval(round(found.evaded.sum()), len(found))
        yield {
            "guard": "six", "masks": kind, "epsilon": 0.1, "images": len(found),
            "draws": DRAWS if kind == "fresh" else 1,
            "evaded": float(found.evaded.mean()), "low": mean.low, "high": mean.high,
        }  # fmt: skip


@KEEP  # type: ignore[untyped-decorator]
def masked(kind: str, numbers: list[int]) -> pd.DataFrame:
    """For each image, the fraction of the draws in which an attack on the six evades them."""
    torch.set_num_threads(1)
    fixed, (images, labels) = detector("six"), (part[numbers] for part in load("mnist", "test"))
    fresh = fixed.with_masks("fresh")
    targets = {
        "known": lambda: target_of(fixed),
        "unknown": lambda: target_of(fixed.with_masks(1)),
        "fresh": lambda: averaged(fresh),
    }
    target = targets[kind]()
    attacks = adaptive_attacks(target, 0.1, classes=10, steps=100)
    own = {name: attacks[name] for name in ("selective", "weighted")}
    made, lowest = images, torch.full((len(images),), torch.inf, dtype=torch.float64)
    # To the end, because the first image that evades the attacker's own masks does so barely.
    for attack in own.values():
        tried = attack(target.model, images, labels, seed=SEED)
        classes, excess = target.judge(tried)
        lower = (classes != labels) & (excess < lowest)
        made = torch.where(lower.view(-1, 1, 1, 1), tried, made)
        lowest = torch.where(lower, excess, lowest)
    judges = [target_of(fresh)] * DRAWS if kind == "fresh" else [target_of(fixed)]
    hits = torch.stack([judge.evaded_by(made, labels) for judge in judges]).double()
    return pd.DataFrame({"evaded": hits.mean(0).numpy()})


def averaged(fresh: Detector) -> Target:
    """A detector with fresh masks: excess and verdict are means over many draws."""
    one = target_of(fresh)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        found = [one.judge(images) for _ in range(DRAWS)]
        return found[0][0], torch.stack([excess for _, excess in found]).mean(0)

    def excess(images: Tensor) -> Tensor:
        return torch.stack([one.excess(images) for _ in range(DRAWS)]).mean(0)

    return Target(fresh.model, excess, judge)


ALPHAS = (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)
"""Radii of attackers who cause false alarms, as fractions of epsilon."""


def alarms() -> Iterator[Row]:
    """R(alpha): evaded within epsilon, or flagged within alpha epsilon, by an attacker's choice.

    Source:
        Chen et al. (2023), stratified rejection.
    """
    for name in ("six", "default", "with sentinel", "hardened, confidence"):
        own = right(50, recipe_of(name))
        evaded = evasions(Case(name, EPSILON, 200), own).evaded.to_numpy()
        flagged = pd.concat(in_parts(alarms_of, name, own)).to_numpy()
        for column, alpha in enumerate(ALPHAS):
            now = flagged[:, column]
            row = {
                "guard": name,
                "epsilon": EPSILON,
                "alpha": alpha,
                **share(pd.Series(evaded | now)),
            }
            yield {**row, "flagged": float(now.mean())}


@KEEP  # type: ignore[untyped-decorator]
def alarms_of(name: str, numbers: list[int]) -> pd.DataFrame:
    """Whether each image can be made to be flagged within each alpha times epsilon."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    target, found = guard(name), torch.zeros(len(images), dtype=torch.bool)
    columns = {}
    for alpha in ALPHAS:
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
        found = found | (excess > 0)
        columns[alpha] = found.numpy()
    return pd.DataFrame(columns)


def hardened() -> Iterator[Row]:
    """Robust error with rejection of the hardened DigitNet, the worst over all attacks."""
    yield from rejecting("linf", EPSILON, restarts=10)


def beyond() -> Iterator[Row]:
    """The same for changes that it was not trained on: a larger radius, and L2."""
    yield from rejecting("linf", 0.4, restarts=3)
    yield from rejecting("l2", 3.0, restarts=3)


def rejecting(norm: NormName, epsilon: float, *, restarts: int) -> Iterator[Row]:
    """Robust error of the guards that reject 1 % and 5 %.

    An image that evades the guard that rejects 5 % evades the one that rejects 1 %, too. So only
    clean images that became evasions of the latter are attacked again: attacks on the stricter
    guard might find others, which they missed before.
    """
    images, labels = (part[:500] for part in load("mnist", "test"))
    mistakes = pd.Series(index=range(500), data=True)
    mistakes[[number for number in right(500, "adversarial") if number < 500]] = False
    evaded = ~mistakes
    for rate, name in zip(RATES, ("1 %", "5 %"), strict=True):
        case = Case(f"hardened, {name} rejected", epsilon, 1000, restarts, norm)
        again = evaded.index[evaded].tolist()
        evaded.loc[again] = evasions(case, again).evaded.to_numpy()
        classes, excess = guard(case.guard).judge(images)
        clean = (classes == labels).numpy(), ~(excess > 0).numpy()
        error = robust_error(*clean, evaded.to_numpy())
        row = {**described(case), "rejected": rate, "robust error": error}
        yield {**row, **share(evaded[~mistakes])}


GROWN = (
    "default", "with sentinel", "hardened, confidence", "hardened, default",
    "hardened, with sentinel",
)  # fmt: skip
"""The guards on which each attack is tried alone."""


def threats() -> Iterator[Row]:
    """For how many digits each guard holds: against attackers who know the classifier only, against
    those who know the guard, and against any (proved).
    """
    for name in ("unguarded", "six", *GROWN):
        guard(name)
        more = right(500, recipe_of(name))
        grey = pd.concat(in_parts(grey_of, name, more)).evaded.to_numpy()
        own = more[:100]
        case = Case(name, EPSILON, 500, 3)
        known = ~grey[:100]
        for attack in ALONE if name in GROWN else ("",):
            known &= ~evasions(replace(case, only=(attack,)), own).evaded.to_numpy()
        proved = certified(case, own)
        yield {
            **described(case),
            **{f"classifier {key}": value for key, value in share(pd.Series(~grey)).items()},
            **{f"guard {key}": value for key, value in share(pd.Series(known)).items()},
            **{f"proved {key}": value for key, value in share(pd.Series(proved)).items()},
        }


@KEEP  # type: ignore[untyped-decorator]
def grey_of(name: str, numbers: list[int]) -> pd.DataFrame:
    """What attackers achieve who know the classifier only."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    return worst_case(guard(name), grey_box(EPSILON), images, labels, restarts=2, seed=SEED).rows


def signs() -> Iterator[Row]:
    """Six signs that an attack has failed, for three attacks on each guard."""
    names = ("unguarded", "six", *GROWN)
    pairs = [(name, attack) for name in names for attack in ("selective", "weighted", "confident")]
    for name in names:
        guard(name)
    tasks = [
        joblib.delayed(signs_of)(name, attack, right(20, recipe_of(name))) for name, attack in pairs
    ]
    for (name, attack), found in zip(pairs, joblib.Parallel(n_jobs=-1)(tasks), strict=True):
        row = {"guard": name, "attack": attack, "epsilon": EPSILON, "images": 20}
        yield {**row, **asdict(found), "failed": " ".join(found.failed)}


@KEEP  # type: ignore[untyped-decorator]
def signs_of(name: str, attack: str, numbers: list[int]) -> Indicators:
    """Signs that an attack on a guard has failed."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    own = adaptive_attacks(guard(name), EPSILON, classes=10, steps=200)[attack]
    assert isinstance(own, GradientAttack)
    return indicators(guard(name), own, images, labels, seed=SEED)


def grey_box(epsilon: float) -> dict[str, Attack]:
    """Attacks on the classifier alone: one step, ten steps, and many steps up the log-odds."""
    return {
        "FGSM": FGSM(epsilon),
        "BIM": BIM(epsilon),
        "PGD": PGD(epsilon),
        "log-odds": PGD(epsilon, steps=100, objective=Joint),
    }


ALONE = (*NAMES, "transfer", "features", "squares", "towards")
"""The attacks that are tried alone."""


def growth() -> Iterator[Row]:
    """Each attack alone on guards, by steps and restarts."""
    for name in GROWN:
        for attack in ALONE:
            case = Case(name, EPSILON, 500, 3, only=(attack,))
            yield grown(case, evasions(case, right(100, recipe_of(name))))


def distillation() -> Iterator[Row]:
    """Defensive distillation withstands attacks on the cross-entropy, and no others."""
    for epsilon in (0.1, 0.2, 0.3):
        for name in ("unguarded", "distilled, unguarded"):
            own, case = right(100, recipe_of(name)), Case(name, epsilon, 200)
            for attack in ("FGSM", "PGD"):
                found = pd.concat(in_parts(plain_of, replace(case, only=(attack,)), own)).evaded
                steps = {"FGSM": 1, "PGD": 40}[attack]
                yield {**described(case), "steps": steps, "attack": attack, **share(found)}
            yield {**described(case), "attack": "suite", **share(evasions(case, own).evaded)}


@KEEP  # type: ignore[untyped-decorator]
def plain_of(case: Case, numbers: list[int]) -> pd.DataFrame:
    """What a plain attack on the cross-entropy achieves."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    attack = grey_box(case.epsilon)[case.only[0]]
    return worst_case(guard(case.guard), {"": attack}, images, labels, seed=SEED).rows


def robust() -> Iterator[Row]:
    """Robust accuracy of the hardened DigitNet under the suite, and under PGD-100."""
    case = Case("hardened, unguarded", EPSILON, 1000)
    found = evasions(case, right(500, "adversarial"))
    yield {**described(case), "attack": "suite", **share(~found.evaded)}
    found = pd.concat(in_parts(pgd_of, case.guard, right(500, "adversarial")))
    own = {**described(case), "steps": 100, "restarts": 20}
    yield {**own, "attack": "PGD", **share(~found.evaded)}


@KEEP  # type: ignore[untyped-decorator]
def pgd_of(name: str, numbers: list[int]) -> pd.DataFrame:
    """What PGD with 100 steps and 20 runs achieves on a guard."""
    torch.set_num_threads(1)
    images, labels = (part[numbers] for part in load("mnist", "test"))
    attack = PGD(EPSILON, steps=100, step_size=0.01)
    return worst_case(guard(name), {"PGD": attack}, images, labels, restarts=20, seed=SEED).rows


TABLES: Mapping[str, Callable[[], Iterator[Row]]] = {
    "falls": falls,
    "budget": budget,
    "distance": distance,
    "active": active,
    "queries": queries,
    "masks": masks,
    "alarms": alarms,
    "hardened": hardened,
    "beyond": beyond,
    "threats": threats,
    "signs": signs,
    "growth": growth,
    "robust": robust,
    "distillation": distillation,
}


def write(table: str, rows: list[Row]) -> None:
    """Write a table and what it was computed with."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS / f"{table}.csv", index=False, float_format="%.6g")
    path = RESULTS / "manifest.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[table] = {
        "again": f"python benchmarks/adaptive.py {table}",
        "data_sha256": data_sums("mnist"),
        "code": CODE,
        "seed": SEED,
        "versions": VERSIONS,
        "processor": platform.processor() or platform.machine(),
    }
    path.write_text(json.dumps(known, indent=2) + "\n")


def main() -> None:
    """Write the tables that the command line names."""
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
