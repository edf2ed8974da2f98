"""Attacks of each dataset, and options of an arena."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leery._checks import check_count, check_seed
from leery.attacks import BIM, FGSM, PGD, AdaptedAttack, Attack
from leery.errors import InputError

__all__ = [
    "ARENAS",
    "EPSILONS",
    "RATES",
    "SLOW_IMAGES",
    "SLOW_PART",
    "TRAINING_ATTACKS",
    "ArenaConfig",
    "Cell",
]

RATES = (0.01, 0.05)
"""False-alarm rates at which detectors are compared."""

SLOW_IMAGES = 150
"""Maximum number of images for slow attacks."""

SLOW_PART = 50
"""Number of images that one part of a slow attack is run on."""


@dataclass(frozen=True)
class Cell:
    """An attack with a fixed strength.

    Attributes:
        attack: the attack.
        family: name of a group of similar attacks; for a detector that learned from one of them,
            the others do not count as unseen.
        seconds: approximate CPU time per MNIST image.
        slow: True if at most :data:`SLOW_IMAGES` images are attacked.
    """

    attack: Attack
    family: str
    seconds: float
    slow: bool = False


def _gradient(epsilons: Mapping[str, float]) -> dict[str, Cell]:
    """FGSM, BIM and PGD in L-infinity at each epsilon."""
    return {
        f"{name} {shown}": Cell(attack(epsilon), family, 0.01)
        for name, attack, family in (
            ("FGSM", FGSM, "single step"),
            ("BIM", BIM, "iterative"),
            ("PGD", PGD, "iterative"),
        )
        for shown, epsilon in epsilons.items()
    }


def _l2(*epsilons: float) -> dict[str, Cell]:
    """PGD in L2."""
    return {
        f"PGD-L2 {epsilon:g}": Cell(PGD(epsilon, norm="l2"), "iterative", 0.01)
        for epsilon in epsilons
    }


def _apgd(linf: Mapping[str, float], l2: Mapping[str, float]) -> dict[str, Cell]:
    """Auto-PGD in both norms."""
    attacks = {f"APGD {name}": AdaptedAttack("apgd", size) for name, size in linf.items()}
    attacks |= {f"APGD-L2 {name}": AdaptedAttack("apgd", size, "l2") for name, size in l2.items()}
    return {name: Cell(attack, "iterative", 0.05) for name, attack in attacks.items()}


def _others(square: str, epsilon: float) -> dict[str, Cell]:
    """Attacks that search for the smallest change, gradient-free, spatial and sparse attacks."""
    return {
        "DeepFool": Cell(AdaptedAttack("deepfool"), "smallest change", 0.03),
        "DDN": Cell(AdaptedAttack("ddn"), "smallest change", 0.1),
        "C&W 0": Cell(AdaptedAttack("cw", 0), "smallest change", 1.0, slow=True),
        "C&W 10": Cell(AdaptedAttack("cw", 10), "smallest change", 1.0, slow=True),
        "spatial": Cell(AdaptedAttack("spatial"), "spatial", 0.05),
        "sparse": Cell(AdaptedAttack("sparse"), "sparse", 0.5, slow=True),
        f"Square {square}": Cell(AdaptedAttack("square", epsilon), "no gradient", 0.5, slow=True),
        "HopSkipJump": Cell(AdaptedAttack("hopskipjump"), "smallest change", 2.0, slow=True),
    }


ARENAS: Mapping[str, Mapping[str, Cell]] = {
    "mnist": {
        **_gradient({"0.12": 0.12, "0.30": 0.30}),
        **_l2(2, 4),
        **_apgd({"0.22": 0.22, "0.66": 0.66}, {"4": 4, "8": 8}),
        **_others("0.30", 0.30),
    },
    "fashion-mnist": {
        **_gradient({"0.03": 0.03, "0.12": 0.12}),
        **_l2(1, 2),
        **_apgd({"0.06": 0.06, "0.22": 0.22}, {"2": 2, "4": 4}),
        **_others("0.12", 0.12),
    },
    "cifar-10": {
        **_gradient({"2/255": 2 / 255, "8/255": 8 / 255}),
        **_l2(0.5, 1),
        **_apgd({"4/255": 4 / 255, "8/255": 8 / 255}, {"0.5": 0.5, "1": 1}),
        **_others("8/255", 8 / 255),
    },
}
"""The attacks of each dataset by name."""

TRAINING_ATTACKS: Mapping[str, tuple[str, ...]] = {
    "mnist": ("FGSM 0.30", "PGD 0.30", "PGD-L2 4", "DeepFool", "DDN"),
    "fashion-mnist": ("FGSM 0.12", "PGD 0.12", "PGD-L2 2", "DeepFool", "DDN"),
    "cifar-10": ("FGSM 8/255", "PGD 8/255", "PGD-L2 1", "DeepFool", "DDN"),
}
"""Attacks from which supervised detectors learn; they belong to three families."""


EPSILONS: Mapping[str, float] = {"mnist": 0.3, "fashion-mnist": 0.05, "cifar-10": 2 / 255}
"""The L-infinity radius of attackers who know the detector, by dataset."""


@dataclass(frozen=True)
class ArenaConfig:
    """Options of an arena.

    Args:
        dataset: "mnist", "fashion-mnist" or "cifar-10".
        limit: maximum number of images per attack; at most 150 for slow attacks. False alarms are
            counted on at most five times as many images, up to 2,500.
        only: names of the detectors that take part, besides ``detectors``; None for all.
        detectors: further detectors as ``module:factory``, each a class or function that takes the
            classifier and returns a :class:`leery.observation.FittableScorer`.
        seed: random seed of attacks and changes of the images, and of the global generators while a
            detector is fitted.
        seeds: number of classifiers: ``classifier`` or the shipped one, and others trained with the
            seeds 1, 2 and so on.
        classifier: folder of a classifier written by ``leery train``; None for the shipped one.
        data_dir: a folder with the data files, as for :func:`leery.data.load`.

    Raises:
        InputError: when an option is outside its range.
    """

    dataset: str
    limit: int = 1000
    only: tuple[str, ...] | None = None
    detectors: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 1
    classifier: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        """Raise if an option is outside its range."""
        if self.dataset not in ARENAS:
            message = (
                f"expected one of {', '.join(ARENAS)} as dataset, got {self.dataset!r}; choose one"
            )
            raise InputError(message)
        check_count(self.limit, "a limit", least=20)
        check_count(self.seeds, "seeds")
        check_seed(self.seed)
        # Lists are accepted too; tuples make the options hashable, as the caches need.
        object.__setattr__(self, "detectors", tuple(self.detectors))
        if self.only is not None:
            object.__setattr__(self, "only", tuple(self.only))

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The attacks by name."""
        return ARENAS[self.dataset]

    @property
    def epsilon(self) -> float:
        """The L-infinity radius of attackers who know the detector."""
        return EPSILONS[self.dataset]

    @property
    def training_attacks(self) -> tuple[str, ...]:
        """Names of the attacks from which supervised detectors learn."""
        return TRAINING_ATTACKS[self.dataset]

    @property
    def trainings(self) -> Mapping[str, tuple[str, ...]]:
        """The sets of attacks on which supervised detectors are trained, by name.

        Each attack alone, all of them, and for each family all except those of that family.
        """
        families = dict.fromkeys(self.cells[name].family for name in self.training_attacks)
        return {
            **{name: (name,) for name in self.training_attacks},
            "all": self.training_attacks,
            **{f"without {family}": self._without(family) for family in families},
        }

    def unseen(self, cell: str) -> str:
        """Name of the set of training attacks that leaves out the family of this attack."""
        family = self.cells[cell].family
        return f"without {family}" if self._without(family) != self.training_attacks else "all"

    def _without(self, family: str) -> tuple[str, ...]:
        return tuple(name for name in self.training_attacks if self.cells[name].family != family)

    def count(self, cell: str) -> int:
        """The number of images that an attack is run on to judge detectors."""
        return min(self.limit, SLOW_IMAGES) if self.cells[cell].slow else self.limit
