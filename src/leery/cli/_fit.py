"""``leery fit``: a detector for the user's classifier."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer
from rich.console import Console

import leery
from leery._files import check_output
from leery._progress import progress_bars
from leery.cli._describe import described, print_description
from leery.cli._groups import (
    ClassifierOptions,
    InputOptions,
    ShareOptions,
    with_classes,
    with_groups,
)
from leery.cli._options import (
    Attacks,
    BoundsOption,
    Force,
    Json,
    NoHarmless,
    OwnMetrics,
    RightOnly,
    Seed,
    check_replaceable,
    parse_attacks,
    parse_bounds,
    print_json,
    stoppable,
)
from leery.errors import InputError
from leery.names import METRICS, PAPER_METRICS, RECOMMENDED_METRICS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from leery._checks import Bounds
    from leery.attacks import BoundedAttack, Harmless
    from leery.combiners import CombinerName
    from leery.detector import Detector
    from leery.inputs import Format
    from leery.metrics import BandwidthRule, Metric
    from leery.tasks import Shard

__all__ = ["fit"]

_Train = Annotated[
    list[Path],
    typer.Option(
        help="Labelled clean training images: a folder with one subfolder per class, .npz or "
        ".parquet. Can be repeated.",
        show_default=False,
    ),
]

_Clean = Annotated[
    list[Path],
    typer.Option(
        help="Clean images that the classifier was not trained on; --attack and --right-only need "
        "their labels. They fit the combiner and, with --fpr, set the threshold. Can be repeated.",
        show_default=False,
    ),
]

_Out = Annotated[Path, typer.Option(help="Output file for the detector.")]

_Noise = Annotated[
    list[float] | None,
    typer.Option(
        help="Standard deviation of Gaussian noise that counts as harmless, in units of pixel "
        "values. Can be repeated.",
        show_default=False,
    ),
]

_Fpr = Annotated[
    float | None,
    typer.Option(
        help="Calibrate for this false-alarm rate with one half of the clean images; the other "
        "half fits the combiner.",
        show_default=False,
    ),
]

_Layer = Annotated[
    str | None,
    typer.Option(
        help="Feature layer: SUBMODULE (its output) or 'input of SUBMODULE'; by default the input "
        "of the linear layer that gives the logits.",
        show_default=False,
    ),
]

_Passes = Annotated[int, typer.Option(help="Number of Monte-Carlo dropout passes.")]

_Metrics = Annotated[
    str | None,
    typer.Option(
        help=f"Metrics, comma-separated, out of {', '.join(METRICS)}; 'paper' is the six of "
        f"arXiv:2012.06390. For images the default is {', '.join(RECOMMENDED_METRICS)}.",
        show_default=False,
    ),
]

_NoAuxiliary = Annotated[
    bool,
    typer.Option(
        "--no-auxiliary",
        help="Do not train the auxiliary network, which finds most attacks; training takes "
        "seconds to twenty minutes on a CPU.",
    ),
]

_Bandwidth = Annotated[
    str,
    typer.Option(
        help="Bandwidth of the kernel density: a number, likelihood or likelihood-per-class."
    ),
]

_References = Annotated[
    int | None,
    typer.Option(
        help="Maximum number of training images per class that the kernel density keeps; by "
        "default all.",
        show_default=False,
    ),
]

_Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Resume an interrupted fit; networks that it has already trained are reused.",
    ),
]

_Half = Annotated[
    bool, typer.Option("--half", help="Store the kept training features in half precision.")
]

_TrustOutputs = Annotated[
    bool,
    typer.Option(
        "--trust-outputs", help="Treat outputs as logits even if they look like probabilities."
    ),
]


@dataclass(frozen=True, kw_only=True)
class _MetricOptions:
    """What is measured, and how."""

    title: ClassVar[str] = "Metrics"

    layer: _Layer = None
    passes: _Passes = 50
    metrics: _Metrics = None
    no_auxiliary: _NoAuxiliary = False
    metric: OwnMetrics = None
    bandwidth: _Bandwidth = "likelihood"
    references: _References = None
    half: _Half = False
    bounds: BoundsOption = None
    trust_outputs: _TrustOutputs = False
    seed: Seed = 0

    def detector(
        self, model: nn.Module, combiner: CombinerName, example: Tensor | None
    ) -> tuple[Detector, str | None]:
        """A detector with these settings, not yet fitted, and what its metrics leave out.

        Args:
            model: the classifier.
            combiner: its name.
            example: a training image; None if none can be read.

        Raises:
            InputError: when one is outside its range.
        """
        metrics, left_out = self._chosen(model, example)
        detector = leery.Detector(
            model,
            feature_layer=self.layer,
            passes=self.passes,
            seed=self.seed,
            metrics=metrics,
            bandwidth=_bandwidth(self.bandwidth),
            references=self.references,
            precision="float16" if self.half else "float32",
            combiner=combiner,
            bounds=parse_bounds(self.bounds),
            trust_outputs=self.trust_outputs,
        )
        return detector, left_out

    def _chosen(
        self, model: nn.Module, example: Tensor | None
    ) -> tuple[list[str | Metric] | None, str | None]:
        """The metrics that were named; None for just those recommended for the inputs."""
        own = leery.metrics.load_metrics(self.metric)
        if self.metrics is None and not own and not self.no_auxiliary:
            return None, None
        names: tuple[str, ...] = RECOMMENDED_METRICS
        left_out = None
        if self.metrics is not None:
            named = self.metrics.replace("paper", ",".join(PAPER_METRICS))
            names = tuple(named.split(","))
        elif example is not None:
            names, left_out = leery.detector.recommended_metrics(
                model, example.unsqueeze(0), self.passes
            )
        # A metric of the user's own stands for the usual one of its name.
        replaced = {metric.name for metric in own}
        if self.no_auxiliary:
            replaced.add(leery.metrics.AuxiliaryAgreement.name)
        return [*(name for name in names if name not in replaced), *own], left_out


@dataclass(frozen=True, kw_only=True)
class _CombinerOptions:
    """How the combiner is fitted and the threshold is set."""

    title: ClassVar[str] = "Combiner and threshold"

    attack: Attacks = None
    noise: _Noise = None
    fpr: _Fpr = None
    right_only: RightOnly = False
    no_harmless: NoHarmless = False

    @property
    def labelled(self) -> bool:
        """Whether the clean images need labels."""
        return bool(self.attack) or self.right_only

    def harmless(self, detector: Detector) -> Mapping[str, Harmless]:
        """The changes on which the promise is kept too: the usual ones, and noise."""
        usual = (
            leery.attacks.HARMLESS if detector.inputs_.are_images and not self.no_harmless else {}
        )
        return {**usual, **self.noises}

    @property
    def noises(self) -> Mapping[str, Harmless]:
        """The noise that was asked for, by name."""
        return {f"noise {sigma:g}": partial(_noisy, sigma) for sigma in self.noise or ()}


@with_groups
def fit(
    classifier: ClassifierOptions,
    reading: InputOptions,
    measuring: _MetricOptions,
    combining: _CombinerOptions,
    sharing: ShareOptions,
    train: _Train,
    clean: _Clean,
    *,
    out: _Out = Path("guard.leery"),
    force: Force = False,
    resume: _Resume = False,
    as_json: Json = False,
) -> None:
    """Fit a detector to a classifier and its clean training images, and write it to a file.

    With --attack the combiner learns from adversarial images (logistic regression); without it,
    from clean images alone (weighted p-values). With --fpr the detector is calibrated too, so
    that it can give verdicts.

    Examples:
      leery fit --model net:make --train train/ --clean held-out/ --fpr 0.01 --right-only
      leery fit --model net:make --train train.npz --clean held-out.npz --attack pgd:0.1 --noise 0.1
      leery fit --model net:make --train train/ --clean held-out/ --fpr 0.01 --shard 1/3
      leery fit --model net:make --train train/ --clean held-out/ --fpr 0.01 --merge
    """
    attacks = parse_attacks(combining.attack)
    form = reading.format()
    _check_first(train, clean, out, combining.fpr, form, labelled=combining.labelled, force=force)
    shard = sharing.chosen(resume=resume)
    folder = leery.tasks.parts_folder(out)
    making = _Making(classifier, measuring, "logistic" if attacks else "conformal", train, form)
    detector, left_out = making.detector_and_rest()
    classifier.check_repeatable(detector.model)
    resumed = resume or shard is not None or sharing.merge
    with (
        stoppable(f"no detector was written; {sharing.advice(shard)}"),
        leery.training.FitParts(folder, resume=resumed, others=sharing.parts or ()) as parts,
    ):
        form = with_classes(detector.model, train, form)
        start = time.monotonic()
        fitting = leery.detector.FileFit(detector, train, form, parts)
        make = partial(leery.detector.file_fit_of, making, train, form, folder)
        sharing.run(fitting, make, detector.model, shard, title="fitting", resume=resume)
        if shard is not None:
            _report_shard(shard, out, as_json=as_json)
            return
        seconds = time.monotonic() - start
        form = replace(form, shape=detector.inputs_.shape, dtype=detector.inputs_.dtype)
        _fit_combiner(detector, clean, form, combining, list(attacks.values()))
        detector.save(out)
        fitting.discard()
        parts.discard()
    _report(detector, out, seconds, left_out or detector.left_out_, as_json=as_json)


@dataclass(frozen=True)
class _Making:
    """Makes the unfitted detector, in other processes too."""

    classifier: ClassifierOptions
    measuring: _MetricOptions
    combiner: CombinerName
    train: list[Path]
    form: Format

    def __call__(self) -> Detector:
        return self.detector_and_rest()[0]

    def detector_and_rest(self) -> tuple[Detector, str | None]:
        """The detector, and what its metrics leave out."""
        example = next(iter(leery.inputs.read(self.train, self.form))).image
        return self.measuring.detector(self.classifier.load(), self.combiner, example)


def _check_first(
    train: list[Path],
    clean: list[Path],
    out: Path,
    fpr: float | None,
    form: Format,
    *,
    labelled: bool,
    force: bool,
) -> None:
    """Refuse before all the work what would be refused after it.

    Training images do not serve as clean ones: the classifier is surer of them than of others.

    Raises:
        InputError, OutputError: when the options or the files are refused.
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
    leery.inputs.count(train, form)
    count = leery.inputs.count(clean, form)
    if fpr is not None:
        import numpy as np

        nothing = np.empty(0)
        promised = leery.calibration.Calibration(fpr, "marginal", 0.95, False, nothing, nothing)
        promised.check_count(count, halved=True)
    if labelled and next(iter(leery.inputs.read(clean, form))).label is None:
        message = (
            "expected labelled clean images for --attack and --right-only, got some without; use "
            f"a folder for each class, or an array or column {form.labels_key!r}"
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


def _fit_combiner(
    detector: Detector,
    paths: list[Path],
    form: Format,
    combining: _CombinerOptions,
    attacks: list[BoundedAttack],
) -> None:
    """Fit the combiner and, where a rate is given, set the threshold."""
    import torch

    labels: Tensor | None = None
    if combining.labelled:
        images, labels = leery.inputs.load_labelled(paths, form)
    else:
        images, _ = leery.inputs.load(paths, replace(form, labels_key=None))
    fitted_to, held = images, images
    fitted_labels = held_labels = labels
    if combining.fpr is not None and attacks:
        (fitted_to, fitted_labels), (held, held_labels) = leery.inputs.halves(
            images, labels, seed=detector.seed
        )
    with progress_bars() as bars:
        if combining.fpr is None or attacks:
            bars.add_task("fitting the combiner", total=None)
            bounds = detector.inputs_.bounds or (0.0, 1.0)
            noisy = [change(fitted_to, 0, bounds) for change in combining.noises.values()]
            detector.fit_combiner(
                fitted_to, fitted_labels, noisy=torch.cat(noisy) if noisy else None, attacks=attacks
            )
        if combining.fpr is not None:
            bars.add_task("calibrating", total=None)
            detector.calibrate(
                held,
                held_labels if combining.right_only else None,
                fpr=combining.fpr,
                harmless=combining.harmless(detector),
            )


def _noisy(sigma: float, images: Tensor, seed: int, bounds: Bounds) -> Tensor:
    return leery.attacks.gaussian_noise(images, sigma, seed=seed, bounds=bounds)


def _report_shard(shard: Shard, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json({"shard": str(shard), "out": str(out)})
    else:
        said = f"Shard {shard} is done; once all shards are, --merge writes the detector."
        Console(highlight=False).print(said)


def _report(
    detector: Detector, out: Path, seconds: float, left_out: str | None, *, as_json: bool
) -> None:
    facts = {
        **described(out),
        "training_accuracy": detector.accuracy_,
        "agreement": detector.agreement_,
        "left_out": left_out,
    }
    if as_json:
        print_json(facts)
        return
    console = Console(highlight=False)
    print_description(console, out, facts)
    plan = detector.explain_plan()
    if plan.stochastic:
        console.print(str(plan), markup=False)
    agreement = detector.metrics_.get(leery.metrics.AuxiliaryAgreement.name)
    if isinstance(agreement, leery.metrics.AuxiliaryAgreement) and not agreement.given:
        console.print(
            f"The fit took {seconds:.0f} s; --no-auxiliary leaves the auxiliary network out."
        )
    if detector.agreement_ is not None:
        console.print(
            f"The auxiliary network agrees with the classifier on {detector.agreement_:.1%} of the "
            "clean images; the less it agrees, the fewer attacks are found."
        )
    if left_out:
        console.print(left_out, markup=False)
    console.print(f"The classifier is right on {detector.accuracy_:.1%} of the training images.")
