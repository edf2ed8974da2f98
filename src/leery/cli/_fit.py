"""``leery fit``: a detector for the user's classifier."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from leery import inputs
from leery._checks import Bounds, check_bound_values
from leery._files import check_output
from leery._progress import progress_bars
from leery.attacks import HARMLESS, GradientAttack, Harmless, gaussian_noise
from leery.cli._describe import described, print_description
from leery.cli._groups import (
    ClassifierOptions,
    InputOptions,
    own_metrics,
    with_classes,
    with_groups,
)
from leery.cli._options import (
    Attacks,
    Force,
    Json,
    NoHarmless,
    OwnMetrics,
    RightOnly,
    Seed,
    check_replaceable,
    parse_attacks,
    print_json,
    stoppable,
)
from leery.detector import Calibration, Detector
from leery.errors import InputError
from leery.metrics import METRICS, PAPER_METRICS, BandwidthRule

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
        "attacks. They teach the combiner and, with --fpr, set the threshold. Can be repeated.",
        show_default=False,
    ),
]

_Out = Annotated[Path, typer.Option(help="The file of the detector.")]

_Noise = Annotated[
    list[float] | None,
    typer.Option(
        help="The standard deviation of Gaussian noise that must not be flagged either, in pixels. "
        "Can be repeated.",
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
    typer.Option(
        help="Bandwidth of the kernel density: a number, likelihood or likelihood-per-class."
    ),
]

_References = Annotated[
    int | None,
    typer.Option(help="Maximum number of training images kept per class.", show_default=False),
]

_Half = Annotated[
    bool, typer.Option("--half", help="Keep the training features in half precision.")
]

_Bounds = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Lowest and highest pixel value, or such a pair for each channel: l1,h1,l2,h2,... By "
        "default 0,1 if the training images lie in it.",
        show_default=False,
    ),
]

_TrustOutputs = Annotated[
    bool,
    typer.Option(
        "--trust-outputs", help="Take outputs for logits even if they look like probabilities."
    ),
]


@dataclass(frozen=True)
class _Teaching:
    """How the combiner is taught and the threshold is set.

    Attributes:
        attacks: that the combiner learns from.
        noise: standard deviations of harmless noise.
        fpr: the false-alarm rate; None for no threshold.
        harmless: changes on which the promise is kept too; None for the default.
        right_only: whether images that the classifier gets wrong are left out.
    """

    attacks: tuple[GradientAttack, ...]
    noise: tuple[float, ...]
    fpr: float | None
    harmless: Mapping[str, Harmless] | None
    right_only: bool

    @property
    def labelled(self) -> bool:
        """Whether the clean images need labels."""
        return bool(self.attacks) or self.right_only


@with_groups
def fit(
    classifier: ClassifierOptions,
    reading: InputOptions,
    train: _Train,
    clean: _Clean,
    *,
    out: _Out = Path("guard.leery"),
    attack: Attacks = None,
    noise: _Noise = None,
    fpr: _Fpr = None,
    right_only: RightOnly = False,
    no_harmless: NoHarmless = False,
    layer: _Layer = None,
    passes: _Passes = 50,
    metrics: _Metrics = _ALL_SIX,
    metric: OwnMetrics = None,
    bandwidth: _Bandwidth = "likelihood",
    references: _References = None,
    half: _Half = False,
    bounds: _Bounds = None,
    trust_outputs: _TrustOutputs = False,
    seed: Seed = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Fit a detector to a classifier and its clean training images, and write it to a file.

    With --attack the combiner learns from adversarial images (logistic regression); without, from
    clean images alone (conformal p-values). With --fpr the detector is ready to give verdicts.

    Examples:
      leery fit --model net:make --weights net.pt --train train/ --clean held-out/ --fpr 0.01
      leery fit --model net:make --train train.npz --clean held-out.npz --attack pgd:0.1 --noise 0.1
    """
    attacks = parse_attacks(attack)
    teaching = _Teaching(
        tuple(attacks.values()),
        tuple(noise or ()),
        fpr,
        {} if no_harmless else None,
        right_only,
    )
    form = reading.format()
    _check_first(train, clean, out, teaching, form, force=force)
    detector = Detector(
        classifier.load(),
        feature_layer=layer,
        passes=passes,
        seed=seed,
        metrics=[*metrics.split(","), *own_metrics(metric)],
        bandwidth=_bandwidth(bandwidth),
        references=references,
        precision="float16" if half else "float32",
        combiner="logistic" if attacks else "conformal",
        bounds=_pixel_bounds(bounds),
        trust_outputs=trust_outputs,
    )
    classifier.check_repeatable(detector.model)
    with stoppable("nothing was written"):
        form = with_classes(detector.model, train, form)
        detector.fit(_watched(train, form))
        form = replace(form, shape=detector.inputs_.shape, dtype=detector.inputs_.dtype)
        _teach(detector, clean, form, teaching)
        detector.save(out)
    _report(detector, out, as_json=as_json)


