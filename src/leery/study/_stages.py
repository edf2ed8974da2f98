"""The work of the study, cut into tasks that worker processes do and leave as files.

A task is a plain function of a :class:`Desk` and what it is about; it writes one file, whole or
not at all. Whether it is done is whether that file is there, so a run that was cut off goes on
where it stopped. Tasks are cut alike for any number of workers, and every worker computes with
one thread, so that the number of workers does not change a bit of the results.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve
from torch import Tensor

from leery import Detector, MetricTable, data
from leery._files import make_folder, write_atomically
from leery.attacks import gaussian_noise
from leery.classifiers import Classifier, load_classifier, pretrained, save_classifier, train
from leery.detector import PAPER_METRICS
from leery.errors import OutputError
from leery.evaluation import POSITIVES, PROTOCOLS, Pool, detection, select_positives
from leery.study._config import METRIC_SETS, Condition, StudyConfig

__all__ = [
    "FPR_GRID",
    "Desk",
    "Twins",
    "all_twins",
    "evaluate",
    "fit_detector",
    "load_evaluation",
    "load_table",
    "make_classifier",
    "measure",
    "shards",
    "true_labels",
]

SHARD = 500
"""The number of images of a measuring task."""

FPR_GRID = np.linspace(0, 1, 201)
"""The false-alarm rates at which ROC curves are kept for the figure."""


@dataclass(frozen=True)
class Desk:
    """Where a study works: its configuration and the folder of its stages."""

    config: StudyConfig
    folder: Path

    @property
    def detector(self) -> Path:
        """The fitted detector's file."""
        return self.folder / "detector.leery"

    def classifier(self) -> Classifier:
        """The classifier under study."""
        return load_classifier(self.folder / "classifier", self.config.dataset)

    @property
    def weights(self) -> Path:
        """The classifier's weights file."""
        return self.folder / "classifier" / f"{self.config.dataset}.safetensors"

    def table(self, twins: "Twins", start: int) -> Path:
        """The file of a measuring task."""
        return self.folder / "measure" / twins.name / f"{start:06d}.npz"

    def evaluation(self, condition: Condition) -> Path:
        """The file of an evaluating task."""
        return self.folder / "evaluate" / f"{condition.name}.json"


@dataclass(frozen=True)
class Twins:
    """Which version of the test images is measured: clean, noisy or attacked.

    Attributes:
        condition: the attack, or None.
        sigma: the standard deviation of the noise, or None.
    """

    condition: Condition | None = None
    sigma: float | None = None

    @property
    def name(self) -> str:
        """What the twins are called in files."""
        if self.condition is not None:
            return self.condition.name
        return "clean" if self.sigma is None else f"noise-{self.sigma:.2f}"

    @property
    def cost(self) -> int:
        """Roughly how many gradients an image costs; long tasks are started first."""
        return 0 if self.condition is None else self.condition.make().steps


def all_twins(config: StudyConfig) -> list[Twins]:
    """Every version of the test images that the study measures, the costly ones first."""
    twins = [
        Twins(),
        *(Twins(sigma=epsilon) for epsilon in config.epsilons),
        *(Twins(condition=condition) for condition in config.conditions),
    ]
    return sorted(twins, key=lambda twin: -twin.cost)


def shards(config: StudyConfig) -> range:
    """Where the measuring tasks of a version start."""
    return range(0, len(_test_set(config)[1]), SHARD)


def make_classifier(desk: Desk) -> None:
    """Leave the classifier in the desk's folder: the shipped one, or one trained anew."""
    config = desk.config
    if config.retrain:
        classifier = train(config.dataset, seed=config.seed, root=config.data_dir)
    else:
        classifier = pretrained(config.dataset)
    save_classifier(classifier, desk.folder / "classifier")


def fit_detector(desk: Desk) -> None:
    """Fit the detector on all training images and leave its file."""
    config = desk.config
    images, labels = data.load(config.dataset, "train", config.data_dir)
    model = desk.classifier().model
    detector = Detector(
        model,
        str(model.last_hidden_layer),
        passes=config.passes,
        seed=config.seed,
        bandwidth=config.bandwidth,
    )
    detector.fit(images, labels).save(desk.detector)


