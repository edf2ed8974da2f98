"""What choices of the kernel density cost: bandwidth, references, precision; on both datasets.

    python benchmarks/choices.py [--images 10000] [--out docs/results/choices]

The paper's regression is fitted on the first 3,000 test images and judged on the images from 6,000
on; those in between were looked at once, and are left out. All judged numbers are areas under the
ROC curve. Positives: adversarial versions of all images that the classifier gets right.
Negatives: those images and their noisy versions.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from leery.attacks import BIM, FGSM, PGD, gaussian_noise
from leery.classifiers import pretrained
from leery.combiners import Combiner, Facts, LogisticCombiner
from leery.data import load
from leery.mc_dropout import MCDropout
from leery.metrics import (
    CLOSENESS_METRICS,
    PAPER_METRICS,
    UNCERTAINTY_METRICS,
    ClassKL,
    KernelDensity,
    make_metrics,
    uncertainty,
)
from leery.models import extract_features

EPSILONS = {"mnist": (0.30, 0.12), "fashion-mnist": (0.03, 0.12)}
PAPER_BANDWIDTHS = {"mnist": 1.7, "fashion-mnist": 1.0}
FITTED, JUDGED_FROM = 3000, 6000
REFERENCES = (50, 200, 1000, 3000, None)


@dataclass
class Version:
    """Test images clean, noisy or attacked: what the metrics need of them."""

    doubt: np.ndarray
    features: Tensor
    predicted: Tensor


@dataclass
class Scene:
    """A dataset's classifier, its training features, and the versions of its test images."""

    dataset: str
    training: tuple[Tensor, Tensor]
    versions: dict[str, Version]
    fitted: np.ndarray
    judged: np.ndarray

    @classmethod
    def load(cls, dataset: str, count: int) -> "Scene":
        model = pretrained(dataset).model
        sampler = MCDropout(model, 50, layers=["hidden"])
        images, labels = load(dataset, "train")
        features, _ = extract_features(model, images, "hidden")
        test, truth = (part[:count] for part in load(dataset, "test"))
        right = sampler_classes(sampler, test) == truth
        place = np.flatnonzero(right.numpy())
        test, truth = test[right], truth[right]
        versions = {"clean": observe(sampler, test)}
        for epsilon in EPSILONS[dataset]:
            versions[f"noisy {epsilon:.2f}"] = observe(sampler, gaussian_noise(test, epsilon))
            for attack in (FGSM, BIM, PGD):
                name = f"{attack.__name__} {epsilon:.2f}"
                versions[name] = observe(sampler, attack(epsilon)(model, test, truth))
                print(dataset, name, flush=True)
        return cls(
            dataset,
            (features, labels),
            versions,
            np.flatnonzero(place < FITTED),
            np.flatnonzero(place >= JUDGED_FROM),
        )

    def conditions(self) -> Iterator[tuple[str, float, str, str]]:
        for epsilon in EPSILONS[self.dataset]:
            for attack in ("FGSM", "BIM", "PGD"):
                yield attack, epsilon, f"{attack} {epsilon:.2f}", f"noisy {epsilon:.2f}"


def sampler_classes(sampler: MCDropout, images: Tensor) -> Tensor:
    return extract_features(sampler.model, images, "hidden")[1].argmax(1)


def observe(sampler: MCDropout, images: Tensor) -> Version:
    doubt, features, predicted = [], [], []
    for seen in sampler.stream(images):
        columns = [getattr(uncertainty, name)(seen.probs) for name in UNCERTAINTY_METRICS]
        doubt.append(torch.stack(columns, 1))
        features.append(seen.layers["hidden"])
        predicted.append(seen.logits.argmax(1))
    return Version(torch.cat(doubt).numpy(), torch.cat(features), torch.cat(predicted))


def tables(scene: Scene, density: KernelDensity) -> dict[str, np.ndarray]:
    """The paper's six metrics of each version."""
    density.fit(*scene.training)
    divergence = ClassKL().fit(*scene.training)
    assert PAPER_METRICS == UNCERTAINTY_METRICS + CLOSENESS_METRICS
    return {
        name: np.column_stack(
            [
                seen.doubt,
                density.score(seen.features, seen.predicted).numpy(),
                divergence.score(seen.features, seen.predicted).numpy(),
            ]
        )
        for name, seen in scene.versions.items()
    }


def area(positive: np.ndarray, *negatives: np.ndarray) -> float:
    scores = np.concatenate([*negatives, positive])
    return float(roc_auc_score(np.arange(len(scores)) >= len(scores) - len(positive), scores))


FACTS = [Facts.of(metric) for metric in make_metrics(PAPER_METRICS)]


def scores(combiner: Combiner, values: np.ndarray) -> np.ndarray:
    found = combiner(torch.from_numpy(values), torch.zeros(len(values), dtype=torch.int64))
    return found.numpy()


def logistic(scene: Scene, six: dict[str, np.ndarray], adversarial: str, noisy: str) -> Combiner:
    rows = [six[name][scene.fitted] for name in ("clean", noisy, adversarial)]
    values = np.concatenate(rows)
    truth = np.arange(len(values)) >= len(values) - len(rows[-1])
    return LogisticCombiner(FACTS).fit(values, np.zeros(len(values), np.int64), adversarial=truth)


def judged_areas(scene: Scene, six: dict[str, np.ndarray]) -> Iterator[dict[str, object]]:
    """One row a condition: the area of the six by the paper's regression, and of the density."""
    for attack, epsilon, adversarial, noisy in scene.conditions():
        combiner = logistic(scene, six, adversarial, noisy)
        rows = [six[name][scene.judged] for name in (adversarial, "clean", noisy)]
        density = [-part[:, PAPER_METRICS.index("kernel_density")] for part in rows]
        yield {
            "dataset": scene.dataset,
            "attack": attack,
            "epsilon": epsilon,
            "logistic": area(*(scores(combiner, part) for part in rows)),
            "kernel_density": area(*density),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path("docs/results/choices"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found: list[dict[str, object]] = []
    for dataset in EPSILONS:
        scene = Scene.load(dataset, options.images)
        densities = {
            "paper's bandwidth": KernelDensity(PAPER_BANDWIDTHS[dataset]),
            "likelihood": KernelDensity("likelihood"),
            "likelihood-per-class": KernelDensity("likelihood-per-class"),
            "float16": KernelDensity(PAPER_BANDWIDTHS[dataset], precision="float16"),
        } | {
            f"{count} references a class": KernelDensity(
                PAPER_BANDWIDTHS[dataset], references=count
            )
            for count in REFERENCES
            if count is not None
        }
        for label, density in densities.items():
            rows = list(judged_areas(scene, tables(scene, density)))
            bandwidths = list(density.bandwidth_.values())
            found += [
                {
                    "setting": label,
                    "bandwidth_low": min(bandwidths),
                    "bandwidth_high": max(bandwidths),
                    **row,
                }
                for row in rows
            ]
            print(
                dataset,
                label,
                f"bandwidth {min(bandwidths):.2f} to {max(bandwidths):.2f}",
                flush=True,
            )
        table = pd.DataFrame(found)
        table.to_csv(options.out / "densities.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