def _check_first(
    train: list[Path],
    clean: list[Path],
    out: Path,
    teaching: _Teaching,
    form: inputs.Format,
    *,
    force: bool,
) -> None:
    """Refuse before all the work what would be refused after it.

    Training images do not serve as clean ones: the classifier is surer of them than of others.

    Raises:
        InputError, OutputError: then.
    """
    check_output(out)
    check_replaceable(out, force=force)
    both = {path.resolve() for path in train} & {path.resolve() for path in clean}
    if both:
        message = (
            f"expected clean images that the classifier was not trained on, got {min(both)} for "
            "--train and --clean; name others, or the promised rate will not be kept"
        )
        raise InputError(message)
    inputs.count(train, form)
    count = inputs.count(clean, form)
    if teaching.fpr is not None:
        nothing = np.empty(0)
        promised = Calibration(teaching.fpr, "marginal", 0.95, False, nothing, nothing)
        promised.check_count(count // 2)


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


def _pixel_bounds(text: str | None) -> Bounds | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    return check_bound_values(pairs[0] if len(numbers) == 2 else pairs)  # noqa: PLR2004 - a pair


def _teach(detector: Detector, paths: list[Path], form: inputs.Format, teaching: _Teaching) -> None:
    """Teach the combiner and, where a rate is given, set the threshold."""
    labels: Tensor | None = None
    if teaching.labelled:
        images, labels = inputs.load_labelled(paths, form)
    else:
        images, _ = inputs.load(paths, replace(form, labels_key=None))
    truth = labels if teaching.right_only else None
    bounds = detector.inputs_.bounds or (0.0, 1.0)
    noises: dict[str, Harmless] = {
        f"noise {sigma:g}": partial(_noisy, sigma) for sigma in teaching.noise
    }
    harmless = teaching.harmless
    if harmless is None and detector.inputs_.are_images:
        harmless = HARMLESS
    with progress_bars() as bars:
        if teaching.fpr is not None and not teaching.attacks:
            bars.add_task("teaching the combiner and calibrating", total=None)
            detector.calibrate(
                images, truth, fpr=teaching.fpr, harmless={**(harmless or {}), **noises}
            )
            return
        bars.add_task("teaching the combiner", total=None)
        taught, held = _divided(len(images), teaching.fpr, detector)
        noisy = [change(images[taught], 0, bounds) for change in noises.values()]
        detector.fit_combiner(
            images[taught],
            None if labels is None else labels[taught],
            noisy=torch.cat(noisy) if noisy else None,
            attacks=teaching.attacks,
        )
        if teaching.fpr is not None:
            bars.add_task("calibrating", total=None)
            detector.calibrate(
                images[held],
                None if truth is None else truth[held],
                fpr=teaching.fpr,
                harmless={**(harmless or {}), **noises},
            )


def _noisy(sigma: float, images: Tensor, seed: int, bounds: Bounds) -> Tensor:
    return gaussian_noise(images, sigma, seed=seed, bounds=bounds)


def _divided(count: int, fpr: float | None, detector: Detector) -> tuple[Tensor, Tensor]:
    """Which images teach the combiner, and which set the threshold."""
    generator = torch.Generator().manual_seed(detector.seed)
    order = torch.randperm(count, generator=generator)
    if fpr is None:
        return order, order[:0]
    first, second = order.tensor_split(2)
    return first, second


def _report(detector: Detector, out: Path, *, as_json: bool) -> None:
    facts = {**described(out), "training_accuracy": detector.accuracy_}
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, out, facts)
    console.print(str(detector.explain_plan()), markup=False)
    console.print(f"The classifier is right on {detector.accuracy_:.1%} of the training images.")
