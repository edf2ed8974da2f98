"""``leery fit``: a detector for the user's classifier."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from leery import inputs
from leery._files import check_output
from leery._progress import progress_bars
from leery.attacks import GradientAttack, gaussian_noise
from leery.cli._describe import described, print_description
from leery.cli._model import Model, Weights, check_repeatable, load_model, with_classes
from leery.cli._options import (
    Attacks,
    ChannelsOption,
    ImagesKey,
    Json,
    LabelsKey,
    Seed,
    image_format,
    parse_attacks,
    print_json,
    stoppable,
)
from leery.detector import METRICS, PAPER_METRICS, Calibration, Detector
from leery.errors import InputError
from leery.metrics import BandwidthRule

__all__ = ["fit"]

_Train = Annotated[
    list[Path],
    typer.Option(
        help="Clean training images with labels: a folder with a folder for each class, .npz or "
        ".parquet. Can be repeated.",
        show_default=False,
    ),
]

_Clean = Annotated[
    list[Path],
    typer.Option(
        help="Clean images that the classifier was not trained on, with labels if there are "
        "attacks. They teach the combiner. Can be repeated.",
        show_default=False,
    ),
]

_Out = Annotated[Path, typer.Option(help="The file of the detector.")]

_Noise = Annotated[
    list[float] | None,
    typer.Option(
        help="The standard deviation of harmless noise, which is not to be flagged. Can be "
        "repeated.",
        show_default=False,
    ),
]

_Fpr = Annotated[
    float | None,
    typer.Option(
        help="Calibrate to this false-alarm rate with one half of the clean images; the other "
        "half teaches the combiner.",
        show_default=False,
    ),
]

_Layer = Annotated[
    str | None,
    typer.Option(
        help="The last hidden layer: a submodule, or 'input of SUBMODULE'; by default the input "
        "of the last linear layer.",
        show_default=False,
    ),
]

_Passes = Annotated[int, typer.Option(help="Monte-Carlo dropout passes.")]

_Metrics = Annotated[str, typer.Option(help=f"Separated by commas, out of: {', '.join(METRICS)}.")]

_ALL_SIX = ",".join(PAPER_METRICS)

_Bandwidth = Annotated[
    str,
    typer.Option(help="Of the kernel density: a number, likelihood or likelihood-per-class."),
]

_References = Annotated[
    int | None,
    typer.Option(help="Keep at most so many training images a class.", show_default=False),
]

_Half = Annotated[bool, typer.Option("--half", help="Keep them in half precision.")]


def fit(
    model: Model,
    train: _Train,
    clean: _Clean,
    *,
    out: _Out = Path("guard.leery"),
    weights: Weights = None,
    attack: Attacks = None,
    noise: _Noise = None,
    fpr: _Fpr = None,
    layer: _Layer = None,
    passes: _Passes = 50,
    metrics: _Metrics = _ALL_SIX,
    bandwidth: _Bandwidth = "likelihood",
    references: _References = None,
    half: _Half = False,
    seed: Seed = 0,
    channels: ChannelsOption = "first",
    images_key: ImagesKey = "images",
    labels_key: LabelsKey = "labels",
    as_json: Json = False,
) -> None:
    """Fit a detector to a classifier and its clean training images, and write it to a file.

    With --attack the combiner learns from adversarial twins (logistic regression); without, from
    clean images alone (conformal p-values). With --fpr the detector is ready to give verdicts.

    Examples:
      leery fit --model net:make --weights net.safetensors --train train/ --clean held/ --fpr 0.01
      leery fit --model net:make --train train.npz --clean held.npz --attack pgd:0.1 --noise 0.1
    """
    attacks = parse_attacks(attack)
    detector = Detector(
        load_model(model, weights),
        layer,
        passes=passes,
        seed=seed,
        metrics=metrics.split(","),
        bandwidth=_bandwidth(bandwidth),
        references=references,
        precision="float16" if half else "float32",
        combiner="logistic" if attacks else "conformal",
    )
    form = image_format(channels, images_key, labels_key)
    _check_first(train, clean, out, fpr)
    if weights is None:
        check_repeatable(model, detector.model)
    with stoppable("nothing was written"):
        form = with_classes(detector.model, train, form)
        detector.fit(_watched(train, form))
        shape, _ = detector.inputs_
        form = replace(form, shape=shape)
        held = _clean_images(clean, form, labelled=bool(attacks))
        _teach(detector, held, list(attacks.values()), noise or [], fpr)
        detector.save(out)
    _report(detector, out, as_json=as_json)


def _check_first(train: list[Path], clean: list[Path], out: Path, fpr: float | None) -> None:
    """Refuse before all the work what would be refused after it.

    Training images do not serve as clean ones: the classifier is surer of them than of others.

    Raises:
        InputError, OutputError: then.
    """
    check_output(out)
    if fpr is not None:
        nothing = np.empty(0)
        Calibration(
            fpr, "marginal", confidence=0.95, per_class=False, scores=nothing, predicted=nothing
        )
    both = {path.resolve() for path in train} & {path.resolve() for path in clean}
    if both:
        message = (
            f"expected clean images that the classifier was not trained on, got {min(both)} for "
            "--train and --clean; name others, or the promised rate will not be kept"
        )
        raise InputError(message)


def _bandwidth(text: str) -> float | BandwidthRule:
    if text in ("likelihood", "likelihood-per-class"):
        return text  # type: ignore[return-value]  # one of the two
    try:
        return float(text)
    except ValueError as error:
        message = (
            f"expected a number, likelihood or likelihood-per-class as bandwidth, got {text!r}; "
            "correct it"
        )
        raise InputError(message) from error


def _watched(paths: list[Path], form: inputs.Format) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, with a bar."""
    with progress_bars() as bars:
        task = bars.add_task("reading and fitting", total=inputs.count(paths, form))
        for images, labels in inputs.batches(paths, form):
            yield images, labels
            bars.advance(task, len(images))


def _clean_images(
    paths: list[Path], form: inputs.Format, *, labelled: bool
) -> tuple[Tensor, Tensor | None]:
    if labelled:
        return inputs.load_labelled(paths, form)
    return inputs.load(paths, replace(form, labels_key=None))


def _teach(
    detector: Detector,
    clean: tuple[Tensor, Tensor | None],
    attacks: list[GradientAttack],
    noise: list[float],
    fpr: float | None,
) -> None:
    """Fit the combiner and, where a rate is given, calibrate on the other half of the images."""
    images, labels = clean
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(detector.seed))
    taught, held = order.tensor_split(2) if fpr is not None else (order, order[:0])
    noisy = [gaussian_noise(images[taught], sigma) for sigma in noise]
    with progress_bars() as bars:
        bars.add_task("teaching the combiner", total=None)
        detector.fit_combiner(
            images[taught],
            noisy=torch.cat(noisy) if noisy else None,
            labels=None if labels is None else labels[taught],
            attacks=attacks,
        )
        if fpr is not None:
            bars.add_task("calibrating", total=None)
            detector.calibrate(images[held], fpr)


def _report(detector: Detector, out: Path, *, as_json: bool) -> None:
    facts = {**described(out), "training_accuracy": detector.accuracy_}
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, out, facts)
    console.print(str(detector.explain_plan()), markup=False)
    console.print(f"The classifier is right on {detector.accuracy_:.1%} of the training images.")
