"""Images, classifier, file names and identities of an arena for one classifier."""

import hashlib
import inspect
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from leery import data
from leery._files import raise_reading_fault
from leery.arena._config import SLOW_PART, ArenaConfig
from leery.arena._detectors import Entry
from leery.attacks import CORRUPTIONS, HARMLESS
from leery.classifiers import RECIPES, Classifier, load_classifier
from leery.errors import DataError, StudyFileError, brief
from leery.models import predict
from leery.tasks import code_of, identity_of

__all__ = [
    "ATTACK_LIBRARIES",
    "BOUNDS",
    "CHANGES",
    "CLEAN_IMAGES",
    "FRESH_CHANGES",
    "Labelled",
    "Split",
    "Workspace",
    "error_file",
]

Labelled = tuple[Tensor, Tensor]

_SHUFFLE = 2020
"""Seed of the order of the test images; the order of a published test set is not random."""

CLEAN_IMAGES = 1250
"""Number of test images for fitting combiners and supervised detectors, before misclassified ones
are left out. The same number of other images set the threshold."""

ATTACK_LIBRARIES = ("foolbox", "adversarial-robustness-toolbox")
"""Names of the packages that provide some of the attacks."""

_FRESH = 2500
"""Maximum number of clean images on which false alarms are counted."""

_FRESH_PER_ATTACKED = 5
"""Number of these images per attacked image, if few images are attacked."""


BOUNDS = (0.0, 1.0)

CHANGES = tuple(HARMLESS)
"""Harmless changes on which the threshold keeps its rate too."""

FRESH_CHANGES = tuple(CORRUPTIONS)
"""Harmless changes on which false alarms are counted."""


@dataclass(frozen=True)
class Split:
    """Half of the test images, divided by use; only the fresh and the attacked ones overlap.

    Attributes:
        clean: correctly classified images, to which combiners and supervised detectors are fitted.
        threshold: images that set the threshold.
        fresh: images on which false alarms are counted.
        attacked: correctly classified fresh images, which are attacked.
        index_among_fresh: int64, index of each attacked image among the fresh ones.
    """

    clean: Labelled
    threshold: Labelled
    fresh: Labelled
    attacked: Labelled
    index_among_fresh: Tensor


