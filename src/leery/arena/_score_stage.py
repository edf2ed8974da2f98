"""Fitting of a detector and scoring of every set of images."""

import copy
import io
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from leery._files import make_folder, write_atomically
from leery.arena._adaptive import certified, evaded, has_gradient, threshold_of
from leery.arena._config import RATES
from leery.arena._detectors import Entry
from leery.arena._workspace import CHANGES, Labelled, Workspace, error_file
from leery.baselines import SupervisedBaseline
from leery.detector import MetricTable
from leery.errors import InputError, brief
from leery.models import content_hashes
from leery.tasks import write_seconds

__all__ = ["score_detector"]

Scores = dict[str, np.ndarray]


def score_detector(workspace: Workspace, entry: Entry, path: Path) -> None:
    """Fit a detector, score every set of images, and write the scores and their times.

    The scores of each set are written under the name ``trained_on|set``; for a detector that does
    not learn from attacks the first part is empty. If the detector raises, or does not give one
    finite score per image, only the error is written, to a file in the same folder, and the
    detector is tried again in the next run.

    Args:
        workspace: data of the arena.
        entry: the detector.
        path: the file of its scores.
    """
    _start_afresh(crc32(entry.name.encode()) ^ workspace.config.seed)
    make_folder(path.parent)
    seconds: dict[str, float] = {}
    start = time.process_time()
    try:
        arrays = _scores(workspace, entry, seconds)
    except _Failure as failure:
        write_atomically(error_file(path), str(failure))
        return
    seconds["total"] = time.process_time() - start
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # mypy takes them for allow_pickle
    write_seconds(path, seconds)
    write_atomically(path, stream.getvalue())
    error_file(path).unlink(missing_ok=True)


class _Failure(Exception):  # noqa: N818 - a detector's error, which is shown and never raised
    """What went wrong in a detector."""


@contextmanager
def _code_of_the_detector() -> Iterator[None]:
    """Turn whatever a detector raises into a failure; it may be a user's code.

    Raises:
        _Failure: when it raises, runs out of memory or calls ``sys.exit``.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        # A text that cannot be encoded could not be written.
        text = brief(error).encode(errors="backslashreplace").decode()
        raise _Failure(text) from error


def _start_afresh(seed: int) -> None:
    """Seed the global generators, and undo what detectors before this one may have switched."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - the global one
    torch.manual_seed(seed)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


def _sets_of(workspace: Workspace) -> Iterator[tuple[str, Tensor]]:
    """Every set of images by name, one at a time; copies, which a detector may change."""
    for name, images in workspace.changed():
        yield name, images.clone()
    for cell in workspace.config.cells:
        yield f"attack|{cell}", workspace.adversarial(cell, "judging")["images"]


def _scores(workspace: Workspace, entry: Entry, seconds: dict[str, float]) -> Scores:
    """The scores of every set of images, after training on every set of attacks."""
    trainings: Mapping[str, tuple[str, ...]] = {"": ()}
    if entry.supervised:
        trainings = workspace.config.trainings
    detector: Any = None
    tables: dict[str, MetricTable] = {}
    arrays: Scores = {}
    for trained_on, cells in trainings.items():
        attacks = [_Stored(workspace, cell) for cell in cells]
        train, clean = workspace.train(), _clean(workspace)
        start = time.process_time()
        with _code_of_the_detector():
            if _keeps_its_metrics(detector):
                detector.learn(clean, attacks)
            else:
                # A new one and a new classifier, so that neither has seen any other attack.
                detector = entry.make(copy.deepcopy(workspace.classifier().model))
                _check_declared(entry, detector)
                detector.fit(train, clean, attacks)
        seconds.setdefault("fit", time.process_time() - start)
        own = dict(_scored(workspace, detector, tables, seconds))
        if trained_on in ("", "all"):
            own |= _known(workspace, detector, own)
        arrays |= {f"{trained_on}|{name}": values for name, values in own.items()}
    return arrays


