"""``leery certify train``: a sentinel is trained and added to a detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console

import leery
from leery._files import check_output
from leery.cli._describe import described, print_description, warn_of_lost_promises
from leery.cli._groups import (
    ClassifierOptions,
    InputOptions,
    clean_images,
    with_groups,
)
from leery.cli._options import (
    DetectorFile,
    Force,
    Json,
    NoHarmless,
    OwnMetrics,
    Resize,
    RightOnly,
    Seed,
    check_replaceable,
    print_json,
    stoppable,
)
from leery.errors import InputError, warn
from leery.names import SENTINELS

if TYPE_CHECKING:
    from torch import Tensor

    from leery.calibration import Calibration
    from leery.certify import Sentinel
    from leery.detector import Detector
    from leery.inputs import Format
    from leery.training import FitParts

__all__ = ["train_and_add"]

_TRIED = 1000
"""Number of clean images on which a new sentinel is tried."""

_FEW = 0.1
"""Certified share of the tried images below which a warning is given."""

_Train = Annotated[
    list[Path] | None,
    typer.Option(
        help="Labelled training images, unless --pretrained is given. Can be repeated.",
        show_default=False,
    ),
]

_Pretrained = Annotated[
    str | None,
    typer.Option(
        metavar="DATASET",
        help="Add the sentinel that ships with leery for a dataset, mnist or fashion-mnist, "
        "instead of training one. Your classifier must number the classes as the dataset does.",
        show_default=False,
    ),
]

_Clean = Annotated[
    list[Path],
    typer.Option(
        help="Clean images for the new thresholds. Images that the detector's combiner (the part "
        "that fuses the metrics) was fitted to are left out. Can be repeated.",
        show_default=False,
    ),
]

_Share = Annotated[
    float,
    typer.Option(
        "--sentinel-share",
        help="Fraction of --fpr that the sentinel's threshold gets; the metrics get the rest.",
    ),
]

_Radius = Annotated[
    float | None,
    typer.Option(
        "--epsilon",
        help="Largest L-infinity radius to train for, as a fraction of the pixel range (not in "
        "pixel values, unlike --epsilon of leery certify); by default 0.3 for nearly "
        "black-and-white images such as digits (at most a quarter of the pixels are grey), "
        "otherwise 0.05.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How the sentinel is trained."""

    title: ClassVar[str] = "Training"

    train: _Train = None
    pretrained: _Pretrained = None
    epsilon: _Radius = None
    epochs: Annotated[int, typer.Option(help="Number of epochs.")] = 80
    seed: Seed = 0
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an interrupted training run.")
    ] = False

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            InputError: when they do.
        """
        if self.pretrained not in (None, *SENTINELS):
            message = (
                f"expected --pretrained {' or '.join(SENTINELS)}, got {self.pretrained!r}; train a "
                "sentinel for other images with --train"
            )
        elif (self.train is None) == (self.pretrained is None):
            got = "neither" if self.train is None else "both"
            message = f"expected --train or --pretrained, got {got}; give one of them"
        elif self.pretrained and self != _Training(pretrained=self.pretrained):
            message = (
                "expected none of --epsilon, --epochs, --seed and --resume with --pretrained, got "
                "some; leave them out"
            )
        else:
            return
        raise InputError(message)

    def images(self, form: Format) -> tuple[Tensor, Tensor] | None:
        """The labelled training images; None if nothing is trained."""
        return leery.inputs.load_labelled(self.train, form) if self.train else None

    def sentinel(
        self, detector: Detector, images: tuple[Tensor, Tensor] | None, parts: FitParts
    ) -> Sentinel:
        """A trained sentinel for a detector."""
        if self.pretrained:
            return leery.certify.pretrained_sentinel(self.pretrained, detector.model)
        assert images is not None
        recipe = leery.training.SentinelRecipe(epsilon=self.epsilon, epochs=self.epochs)
        bounds = detector.inputs_.bounds
        made = leery.certify.Sentinel(detector.model, recipe=recipe, bounds=bounds, seed=self.seed)
        return made.fit(*images, parts=parts)


@dataclass(frozen=True, kw_only=True)
class _Threshold:
    """How the thresholds are set."""

    title: ClassVar[str] = "Thresholds"

    fpr: Annotated[
        float,
        typer.Option(help="Promised false-alarm rate of metrics and sentinel together, in (0, 1)."),
    ] = 0.01
    share: _Share = 0.5
    right_only: RightOnly = False
    no_harmless: NoHarmless = False

    def set_on(self, detector: Detector, images: Tensor, labels: Tensor | None) -> None:
        """Calibrate a detector."""
        detector.calibrate(images, labels, fpr=self.fpr, harmless={} if self.no_harmless else None)


@with_groups
def train_and_add(
    file: DetectorFile,
    classifier: ClassifierOptions,
    reading: InputOptions,
    clean: _Clean,
    training: _Training,
    threshold: _Threshold,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Output file; by default the detector file itself.", show_default=False),
    ] = None,
    force: Force = False,
    metric: OwnMetrics = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Train a sentinel, add it to a detector and calibrate both.

    An image is flagged if the detector's metrics or the sentinel flag it; the two share the
    false-alarm rate.

    Examples:
      leery certify train guard.leery --model net:make --train train.npz --clean held.npz --force
      leery certify train guard.leery --model net:make --pretrained mnist --clean held.npz --force
    """
    target = out or file
    training.check()
    _promises(threshold)
    check_replaceable(target, force=force)
    check_output(target)
    saved = leery.detector.SavedDetector(file, classifier.load, tuple(metric or ()))
    detector, _ = saved.load()
    known = detector.inputs_
    form = reading.format(
        shape=known.shape, dtype=known.dtype, resize=resize, classes=detector.classes_
    )
    with (
        stoppable("the detector is as it was; --resume continues the training"),
        leery.training.FitParts(leery.tasks.parts_folder(target), resume=training.resume) as parts,
    ):
        held = clean_images(clean, form, labelled=threshold.right_only)
        trained = training.images(form)
        _check_held(detector, threshold, held, trained)
        sentinel = training.sentinel(detector, trained, parts)
        guard = detector.with_sentinel(sentinel, share=threshold.share)
        threshold.set_on(guard, *held)
        guard.save(target)
        parts.discard()
    assert guard.calibration_ is not None
    warn_of_lost_promises(detector.calibration_, guard.calibration_)
    facts = {**described(target), "tried": _tried(guard, held[0], training)}
    if as_json:
        print_json(facts)
    else:
        console = Console(highlight=False)
        print_description(console, target, facts)
        console.print(_sentence(facts["tried"]))