@dataclass(frozen=True)
class Workspace:
    """Data and parts of an arena for one classifier.

    Attributes:
        config: options of the arena.
        folder: folder of the parts.
        classifier_seed: training seed of the classifier; 0 for the user's or the shipped one.
    """

    config: ArenaConfig
    folder: Path
    classifier_seed: int = 0

    @property
    def classifier_file(self) -> Path:
        """The record of the classifier, next to its weights."""
        folder = self.folder / f"classifier-{self.classifier_seed}-{self._classifier_id()[:16]}"
        return folder / f"{self.config.dataset}.json"

    def attack_files(self, cell: str, role: str) -> list[Path]:
        """The adversarial images of an attack, on images for "judging" or for "training".

        There is one file per part: all images, or :data:`SLOW_PART` of them for a slow attack.
        """
        own, config = self.attack_id(cell, role)[:16], self.config
        slow = role == "judging" and config.cells[cell].slow
        parts = -(-config.count(cell) // SLOW_PART) if slow else 1
        name = f"attack-{_plain(cell)}-{role}-{own}"
        return [self.folder / f"{name}-{part}.safetensors" for part in range(parts)]

    def scores_file(self, entry: Entry) -> Path:
        """The scores of a detector on every set of images."""
        return self.folder / f"detector-{_plain(entry.name)}-{self.detector_id(entry)[:16]}.npz"

    def attack_id(self, cell: str, role: str) -> str:
        """Identity of everything that the adversarial images depend on."""
        attack = self.config.cells[cell].attack
        count = self.config.count(cell) if role == "judging" else CLEAN_IMAGES
        facts = [
            *(self._classifier_id(), repr(attack), role, count, self.config.seed),
            *(_SHUFFLE, CLEAN_IMAGES, SLOW_PART),
            *(_sources(), _source("_attack_stage")),
            [version(library) for library in ATTACK_LIBRARIES],
        ]
        return identity_of(facts, [type(attack).__module__, "leery.models"])

    def detector_id(self, entry: Entry) -> str:
        """Identity of everything that the scores depend on."""
        trainings = self.config.trainings if entry.supervised else {}
        training = self.config.training_attacks if entry.supervised else ()
        attacks = [
            self.attack_id(cell, role)
            for role, cells in (("judging", self.config.cells), ("training", training))
            for cell in cells
        ]
        facts = [
            *(attacks, entry.factory, dict(entry.settings), trainings, self._fresh_count()),
            *(_source("_score_stage"), _source("_adaptive"), entry.source, self.config.epsilon),
        ]
        return identity_of(facts, [entry.module, "leery.attacks", "leery.baselines._base"])

    def classifier(self) -> Classifier:
        """The classifier, loaded once per process."""
        return _classifier(self)

    def train(self) -> Labelled:
        """The training images."""
        return data.load(self.config.dataset, "train", self.config.data_dir)

    def split(self) -> Split:
        """The test images divided by use, computed once per process."""
        return _split(self)

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """The clean and harmlessly changed images of each use, one set at a time."""
        for use, (images, _), changes in (
            ("threshold", self.split().threshold, CHANGES),
            ("fresh", self.split().fresh, FRESH_CHANGES),
        ):
            yield f"{use}|clean", images
            for name in changes:
                yield f"{use}|{name}", CORRUPTIONS[name](1)(images, self.config.seed, BOUNDS)

    def adversarial(self, cell: str, role: str) -> Mapping[str, Tensor]:
        """The adversarial images ("images") and whether each is misclassified ("success", bool).

        Raises:
            StudyFileError: when a file cannot be read.
        """
        parts = [_adversarial(path) for path in self.attack_files(cell, role)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def right(self, name: str) -> np.ndarray:
        """Mask of the images of a set that are correctly classified, bool ``(N,)``."""
        use = name.partition("|")[0]
        labels = {"threshold": self.split().threshold, "fresh": self.split().fresh}[use][1]
        found: np.ndarray = _predictions(self)[name] == labels.numpy()
        return found

    def success(self, cell: str) -> np.ndarray:
        """Mask of the attacked images that are misclassified, bool ``(N,)``."""
        return _success(self, cell)

    def index_among_fresh(self, cell: str) -> np.ndarray:
        """Index of each attacked image among the fresh images, int64 ``(N,)``."""
        found: np.ndarray = self.split().index_among_fresh.numpy()[: len(self.success(cell))]
        return found

    @property
    def predictions_file(self) -> Path:
        """The predicted classes of the clean and harmlessly changed images."""
        facts = [
            *(self._classifier_id(), self.config.seed, self._fresh_count(), _SHUFFLE, CLEAN_IMAGES),
            *(_sources(), _source("_classifier_stage")),
        ]
        own = identity_of(facts, ["leery.attacks", "leery.models"])
        return self.folder / f"predictions-{own[:16]}.npz"

    def _fresh_count(self) -> int:
        return min(_FRESH, _FRESH_PER_ATTACKED * self.config.limit)

    def _classifier_id(self) -> str:
        return _classifier_id(self)


def _adversarial(path: Path) -> dict[str, Tensor]:
    """The content of a file of adversarial images.

    Raises:
        StudyFileError: when it cannot be read.
    """
    try:
        return load(path.read_bytes())
    except Exception as error:
        raise_reading_fault(path, error)
        message = (
            f"expected adversarial images in {path}, got {brief(error)}; delete it and run the "
            "command again"
        )
        raise StudyFileError(message) from error


def error_file(scores: Path) -> Path:
    """The file of the error of a detector that has no scores."""
    return scores.with_suffix(".error.txt")


def _sources() -> str:
    """The source of the functions that choose and change the images."""
    changed = textwrap.dedent(inspect.getsource(Workspace.changed))
    return code_of(inspect.getsource(_split)) + code_of(changed)


def _source(module: str) -> str:
    """The source of a module of this package, without what it imports."""
    return code_of((files("leery.arena") / f"{module}.py").read_bytes())


def _plain(name: str) -> str:
    """A name with ``_`` for every character but letters, digits, dots, hyphens, underscores."""
    return "".join(sign if sign.isalnum() or sign in ".-_" else "_" for sign in name)


def _sum(path: Traversable) -> str:
    """The SHA-256 of a file of a classifier.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        message = f"expected a classifier in {path}, got {brief(error)}; run leery train"
        raise DataError(message) from error


@cache
def _classifier_id(workspace: Workspace) -> str:
    config = workspace.config
    sums = data.data_sums(config.dataset, config.data_dir)
    if workspace.classifier_seed == 0:
        folder = config.classifier or files("leery.classifiers") / "weights"
        paths = [folder / f"{config.dataset}.{suffix}" for suffix in ("safetensors", "json")]
        made = [_sum(path) for path in paths]
        return identity_of([sums, made], ["leery.classifiers._networks", "leery.data"])
    made = [str(workspace.classifier_seed), repr(RECIPES[config.dataset])]
    return identity_of([sums, made], ["leery.classifiers", "leery.data"])


@cache
def _classifier(workspace: Workspace) -> Classifier:
    return load_classifier(workspace.classifier_file.parent, workspace.config.dataset)


@cache
def _split(workspace: Workspace) -> Split:
    config = workspace.config
    images, labels = data.load(config.dataset, "test", config.data_dir)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(_SHUFFLE))
    # Most choices of the default were made on the first half (docs/choosing.md).
    order = order[len(order) // 2 :]
    rows = order.split([CLEAN_IMAGES, CLEAN_IMAGES, len(order) - 2 * CLEAN_IMAGES])
    clean, threshold, fresh = rows
    right = predict(workspace.classifier().model, images) == labels
    clean = clean[right[clean]]
    index = torch.nonzero(right[fresh]).squeeze(1)[: config.limit]
    attacked = fresh[index]
    fresh = fresh[: workspace._fresh_count()]  # noqa: SLF001 - of this module

    def parts(own: Tensor) -> Labelled:
        return images[own], labels[own]

    return Split(parts(clean), parts(threshold), parts(fresh), parts(attacked), index)


@cache
def _predictions(workspace: Workspace) -> Mapping[str, np.ndarray]:
    path = workspace.predictions_file
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise_reading_fault(path, error)
        message = (
            f"expected predictions in {path}, got {brief(error)}; delete it and run the command "
            "again"
        )
        raise StudyFileError(message) from error


@cache
def _success(workspace: Workspace, cell: str) -> np.ndarray:
    found: np.ndarray = workspace.adversarial(cell, "judging")["success"].numpy()
    return found
