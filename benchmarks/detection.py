"""How well metrics, families and their fusion find attacks that nobody taught; tables for the docs.

    python benchmarks/detection.py measure [SCENE ...]   every metric of every image of a scene
    python benchmarks/detection.py judge [SCENE ...]     tables out of that: docs/results/detection
    python benchmarks/detection.py costs SCENE           what labels, images and shuffling are worth

A threshold is set for 1 % false alarms (and for 5 %) on clean images and on each harmless change by
itself, among images that the classifier gets right, as ``Detector.calibrate`` does it: one half of
the calibration images is the combiner's reference, the other half sets the threshold. TPR is of
successful attacks. False alarms are of fresh images.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scenes import OUT, SCENES, Scene, successes
from torch import Tensor

from leery import RECOMMENDED_METRICS, Detector
from leery.attacks import CORRUPTIONS, HARMLESS
from leery.calibration import Calibration
from leery.classifiers import accuracy
from leery.combiners import ConformalCombiner, Facts
from leery.evaluation import share_interval
from leery.metrics import IMAGE, AuxiliaryAgreement, NearestNeighbours, make_metrics

RESULTS = Path("docs/results/detection")
RATES = (0.01, 0.05)

EVERY = [
    *RECOMMENDED_METRICS,
    "max_softmax",
    "energy",
    "log_margin",
    "squeezing_1bit",
    "squeezing_3bit",
    "squeezing_3bit_logits",
    "squeezing_median3",
    "squeezing_median3_logits",
    "nearest_neighbours",
    NearestNeighbours(layer=IMAGE),
    "mahalanobis",
    "relative_mahalanobis",
    "boundary_distance",
    "variance",
    "predictive_entropy",
    "mutual_information",
    "confidence",
    "unit_dispersion",
    "logit_feature_shift",
    "kernel_density",
    "kl_divergence",
    "median_residual",
    "residual_kurtosis",
]
BASELINE_METRICS = [
    *("max_softmax", "energy", "nearest_neighbours", "mahalanobis", "relative_mahalanobis")
]
FEW = [
    *dict.fromkeys([*RECOMMENDED_METRICS, *BASELINE_METRICS]),
    *("squeezing_1bit", "squeezing_median3_logits", "log_margin"),
    *("nearest_neighbours_image", "kernel_density", "median_residual"),
]
"""The metrics of strange classifiers, which need no dropout: the default, the baselines, others."""


def sets_of(scene: Scene, out: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Images and labels of every set: calibration and fresh images in all versions, attacks."""
    images, labels = scene.tested
    halves = {"calibration": slice(scene.calibrated), "fresh": slice(scene.calibrated, None)}
    found = {}
    for half, rows in halves.items():
        found[f"{half}|clean"] = images[rows], labels[rows]
        for name, mild in CORRUPTIONS.items():
            change = mild(1)
            found[f"{half}|{name}"] = change(images[rows], 0, scene.bounds), labels[rows]
    for cell in scene.cells:
        found[f"attack|{cell}"] = successes(scene, cell, out)
    return found


def accuracies(detector: Detector, scene: Scene) -> np.ndarray:
    """Of the classifier and of the auxiliary network, on the fresh images."""
    images, labels = (part[scene.calibrated :] for part in scene.tested)
    agreement = detector.metrics_["auxiliary_agreement"]
    assert isinstance(agreement, AuxiliaryAgreement)
    assert agreement.auxiliary is not None
    models = (scene.model, agreement.auxiliary)
    return np.array([accuracy(model, images, labels) for model in models])


def measure(name: str, out: Path) -> None:
    scene = SCENES[name](out)
    named = {metric.name: metric for metric in make_metrics(EVERY)}
    metrics = [named[few] for few in FEW] if name.startswith("strange") else EVERY
    detector = Detector(scene.model, metrics=metrics).fit(*scene.train)
    arrays: dict[str, np.ndarray] = {"names": np.array(detector.metrics)}
    for key, (images, labels) in sets_of(scene, out).items():
        table = detector.measure(images)
        arrays[f"{key}|values"] = table.values
        arrays[f"{key}|predicted"] = table.predicted
        arrays[f"{key}|labels"] = labels.numpy()
        print(name, key, len(table), flush=True)
    arrays["accuracies"] = accuracies(detector, scene)
    np.savez(out / f"{name}.npz", **arrays)