def _known(workspace: Workspace, detector: Any, scores: Scores) -> Scores:  # noqa: ANN401 - of any class
    """What attackers achieve who know the detector, at the lowest rate of false alarms."""
    calibration = threshold_of(workspace, scores.__getitem__, RATES[0], ("clean", *CHANGES))
    with _code_of_the_detector():
        return {
            "evaded": evaded(workspace, detector, calibration),
            "with gradients": np.array([has_gradient(detector)]),
            "certified": certified(workspace, detector, calibration),
        }


def _keeps_its_metrics(detector: Any) -> bool:  # noqa: ANN401 - of any class
    """True for leery's own supervised detectors, whose metrics do not depend on the attacks."""
    own = type(detector).__module__.startswith("leery.baselines.")
    return own and isinstance(detector, SupervisedBaseline)


def _check_declared(entry: Entry, detector: object) -> None:
    """Raise if a detector learns from attacks and the function that made it does not say so.

    Raises:
        InputError: when that is so.
    """
    if getattr(detector, "learns_from_attacks", False) and not entry.supervised:
        message = (
            f"expected {entry.factory} to say that its detector learns from attacks, got no such "
            f"attribute; write {entry.factory.partition(':')[2]}.learns_from_attacks = True below "
            "the function"
        )
        raise InputError(message)


def _scored(
    workspace: Workspace,
    detector: Any,  # noqa: ANN401 - of any class
    tables: dict[str, MetricTable],
    seconds: dict[str, float],
) -> Iterator[tuple[str, np.ndarray]]:
    """The scores of every set; metrics that are already in ``tables`` are not measured again."""
    if tables:
        for name, table in tables.items():
            with _code_of_the_detector():
                scores = _checked(detector.score_of(table), len(table), name)
            yield name, scores
        return
    for name, images in _sets_of(workspace):
        start = time.process_time()
        with _code_of_the_detector():
            if _keeps_its_metrics(detector):
                tables[name] = detector.measure(images)
                scores = detector.score_of(tables[name])
            else:
                scores = np.asarray(detector.score(images), dtype=np.float64)
            _checked(scores, len(images), name)
        seconds["score"] = seconds.get("score", 0) + time.process_time() - start
        seconds["images"] = seconds.get("images", 0) + len(images)
        yield name, scores


def _clean(workspace: Workspace) -> Labelled:
    """The clean images and their labels; copies, which a detector may change."""
    images, labels = workspace.split().clean
    return images.clone(), labels.clone()


class _Stored:
    """An attack that returns stored adversarial images.

    Args:
        workspace: data of the arena.
        cell: name of the attack.
    """

    def __init__(self, workspace: Workspace, cell: str) -> None:
        self._made = workspace.adversarial(cell, "training")["images"]
        hashes = content_hashes(workspace.split().clean[0]).tolist()
        self._rows = {key: row for row, key in enumerate(hashes)}

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Tensor:
        """The adversarial versions of some of the clean images.

        Raises:
            InputError: when an image is not one of them.
        """
        del model, labels, seed
        rows = [self._rows.get(key) for key in content_hashes(images).tolist()]
        if None in rows:
            message = (
                "expected some of the clean images that fit() was given, got others; attack only "
                "those given"
            )
            raise InputError(message)
        found: Tensor = self._made[torch.tensor(rows)]
        return found.to(images.device)


def _checked(scores: np.ndarray, count: int, name: str) -> np.ndarray:
    """Scores, if there is a finite one for each image.

    Raises:
        InputError: when there is not.
    """
    if scores.shape != (count,) or not np.isfinite(scores).all():
        message = (
            f"expected {count} finite scores of {name}, got shape {scores.shape} with "
            f"{int((~np.isfinite(scores)).sum())} that are not finite; correct the detector"
        )
        raise InputError(message)
    return scores
