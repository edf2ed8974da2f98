"""Metrics of clean images and of their modified versions, with hashes and labels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from leery._checks import more_than_a_few
from leery.attacks import Attack, Harmless
from leery.calibration import Calibration
from leery.detector._state import Fitted, FittedCombiner
from leery.detector._table import MetricTable
from leery.errors import InputError, LeeryError, brief, raise_machine_fault, warn
from leery.inputs import Images, Moments, labelled_batches
from leery.models import image_hashes

__all__ = ["CleanImages", "Measure", "check_unseen", "measure_clean", "no_labels"]

Measure = Callable[[Tensor], MetricTable]
"""Function that returns the metrics of images."""


@dataclass(frozen=True)
class CleanImages:
    """Metrics of clean images, with hashes and labels.

    Attributes:
        tables: metrics of the images, under "clean", and of each harmless change by its name.
        hashes: int64 ``(N,)``, hashes of the images.
        labels: int64 ``(N,)``, the true classes; None if unknown.
        attacked: per attack, metrics of the adversarial versions of correctly classified images.
    """

    tables: Mapping[str, MetricTable]
    hashes: Tensor
    labels: np.ndarray | None
    attacked: tuple[MetricTable, ...] = ()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.hashes)

    def rows(self, chosen: np.ndarray) -> Self:
        """The subset of images with these row indices."""
        return replace(
            self,
            tables={name: table.rows(chosen) for name, table in self.tables.items()},
            hashes=self.hashes[torch.from_numpy(chosen)],
            labels=None if self.labels is None else self.labels[chosen],
        )

    def only(self, names: Sequence[str]) -> Self:
        """The same images with some of the metrics."""
        return replace(
            self, tables={name: table.only(names) for name, table in self.tables.items()}
        )

    def calibrate(
        self, promised: Calibration, score: Callable[[MetricTable], np.ndarray]
    ) -> Calibration:
        """The promise with the scores of the relevant images of each kind.

        Args:
            promised: the promise, without scores.
            score: returns the score of each row of a table.
        """
        kinds = [table.rows(self.judged_right(table)) for table in self.tables.values()]
        together = MetricTable.joined(kinds)
        return replace(
            promised,
            scores=score(together),
            predicted=together.predicted,
            kinds=tuple(self.tables),
            kind=np.repeat(np.arange(len(kinds)), [len(table) for table in kinds]),
            right_only=self.labels is not None,
        )

    def halves(self, seed: int) -> tuple[Self, Self]:
        """Two random halves, because the order of a test set is often not exchangeable."""
        order = np.random.default_rng(seed).permutation(len(self))
        first, second = np.array_split(order, 2)
        return self.rows(np.sort(first)), self.rows(np.sort(second))

    def judged_right(self, table: MetricTable) -> np.ndarray:
        """Indices of the correctly classified rows of a table; all if labels are unknown."""
        if self.labels is None:
            return np.arange(len(table))
        return np.flatnonzero(table.predicted == self.labels)

    def unseen(self, fitted: Fitted, combiner: FittedCombiner | None) -> Self:
        """The distinct images that were used neither in the fit nor for the combiner.

        Raises:
            InputError: when more than a few are training images.
        """
        if not len(fitted.seen):
            return self
        trained = check_unseen(self.hashes, fitted)
        used = (
            torch.isin(self.hashes, combiner.seen)
            if combiner is not None
            else torch.zeros_like(trained)
        )
        first = np.zeros(len(self), dtype=bool)
        first[np.unique(self.hashes.numpy(), return_index=True)[1]] = True
        kept = first & ~trained.numpy() & ~used.numpy()
        if not kept.all():
            reasons = {
                "training images": int(trained.sum()),
                "that the combiner was fitted to": int((used & ~trained).sum()),
                "repeated": int((~torch.from_numpy(first) & ~used & ~trained).sum()),
            }
            said = ", ".join(f"{count} {what}" for what, count in reasons.items() if count)
            message = f"{int((~kept).sum())} of {len(self)} clean images were left out: {said}"
            warn(message)
        return self.rows(np.flatnonzero(kept))


def check_unseen(hashes: Tensor, fitted: Fitted) -> Tensor:
    """Mask of the images that are training images, bool ``(N,)``.

    Raises:
        InputError: when more than a few are training images.
    """
    trained = torch.isin(hashes, fitted.seen)
    if more_than_a_few(int(trained.sum()), len(hashes)):
        message = (
            "expected clean images that are not among the training images, got "
            f"{int(trained.sum())} of {len(hashes)} that are; pass images held out of the "
            "training, or the promised rate will not be kept"
        )
        raise InputError(message)
    return trained


def no_labels() -> InputError:
    """Error for attacks on images without labels."""
    return InputError("expected the labels of the clean images for attacks, got None; pass them")


def measure_clean(
    measure: Measure,
    fitted: Fitted,
    images: Images,
    labels: Tensor | None,
    *,
    harmless: Mapping[str, Harmless] | None = None,
    attack: Callable[[Attack, Tensor, Tensor], Tensor] | None = None,
    attacks: Sequence[Attack] = (),
    seed: int = 0,
) -> CleanImages:
    """Measure clean images batch by batch, with their harmless and adversarial versions.

    Args:
        measure: returns the metrics of images.
        fitted: fitted state, whose input specification the images must match.
        images: clean, as :func:`leery.inputs.labelled_batches` takes them.
        labels: the true classes, for a tensor of images; None if unknown.
        harmless: harmless changes of the images, by name.
        attack: runs an attack on images and labels.
        attacks: attacks to run on the correctly classified images.
        seed: random seed of the harmless changes.

    Raises:
        InputError: when images or labels do not fit.
    """
    versions = harmless or {}
    tables: dict[str, list[MetricTable]] = {name: [] for name in ("clean", *versions)}
    hashes: list[Tensor] = []
    truths: list[np.ndarray | None] = []
    attacked: list[list[MetricTable]] = [[] for _ in attacks]
    moments = Moments()
    for number, (batch, truth) in enumerate(labelled_batches(images, labels)):
        table = measure(batch)
        tables["clean"].append(table)
        moments.add(batch)
        hashes.append(image_hashes(batch, fitted.grid))
        truths.append(None if truth is None else truth.cpu().numpy())
        for name, change in versions.items():
            assert fitted.inputs.bounds is not None
            tables[name].append(measure(_changed(name, change, batch, seed + number, fitted)))
        if attack is not None:
            for place, adversarial in enumerate(_attacked(attack, attacks, batch, truth, table)):
                attacked[place].append(measure(adversarial))
    found = torch.cat(hashes)
    fitted.inputs.compare(moments, len(found), "clean images")
    known = [truth for truth in truths if truth is not None]
    return CleanImages(
        {name: MetricTable.joined(parts) for name, parts in tables.items()},
        found,
        np.concatenate(known) if len(known) == len(truths) else None,
        tuple(MetricTable.joined(parts) for parts in attacked if parts),
    )


def _changed(name: str, change: Harmless, images: Tensor, seed: int, fitted: Fitted) -> Tensor:
    """The images after a harmless change.

    Raises:
        InputError: when the change fails or does not return images of the same shape.
    """
    assert fitted.inputs.bounds is not None
    try:
        found = change(images, seed, fitted.inputs.bounds)
    # The change may be user code, which can raise any exception.
    except LeeryError:
        raise
    except Exception as error:
        raise_machine_fault(error)
        message = (
            f"expected the harmless change {name!r} as a function of images, seed and bounds, got "
            f"one that fails ({brief(error)}); correct it, see CORRUPTIONS['rotation'](1)"
        )
        raise InputError(message) from error
    if not isinstance(found, Tensor) or found.shape != images.shape:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        message = (
            f"expected shape {tuple(images.shape)} from the harmless change {name!r}, got {shown}; "
            "correct it"
        )
        raise InputError(message)
    return found


def _attacked(
    attack: Callable[[Attack, Tensor, Tensor], Tensor],
    attacks: Sequence[Attack],
    images: Tensor,
    labels: Tensor | None,
    table: MetricTable,
) -> Iterator[Tensor]:
    """For each attack, the adversarial versions of the correctly classified images."""
    if labels is None:
        raise no_labels()
    right = torch.from_numpy(table.predicted).to(labels.device) == labels
    if not bool(right.any()):
        message = "expected clean images that the classifier gets right, got none; check the labels"
        raise InputError(message)
    for chosen in attacks:
        yield attack(chosen, images[right.to(images.device)], labels[right])
