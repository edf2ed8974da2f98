"""Settings of the paper for each dataset, and options of a study."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from leery._checks import check_seed
from leery.attacks import BIM, FGSM, PGD, GradientAttack
from leery.data import data_sums
from leery.errors import InputError
from leery.evaluation import FOLDS
from leery.metrics import CLOSENESS_METRICS, PAPER_METRICS, UNCERTAINTY_METRICS
from leery.tasks import identity_of

__all__ = [
    "ATTACKS",
    "METRIC_SETS",
    "PAPER_SETS",
    "STUDIED_METRICS",
    "STUDIES",
    "SUCCESS_EPSILONS",
    "AttackName",
    "Condition",
    "StudyConfig",
]

AttackName = Literal["FGSM", "BIM", "PGD"]

ATTACKS: Mapping[AttackName, type[GradientAttack]] = {"FGSM": FGSM, "BIM": BIM, "PGD": PGD}

STUDIED_METRICS = (*PAPER_METRICS, "kl_divergence_sum")
"""Metrics that are measured: the paper's six, and the other reading of equations 10-12."""

PAPER_SETS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in PAPER_METRICS},
    "uncertainty": UNCERTAINTY_METRICS,
    "closeness": CLOSENESS_METRICS,
    "all": PAPER_METRICS,
}
"""The columns of the paper's figures 9 and 10: each metric, the two groups, all six."""

METRIC_SETS: Mapping[str, tuple[str, ...]] = {
    **PAPER_SETS,
    "kl_divergence_sum": ("kl_divergence_sum",),
    "closeness_sum": ("kernel_density", "kl_divergence_sum"),
    "all_sum": (*UNCERTAINTY_METRICS, "kernel_density", "kl_divergence_sum"),
}
""":data:`PAPER_SETS`, and the sets with the other reading of the KL divergence."""

SUCCESS_EPSILONS = (
    *(0.0, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10),
    *(0.12, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50),
)
"""Attack strengths of figure 2, denser where fashion articles change their label."""

TRACE_STEPS = 30
"""Number of equal steps of figures 4 to 7, from 0 to the dataset's larger studied strength."""


@dataclass(frozen=True)
class Condition:
    """An attack at a strength.

    Attributes:
        attack: name of the attack.
        epsilon: the radius of the L-infinity ball, in pixel units of [0, 1].
    """

    attack: AttackName
    epsilon: float

    @property
    def name(self) -> str:
        """Name of the condition in files."""
        return f"{self.attack}-{self.epsilon:.2f}"

    def make(self) -> GradientAttack:
        """Make the attack."""
        return ATTACKS[self.attack](self.epsilon)


@dataclass(frozen=True)
class _Paper:
    """The settings of the paper that differ between its datasets."""

    epsilons: tuple[float, ...]
    bandwidth: float


STUDIES: Mapping[str, _Paper] = {
    "mnist": _Paper(epsilons=(0.30, 0.12), bandwidth=1.70),
    "fashion-mnist": _Paper(epsilons=(0.03, 0.12), bandwidth=1.00),
}
"""The paper's settings by dataset: section 5.3 and figures 9 and 10."""


@dataclass(frozen=True)
class StudyConfig:
    """Options of a study.

    Args:
        dataset: "mnist" or "fashion-mnist".
        limit: number of test images used, from the first on; None for all.
        seed: random seed of masks, random starts, noise, folds and, if retrained, training.
        retrain: train the classifier anew instead of using the shipped weights.
        passes: number of Monte-Carlo dropout passes.
        seeds: number of repetitions of the study, each with a newly trained classifier, at
            ``seed``, ``seed + 1`` and so on; None for a single study.
        data_dir: a folder with the data files, as for :func:`leery.data.load`.

    Raises:
        InputError: when an option is outside its range.
    """

    dataset: str
    limit: int | None = None
    seed: int = 0
    retrain: bool = False
    passes: int = 50
    seeds: int | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        """Raise if an option is outside its range."""
        if self.dataset not in STUDIES:
            message = (
                f"expected one of {', '.join(STUDIES)}, the datasets of the paper, got "
                f"{self.dataset!r}; choose one"
            )
            raise InputError(message)
        if self.limit is not None and self.limit < FOLDS:
            message = (
                f"expected a limit of at least {FOLDS} images, one for each fold, got "
                f"{self.limit}; raise it"
            )
            raise InputError(message)
        check_seed(self.seed)
        if self.passes < 1:
            message = f"expected at least 1 pass, got {self.passes}; pass a larger number"
            raise InputError(message)
        if self.seeds is not None and self.seeds < 1:
            message = f"expected at least 1 seed, got {self.seeds}; pass a larger number"
            raise InputError(message)

    @property
    def runs(self) -> tuple["StudyConfig", ...]:
        """The single-classifier studies that this study consists of."""
        if self.seeds is None:
            return (self,)
        return tuple(
            replace(self, seed=self.seed + place, seeds=None, retrain=True)
            for place in range(self.seeds)
        )

    @property
    def bandwidth(self) -> float:
        """Bandwidth of the kernel density."""
        return STUDIES[self.dataset].bandwidth

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Strengths of the attacks and of the noise."""
        return STUDIES[self.dataset].epsilons

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Every attack at every strength, in the paper's order."""
        return tuple(Condition(attack, epsilon) for epsilon in self.epsilons for attack in ATTACKS)

    @property
    def trace_epsilons(self) -> tuple[float, ...]:
        """Attack strengths of figures 4 to 7, from 0 upwards."""
        step = max(self.epsilons) / TRACE_STEPS
        return tuple(round(step * place, 6) for place in range(TRACE_STEPS + 1))

    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on; stages of another identity are not reused."""
        settings = asdict(self)
        del settings["data_dir"], settings["seeds"]
        return {
            **settings,
            "bandwidth": self.bandwidth,
            "conditions": [condition.name for condition in self.conditions],
            "data_sha256": data_sums(self.dataset),
            "code_sha256": _code_sum(),
        }


@cache
def _code_sum() -> str:
    """A hash of the code of the stages, of the shipped weights, and of the computing libraries.

    Code that runs after the stages is not included.
    """
    weights = files("leery.classifiers") / "weights"
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in weights.iterdir()}
    stages = ("_stages", "_sweeps", "_as_printed", "_pictures")
    return identity_of(sums, [f"leery.study.{name}" for name in stages])
