"""What the paper does on each dataset, and what a user may change about it."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from leery import __version__
from leery._checks import check_seed
from leery.attacks import BIM, FGSM, PGD, GradientAttack
from leery.data import data_sums, named
from leery.detector import CLOSENESS_METRICS, PAPER_METRICS, UNCERTAINTY_METRICS
from leery.errors import InputError

__all__ = ["METRIC_SETS", "STUDIES", "Condition", "StudyConfig"]

AttackName = Literal["FGSM", "BIM", "PGD"]

ATTACKS: Mapping[AttackName, type[GradientAttack]] = {"FGSM": FGSM, "BIM": BIM, "PGD": PGD}

METRIC_SETS: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in PAPER_METRICS},
    "uncertainty": UNCERTAINTY_METRICS,
    "closeness": CLOSENESS_METRICS,
    "all": PAPER_METRICS,
}
"""The columns of the paper's figures 9 and 10: each metric, the two groups, all six."""


@dataclass(frozen=True)
class Condition:
    """An attack at a strength.

    Attributes:
        attack: its name.
        epsilon: the radius of the L-infinity ball, in pixel units of [0, 1].
    """

    attack: AttackName
    epsilon: float

    @property
    def name(self) -> str:
        """What the condition is called in files."""
        return f"{self.attack}-{self.epsilon:.2f}"

    def make(self) -> GradientAttack:
        """The attack itself."""
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
    """A study as a user asked for it.

    Args:
        dataset: "mnist" or "fashion-mnist".
        limit: how many of the first test images to use; None is all.
        seed: of training, masks, random starts, noise and folds.
        retrain: train the classifier anew instead of using the shipped weights.
        passes: of Monte-Carlo dropout.
        data_dir: a folder with the data files, as for :func:`leery.data.load`.

    Raises:
        InputError: when a value is outside its range.
    """

    dataset: str
    limit: int | None = None
    seed: int = 0
    retrain: bool = False
    passes: int = 50
    data_dir: Path | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse what no study can have."""
        named(self.dataset)
        if self.limit is not None and self.limit < 1:
            message = f"expected a limit of at least 1 image, got {self.limit}; raise it"
            raise InputError(message)
        check_seed(self.seed)
        if self.passes < 1:
            message = f"expected at least 1 pass, got {self.passes}; pass a larger number"
            raise InputError(message)

    @property
    def bandwidth(self) -> float:
        """Of the kernel density."""
        return STUDIES[self.dataset].bandwidth

    @property
    def epsilons(self) -> tuple[float, ...]:
        """The strengths of the attacks and of the noise."""
        return STUDIES[self.dataset].epsilons

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Every attack at every strength, in the paper's order."""
        return tuple(Condition(attack, epsilon) for epsilon in self.epsilons for attack in ATTACKS)

    def identity(self) -> dict[str, Any]:
        """All that the results depend on; stages of another identity are not reused."""
        settings = asdict(self)
        del settings["data_dir"]
        return {
            **settings,
            "bandwidth": self.bandwidth,
            "conditions": [condition.name for condition in self.conditions],
            "data_sha256": data_sums(self.dataset),
            "code_sha256": _code_sum(),
            "leery": __version__,
            "torch": str(torch.__version__),
        }


@cache
def _code_sum() -> str:
    """SHA-256 over leery's own files, so that a changed program does its stages anew."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in (".py", ".safetensors", ".json"):
            digest.update(os.fsencode(path.relative_to(package)))
            digest.update(path.read_bytes())
    return digest.hexdigest()