@dataclass(frozen=True)
class Measured:
    """The metrics of a scene's images, by set: values, predicted classes, labels.

    And the accuracies of the classifier and of the auxiliary network, on fresh images.
    """

    names: tuple[str, ...]
    sets: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    accuracies: Mapping[str, float]

    @classmethod
    def load(cls, name: str, out: Path) -> "Measured":
        held = np.load(out / f"{name}.npz")
        keys = {key.rsplit("|", 1)[0] for key in held.files if "|" in key}
        parts = ("values", "predicted", "labels")
        sets = {key: tuple(held[f"{key}|{part}"] for part in parts) for key in sorted(keys)}
        found = zip(("classifier", "auxiliary network"), held["accuracies"].tolist(), strict=True)
        return cls(tuple(held["names"].tolist()), sets, dict(found))  # type: ignore[arg-type]

    def right(self, key: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The values of some metrics, and predicted classes, of images classified right."""
        values, predicted, labels = self.sets[key]
        rows = predicted == labels
        return values[rows][:, [self.names.index(name) for name in names]], predicted[rows]

    def attack(self, cell: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        values, predicted, _ = self.sets[f"attack|{cell}"]
        return values[:, [self.names.index(name) for name in names]], predicted

    @property
    def cells(self) -> list[str]:
        return [key.removeprefix("attack|") for key in self.sets if key.startswith("attack|")]


def facts_of(names: Sequence[str]) -> list[Facts]:
    given = {metric.name: Facts.of(metric) for metric in make_metrics(EVERY)}
    return [given[name] for name in names]


@dataclass(frozen=True)
class Judge:
    """A combiner with its reference and threshold scores."""

    measured: Measured
    names: Sequence[str]
    combiner: ConformalCombiner
    kinds: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(
        cls,
        measured: Measured,
        names: Sequence[str],
        harmless: Sequence[str] = tuple(HARMLESS),
        seed: int = 0,
        rows: np.ndarray | None = None,
        *,
        labelled: bool = True,
    ) -> "Judge":
        """As ``Detector.calibrate`` divides the images: the halves are of source images.

        Args:
            measured: the metrics.
            names: of the metrics that are used.
            harmless: changes on which the rate is kept too.
            seed: of the halves.
            rows: the calibration images that are used; by default all.
            labelled: False to keep what the classifier gets wrong, as without labels.
        """
        count = len(measured.sets["calibration|clean"][1])
        chosen = np.arange(count) if rows is None else rows
        order = chosen[np.random.default_rng(seed).permutation(len(chosen))]
        parts = [np.zeros(count, dtype=bool) for _ in range(2)]
        for part, own in zip(parts, np.array_split(order, 2), strict=True):
            part[own] = True
        first, second = parts
        taught, held = [], {}
        for kind in ("clean", *harmless):
            values, predicted, labels = measured.sets[f"calibration|{kind}"]
            columns = [measured.names.index(name) for name in names]
            right = (predicted == labels) | (not labelled)
            taught.append((values[right & first][:, columns], predicted[right & first]))
            held[kind] = values[right & second][:, columns], predicted[right & second]
        combiner = ConformalCombiner(facts_of(names)).fit(
            np.concatenate([values for values, _ in taught]),
            np.concatenate([predicted for _, predicted in taught]),
        )
        return cls(measured, names, combiner, held)

    def scores(self, values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.combiner(
            torch.from_numpy(values), torch.from_numpy(predicted)
        ).numpy()
        return found

    def calibration(self, rate: float) -> Calibration:
        scores = [self.scores(*rows) for rows in self.kinds.values()]
        return Calibration(
            fpr=rate,
            promise="marginal",
            confidence=0.95,
            per_class=False,
            scores=np.concatenate(scores),
            predicted=np.concatenate([predicted for _, predicted in self.kinds.values()]),
            kinds=tuple(self.kinds),
            kind=np.repeat(np.arange(len(scores)), [len(part) for part in scores]),
        )

    def found(self, rate: float = 0.01) -> dict[str, tuple[int, int]]:
        """How many of each cell's attacks are flagged, of how many."""
        calibration = self.calibration(rate)
        hits = {}
        for cell in self.measured.cells:
            values, predicted = self.measured.attack(cell, self.names)
            flagged = calibration.flagged(self.scores(values, predicted), predicted)
            hits[cell] = int(flagged.sum()), len(flagged)
        return hits

    def false_alarms(self, rate: float = 0.01) -> dict[str, tuple[int, int]]:
        calibration = self.calibration(rate)
        hits = {}
        for kind in ("clean", *CORRUPTIONS):
            values, predicted = self.measured.right(f"fresh|{kind}", self.names)
            flagged = calibration.flagged(self.scores(values, predicted), predicted)
            hits[kind] = int(flagged.sum()), len(flagged)
        return hits


class Baseline(Judge):
    """One metric as its paper has it: no reference, no centring, all calibration images."""

    @classmethod
    def of_metric(cls, measured: Measured, name: str, harmless: Sequence[str]) -> "Baseline":
        kinds = {
            kind: measured.right(f"calibration|{kind}", [name]) for kind in ("clean", *harmless)
        }
        return cls(measured, [name], ConformalCombiner(facts_of([name])), kinds)

    def scores(self, values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        del predicted
        (fact,) = self.combiner.facts
        found: np.ndarray = values[:, 0] * (-1 if fact.direction == "smaller" else 1)
        return found


PAPERS = "the paper's six"

SETS: Mapping[str, Sequence[str]] = {
    "default": RECOMMENDED_METRICS,
    **{
        f"without {name}": [other for other in RECOMMENDED_METRICS if other != name]
        for name in RECOMMENDED_METRICS
    },
    "with maximum softmax": [*RECOMMENDED_METRICS, "max_softmax"],
    "with energy": [*RECOMMENDED_METRICS, "energy"],
    "with squeezing in probabilities": [*RECOMMENDED_METRICS, "squeezing_1bit"],
    "with squeezing to 3 bits": [
        *RECOMMENDED_METRICS,
        *("squeezing_3bit", "squeezing_3bit_logits"),
    ],
    "with 3 x 3 medians": [
        *RECOMMENDED_METRICS,
        *("squeezing_median3", "squeezing_median3_logits"),
    ],
    "with the margin": [*RECOMMENDED_METRICS, "log_margin"],
    "with distance": [*RECOMMENDED_METRICS, "nearest_neighbours", "mahalanobis"],
    "with distance in pixels": [*RECOMMENDED_METRICS, "nearest_neighbours_image"],
    "with boundary": [*RECOMMENDED_METRICS, "boundary_distance"],
    "with uncertainty": [
        *RECOMMENDED_METRICS,
        *("variance", "predictive_entropy", "mutual_information", "confidence"),
    ],
    "with closeness": [*RECOMMENDED_METRICS, "kernel_density", "kl_divergence"],
    "with dispersion": [*RECOMMENDED_METRICS, "unit_dispersion", "logit_feature_shift"],
    "with statistics": [*RECOMMENDED_METRICS, "median_residual", "residual_kurtosis"],
    PAPERS: [
        *("variance", "predictive_entropy", "mutual_information", "confidence"),
        *("kernel_density", "kl_divergence"),
    ],
}
"""Sets of metrics that are fused."""


def alone(measured: Measured) -> dict[str, Sequence[str]]:
    """Each measured metric alone, and each family of several that was measured."""
    families: dict[str, list[str]] = {}
    for fact in facts_of(measured.names):
        families.setdefault(fact.family, []).append(fact.name)
    single = {f"{name} alone": [name] for name in measured.names}
    several = {f"{family} alone": own for family, own in families.items() if len(own) > 1}
    return {**single, **several}


PROMISES: Mapping[str, Sequence[str]] = {"clean and harmless": tuple(HARMLESS), "clean": ()}
"""The harmless changes among which a threshold keeps its rate too."""


def judge(name: str, out: Path) -> pd.DataFrame:
    """TPR and false alarms of every set of metrics in every cell.

    The default and the baselines also with thresholds from clean images only.
    """
    measured = Measured.load(name, out)
    sets = {**SETS, **alone(measured)}
    known = {title: own for title, own in sets.items() if set(own) <= set(measured.names)}
    rows = []
    for promise, harmless in PROMISES.items():
        judges: dict[str, Judge] = {
            title: Judge.of(measured, own, harmless)
            for title, own in known.items()
            if harmless or title == "default"
        }
        for metric in BASELINE_METRICS:
            judges[f"baseline {metric}"] = Baseline.of_metric(measured, metric, harmless)
        for title, rate in itertools.product(judges, RATES):
            for what, counts in (
                ("found", judges[title].found(rate)),
                ("false alarms", judges[title].false_alarms(rate)),
            ):
                for cell, (hits, trials) in counts.items():
                    rows.append(_row(name, title, promise, rate, what, cell, hits, trials))
    fresh = len(measured.sets["fresh|clean"][1])
    for network, share in measured.accuracies.items():
        hits = round(share * fresh)
        rows.append(_row(name, network, "clean", 0, "accuracy", "clean", hits, fresh))
    return pd.DataFrame(rows)


def _row(
    scene: str,
    metrics: str,
    promise: str,
    rate: float,
    what: str,
    cell: str,
    hits: int,
    trials: int,
) -> dict[str, Any]:
    share = share_interval(hits, max(trials, 1))
    return {
        "scene": scene,
        "metrics": metrics,
        "promise": promise,
        "rate": rate,
        "what": what,
        "cell": cell,
        "share": share.estimate,
        "low": share.low,
        "high": share.high,
        "of": trials,
    }


def costs(name: str, out: Path, splits: int = 20) -> pd.DataFrame:
    """TPR and false alarms of the default at 5 %, by what it is calibrated with: means of splits.

    5 %, because 100 images, of which one half sets the threshold, support no lower rate. Not
    shuffled means the images that come first in MNIST's test set, which has two kinds of writers.
    """
    measured = Measured.load(name, out)
    generator = np.random.default_rng(0)
    count = len(measured.sets["calibration|clean"][1])
    place = torch.randperm(2 * 5000, generator=torch.Generator().manual_seed(2020)).numpy()
    original = place[5000 : 5000 + count]
    ways: dict[str, tuple[int, bool, bool]] = {
        "2,500 images with labels": (count, True, True),
        "1,000": (1000, True, True),
        "300": (300, True, True),
        "100": (100, True, True),
        "2,500 without labels": (count, False, True),
        "1,000, not shuffled": (1000, True, False),
    }
    rows = []
    for way, (size, labelled, shuffled) in ways.items():
        found, alarms = [], []
        for seed in range(splits):
            order = generator.permutation(count) if shuffled else np.argsort(original)
            judge = Judge.of(
                measured, RECOMMENDED_METRICS, seed=seed, rows=order[:size], labelled=labelled
            )
            shares = [hits / trials for hits, trials in judge.found(0.05).values()]
            hits, trials = judge.false_alarms(0.05)["clean"]
            found.append((min(shares), float(np.mean(shares))))
            alarms.append(hits / trials)
        worst, mean = np.mean(found, axis=0)
        rows.append(
            {
                "calibrated with": way,
                "worst cell": worst,
                "mean cell": mean,
                "false alarms": float(np.mean(alarms)),
                "false alarms, largest": float(np.max(alarms)),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "judge", "costs"))
    parser.add_argument("scenes", nargs="*", default=list(SCENES))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in given.scenes:
        given.results.mkdir(parents=True, exist_ok=True)
        if given.what == "measure":
            measure(name, given.out)
            continue
        if given.what == "costs":
            table = costs(name, given.out)
            table.round(4).to_csv(given.results / f"{name}-costs.csv", index=False)
            print(table.round(3).to_string(index=False))
            continue
        table = judge(name, given.out)
        table.round(4).to_csv(given.results / f"{name}.csv", index=False)
        print(summary(table))


def summary(table: pd.DataFrame) -> str:
    """The worst and mean cell of each set of metrics at 1 %, and the default's cells."""
    table = table[(table.promise == "clean and harmless") & (table.rate == 0.01)]
    found = table[table.what == "found"]
    by_set = found.groupby("metrics", sort=False).share.agg(["min", "mean"]).round(3)
    default = table[table.metrics == "default"]
    cells = default.set_index(["what", "cell"])[["share", "low", "high", "of"]].round(3)
    return f"{by_set.to_string()}\n\n{cells.to_string()}\n"


if __name__ == "__main__":
    main()