def _promises(threshold: _Threshold) -> list[Calibration]:
    """The promises of the metrics and of the sentinel.

    Raises:
        InputError: when a number is outside its range.
    """
    import numpy as np

    if not 0 < threshold.share < 1:
        message = f"expected --sentinel-share between 0 and 1, got {threshold.share:g}; use 0.5"
        raise InputError(message)
    nothing = np.empty(0)
    whole = leery.calibration.Calibration(threshold.fpr, "marginal", 0.95, False, nothing, nothing)
    return [whole.share(1 - threshold.share), whole.share(threshold.share)]


def _check_held(
    detector: Detector,
    threshold: _Threshold,
    held: tuple[Tensor, Tensor | None],
    trained: tuple[Tensor, Tensor] | None,
) -> None:
    """Refuse before the training what the calibration would refuse after it.

    Raises:
        InputError: when clean images are among the training images, or too few are left for the
            promises without those that the detector has learned from.
    """
    import torch

    from leery._checks import more_than_a_few

    images, labels = held
    both = 0
    if trained is not None:
        grid = leery.models.grid_of(trained[0])
        hashes = (leery.models.image_hashes(each, grid) for each in (images, trained[0]))
        both = int(torch.isin(*hashes).sum())
    if more_than_a_few(both, len(images)):
        message = (
            f"expected clean images that are not among the training images, got {both:,} of "
            f"{len(images):,} that are; name others with --clean"
        )
        raise InputError(message)
    usable = torch.from_numpy(~detector.has_seen(images))
    if labels is not None:
        usable &= leery.models.predict(detector.model, images).cpu() == labels
    needed = max(promise.needed for promise in _promises(threshold))
    left = len(leery.models.image_hashes(images, leery.models.grid_of(images))[usable].unique())
    if left < needed:
        message = (
            f"expected at least {needed:,} usable clean images for --fpr {threshold.fpr:g} and "
            f"--sentinel-share {threshold.share:g}, got {left:,} of {len(images):,} (distinct, not "
            "used to fit the detector or its combiner, with --right-only classified correctly); "
            "add some or raise --fpr"
        )
        raise InputError(message)


def _tried(guard: Detector, held: Tensor, training: _Training) -> dict[str, Any]:
    """What a new sentinel certifies of some clean images, with their predicted classes as true."""
    sentinel = guard.sentinel_
    assert sentinel is not None
    assert sentinel.training_ is not None
    some = held[:_TRIED]
    epsilon = sentinel.training_.epsilon * float(sentinel.network_.span.min())
    classes = leery.models.predict(guard.model, some).cpu()
    share = float(sentinel.certify(some, classes, epsilon=epsilon).mean())
    if share < _FEW:
        advice = (
            f"check that these are images of {training.pretrained} and that the classes are "
            "numbered as there"
            if training.pretrained
            else "train on more images, for more epochs or for a smaller --epsilon"
        )
        warn(
            f"the sentinel certifies hardly any of {len(some):,} clean images at the epsilon of "
            f"its training ({share:.1%}); {advice}"
        )
    return {"images": len(some), "linf_epsilon": epsilon, "certified": share}


def _sentence(tried: dict[str, Any]) -> str:
    return (
        f"Tried on {tried['images']:,} of the clean images, with their predicted classes as true "
        f"ones: {tried['certified']:.1%} are certified at L-infinity epsilon "
        f"{tried['linf_epsilon']:g}. leery certify measures it on labelled test images."
    )
