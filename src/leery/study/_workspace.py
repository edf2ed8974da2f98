"""Workspace of a study: names, writing and reading of the files of its stages."""

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from leery import Detector, MetricTable, data
from leery._files import make_folder, raise_reading_fault, write_atomically
from leery.attacks import gaussian_noise
from leery.classifiers import Classifier, load_classifier
from leery.errors import StudyFileError
from leery.study._config import STUDIED_METRICS, AttackName, Condition, StudyConfig

__all__ = [
    "MEASURED",
    "SHARD",
    "Version",
    "Workspace",
    "all_versions",
    "read_arrays",
    "read_json",
    "write_arrays",
    "write_json",
]

SHARD = 500
"""The number of images that share a seed of noise and of random starts."""

MEASURED = 4 * SHARD
"""The number of images of a measuring task."""


@dataclass(frozen=True)
class Version:
    """A version of the test images: clean, noisy or attacked.

    Attributes:
        condition: the attack, or None.
        sigma: the standard deviation of the noise, or None.
    """

    condition: Condition | None = None
    sigma: float | None = None

    @property
    def name(self) -> str:
        """Name of the version in folder names and seeds."""
        if self.condition is not None:
            return self.condition.name
        return "clean" if self.sigma is None else f"noise-{self.sigma:.2f}"

    @property
    def gradients(self) -> int:
        """Number of gradient computations per image."""
        return 0 if self.condition is None else self.condition.make().steps


def all_versions(config: StudyConfig) -> list[Version]:
    """Every version of the test images that the study measures, the costly ones first."""
    versions = [
        Version(),
        *(Version(sigma=epsilon) for epsilon in config.epsilons),
        *(Version(condition=condition) for condition in config.conditions),
    ]
    return sorted(versions, key=lambda version: -version.gradients)


@dataclass(frozen=True)
class Workspace:
    """Files and data of the study of one classifier.

    Attributes:
        config: options of the study; ``seeds`` is None.
        folder: folder of the stages.
    """

    config: StudyConfig
    folder: Path

    @property
    def weights(self) -> Path:
        """The classifier's weights file."""
        return self.folder / "classifier" / f"{self.config.dataset}.safetensors"

    @property
    def detector_file(self) -> Path:
        """The fitted detector's file."""
        return self.folder / "detector.leery"

    def table_file(self, version: Version, start: int) -> Path:
        """The file of the metrics of some images."""
        return self.folder / "measure" / version.name / f"{start:06d}.npz"

    def evaluation_file(self, condition: Condition) -> Path:
        """The file of the evaluation of an attack."""
        return self.folder / "evaluate" / f"{condition.name}.json"

    def success_file(self, condition: Condition) -> Path:
        """The file of the success of an attack at one strength of figure 2."""
        return self.folder / "success" / f"{condition.name}.json"

    def trace_file(self, attack: AttackName, shard: int) -> Path:
        """The file of the metrics of some images at all strengths of figures 4 to 7."""
        return self.folder / "trace" / attack / f"{shard:03d}.npz"

    def picture_file(self, name: str) -> Path:
        """The file of images that the report shows."""
        return self.folder / "pictures" / f"{name}.npz"

    def reading_file(self, condition: Condition) -> Path:
        """The file of the results of the paper's equations as printed."""
        return self.folder / "as-printed" / f"{condition.name}.json"

    def classifier(self) -> Classifier:
        """The classifier under study."""
        return load_classifier(self.folder / "classifier", self.config.dataset)

    def detector(self) -> Detector:
        """The fitted detector, loaded once per process."""
        return _detector(self)

    def test_set(self) -> tuple[Tensor, Tensor]:
        """The images under study, float32 ``(N, 1, 28, 28)``, and their true classes ``(N,)``."""
        return _test_set(self.config)

    def labels(self) -> np.ndarray:
        """The true classes of the images under study, int64 ``(N,)``."""
        labels: np.ndarray = self.test_set()[1].numpy()
        return labels

    def measured(self) -> range:
        """Start indices of the measuring tasks of a version of the images."""
        return range(0, len(self.labels()), MEASURED)

    def attacked(self, limit: int | None = None) -> np.ndarray:
        """Indices of the first correctly classified images, at most ``limit``, int64."""
        right = np.flatnonzero(self.table(Version()).predicted == self.labels())
        return right[:limit]

    def seed(self, name: str, start: int = 0) -> int:
        """A separate seed for every task, the same on every machine."""
        sequence = np.random.SeedSequence([self.config.seed, zlib.crc32(name.encode()), start])
        return int(sequence.generate_state(1)[0])

    def craft(self, version: Version, start: int) -> Tensor:
        """Make one shard of a version of the images, reproducibly."""
        images, labels = (part[start : start + SHARD] for part in self.test_set())
        seed = self.seed(version.name, start)
        if version.condition is not None:
            return version.condition.make()(self.detector().model, images, labels, seed=seed)
        if version.sigma is not None:
            return gaussian_noise(images, version.sigma, seed=seed)
        return images

    def table(self, version: Version) -> MetricTable:
        """The measured metrics of a version of all images, in order."""
        parts = [read_arrays(self.table_file(version, start)) for start in self.measured()]
        values, predicted = (
            np.concatenate([part[name] for part in parts]) for name in ("values", "predicted")
        )
        return MetricTable(STUDIED_METRICS, values, predicted)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write the arrays of a task to its file."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
    make_folder(path.parent)
    write_atomically(path, stream.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a task.

    Raises:
        StudyFileError: when its file cannot be read.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise _damaged(path, error) from error


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write the results of a task to its file."""
    make_folder(path.parent)
    write_atomically(path, json.dumps(content))


def read_json(path: Path) -> dict[str, Any]:
    """Read the results of a task.

    Raises:
        StudyFileError: when its file cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return content


def _damaged(path: Path, error: Exception) -> StudyFileError:
    """The error for a file that cannot be read, unless the machine is to blame for it."""
    raise_reading_fault(path, error)
    return StudyFileError(
        f"expected a stage file at {path}, got one that cannot be read ({error}); delete it and "
        "run leery reproduce again"
    )


@cache
def _test_set(config: StudyConfig) -> tuple[Tensor, Tensor]:
    images, labels = data.load(config.dataset, "test", config.data_dir)
    return images[: config.limit], labels[: config.limit]


@cache
def _detector(workspace: Workspace) -> Detector:
    return Detector.load(workspace.detector_file, workspace.classifier().model)