def measure(desk: Desk, twins: Twins, start: int) -> None:
    """Make one shard of a version of the test images, measure it and leave the table."""
    detector = _detector(desk)
    images, labels = (part[start : start + SHARD] for part in _test_set(desk.config))
    seed = _seed(desk.config.seed, twins.name, start)
    table = detector.measure(_made(detector, twins, images, labels, seed))
    stream = io.BytesIO()
    np.savez(stream, values=table.values, predicted=table.predicted)
    path = desk.table(twins, start)
    make_folder(path.parent)
    write_atomically(path, stream.getvalue())


def evaluate(desk: Desk, condition: Condition) -> None:
    """Judge every set of metrics on one condition and leave rows and ROC curves."""
    pool = Pool.of_twins(
        clean=load_table(desk, Twins()),
        adversarial=load_table(desk, Twins(condition=condition)),
        noisy=load_table(desk, Twins(sigma=condition.epsilon)),
        labels=true_labels(desk.config),
    )
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[float]] = {}
    for name, metrics in METRIC_SETS.items():
        for protocol, scored in PROTOCOLS.items():
            scores = scored(pool, metrics, desk.config.seed)
            rows += _judged(
                pool, scores, {**asdict(condition), "metrics": name, "protocol": protocol}
            )
            if protocol == "held-out":
                curves[name] = _curve(pool, scores)
    content = {"rows": rows, "curves": curves}
    path = desk.evaluation(condition)
    make_folder(path.parent)
    write_atomically(path, json.dumps(content))


def load_evaluation(desk: Desk, condition: Condition) -> dict[str, Any]:
    """The rows and the ROC curves of one condition.

    Returns:
        ``rows``, a list of dictionaries with the columns of results.csv except the dataset, and
        ``curves``, the true-positive rates of each set of metrics at :data:`FPR_GRID`.
    """
    path = desk.evaluation(condition)
    try:
        content: dict[str, Any] = json.loads(_read(path))
    except ValueError as error:
        raise OutputError(_damaged(path, error)) from error
    return content


def load_table(desk: Desk, twins: Twins) -> MetricTable:
    """The measured metrics of one version of all test images, in their order."""
    values, predicted = [], []
    for start in shards(desk.config):
        path = desk.table(twins, start)
        try:
            with np.load(io.BytesIO(_read(path)), allow_pickle=False) as part:
                values.append(part["values"])
                predicted.append(part["predicted"])
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise OutputError(_damaged(path, error)) from error
    return MetricTable(PAPER_METRICS, np.concatenate(values), np.concatenate(predicted))


def true_labels(config: StudyConfig) -> np.ndarray:
    """The true classes of the test images under study, int64 ``(N,)``."""
    return _test_set(config)[1].numpy()


def _judged(pool: Pool, scores: np.ndarray, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each choice of positives; figures that no positive defines are None."""
    for positives in POSITIVES:
        rows = select_positives(pool, positives)
        if pool.adversarial[rows].any():
            figures = asdict(detection(pool, scores, positives))
        else:
            noisy = int(pool.noisy.sum())
            clean = int(rows.sum()) - noisy
            figures = {"n_clean": clean, "n_noisy": noisy, "n_adversarial": 0}
        yield {**facts, "positives": positives, **figures, "attack_success": pool.attack_success}


def _curve(pool: Pool, scores: np.ndarray) -> list[float]:
    """The true-positive rates at :data:`FPR_GRID`."""
    false_alarms, found, _ = roc_curve(pool.adversarial, scores)
    return [float(rate) for rate in np.interp(FPR_GRID, false_alarms, found)]


def _made(detector: Detector, twins: Twins, images: Tensor, labels: Tensor, seed: int) -> Tensor:
    """The version of the images that is to be measured."""
    if twins.condition is not None:
        return twins.condition.make()(detector.model, images, labels, seed=seed)
    if twins.sigma is not None:
        return gaussian_noise(images, twins.sigma, seed=seed)
    return images


def _seed(seed: int, name: str, start: int) -> int:
    """A seed of its own for every task, the same on every machine."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode()), start])
    return int(sequence.generate_state(1)[0])


@cache
def _test_set(config: StudyConfig) -> tuple[Tensor, Tensor]:
    images, labels = data.load(config.dataset, "test", config.data_dir)
    return images[: config.limit], labels[: config.limit]


@cache
def _detector(desk: Desk) -> Detector:
    return Detector.load(desk.detector, desk.classifier().model)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    return (
        f"expected a stage file at {path}, got one that cannot be read ({error}); delete it and "
        "run leery reproduce again"
    )
