"""``leery evaluate``: how well a detector finds attacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer
from rich.console import Console
from rich.table import Table

import leery
from leery._progress import progress_bars
from leery.cli._groups import ClassifierOptions, InputOptions, with_groups
from leery.cli._options import (
    Attacks,
    BoundsOption,
    DetectorFile,
    Json,
    OwnMetrics,
    Resize,
    Seed,
    no_attack,
    parse_attacks,
    parse_bounds,
    plain_text,
    print_json,
    stoppable,
)
from leery.errors import InputError
from leery.names import BASELINES, IMAGE_BASELINES

if TYPE_CHECKING:
    import pandas as pd
    from rich.progress import Progress
    from torch import Tensor

    from leery._checks import Bounds
    from leery.baselines import MetricBaseline
    from leery.detector import Detector
    from leery.evaluation import AdaptiveEvaluation
    from leery.inputs import Format

__all__ = ["evaluate"]

_LOG_WIDTH = 140
"""Smallest width of the output in characters, if standard output is not a terminal."""

_Data = Annotated[
    list[Path],
    typer.Option(
        help="Labelled clean images that the detector has not seen. Can be repeated.",
        show_default=False,
    ),
]

_Noise = Annotated[
    float,
    typer.Option(
        help="Standard deviation of Gaussian noise, 0 for none. Noisy images count as not "
        "adversarial."
    ),
]


_Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines",
        help=f"Compare with other detectors on the same images: {', '.join(BASELINES)}; for images "
        f"also {', '.join(IMAGE_BASELINES)}. Needs --train.",
    ),
]

_Train = Annotated[
    list[Path] | None,
    typer.Option(
        help="Labelled training images for the baselines. Can be repeated.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Attacker:
    """An attacker who knows the detector."""

    title: ClassVar[str] = "Attacker who knows the detector"

    adaptive: Annotated[
        float | None,
        typer.Option(
            "--adaptive",
            metavar="EPSILON",
            help="Attack classifier and detector together, with changes up to this distance, in "
            "units of the pixel values. No --attack is needed then.",
            show_default=False,
        ),
    ] = None
    norm: Annotated[
        str, typer.Option("--adaptive-norm", help="Norm of the distance: linf or l2.")
    ] = "linf"
    steps: Annotated[
        int,
        typer.Option(
            "--adaptive-steps",
            help="Number of steps; attacks towards a chosen class, transfer and feature matching "
            "take a fifth of them.",
        ),
    ] = 100
    restarts: Annotated[
        int, typer.Option("--adaptive-restarts", help="Number of runs of each attack.")
    ] = 1
    limit: Annotated[
        int,
        typer.Option(
            "--adaptive-images",
            help="Number of images to attack, the first that the classifier gets right.",
        ),
    ] = 100

    def run(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        limits: Bounds | None,
        seed: int,
        advance: Callable[[float], object],
    ) -> AdaptiveEvaluation | None:
        """What such an attacker achieves; None if that was not asked for."""
        if self.adaptive is None:
            return None
        return leery.evaluation.evaluate_adaptive(
            detector,
            images,
            labels,
            epsilon=self.adaptive,
            norm=self.norm,  # type: ignore[arg-type]  # refuses others
            steps=self.steps,
            restarts=self.restarts,
            limit=self.limit,
            bounds=limits,
            seed=seed,
            advance=advance,
        )


@with_groups
def evaluate(
    file: DetectorFile,
    classifier: ClassifierOptions,
    reading: InputOptions,
    data: _Data,
    attacker: _Attacker,
    attack: Attacks = None,
    *,
    noise: _Noise = 0.0,
    bounds: BoundsOption = None,
    seed: Seed = 0,
    metric: OwnMetrics = None,
    baselines: _Baselines = False,
    train: _Train = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Attack clean images and measure how many of the adversarial versions are detected.

    The attacker of --attack knows the classifier but not the detector. One who knows both can
    usually evade it: --adaptive measures that.
    Results are shown for all adversarial images, then separately for those whose prediction changed
    and those whose prediction did not. For a calibrated detector, false alarms on clean and on
    harmlessly changed images are counted too.

    Examples:
      leery evaluate guard.leery --model net:make --data test.npz --attack pgd:0.1 --noise 0.1
      leery evaluate guard.leery --model net:make --data test/ --attack cw --baselines --train t/
      leery evaluate guard.leery --model net:make --data test.npz --adaptive 0.1
    """
    detector = leery.Detector.load(
        file, classifier.load(), metrics=leery.metrics.load_metrics(metric)
    )
    known = detector.inputs_
    form = reading.format(
        shape=known.shape, dtype=known.dtype, resize=resize, classes=detector.classes_
    )
    attacks, limits = parse_attacks(attack), parse_bounds(bounds)
    if not attacks and attacker.adaptive is None:
        raise no_attack()
    _check_together(baselines=baselines, train=bool(train))
    found = alarms = None
    with stoppable("nothing was written"), progress_bars() as bars:
        images, labels = leery.inputs.load_labelled(data, form)
        if attacks:
            bars.add_task("attacking and measuring", total=None)
            rivals = _fitted_baselines(detector, file, train, form) if baselines else {}
            found = leery.evaluation.evaluate(
                detector,
                images,
                labels,
                attacks=attacks,
                noise=noise,
                bounds=limits,
                seed=seed,
                baselines=rivals,
            )
            if detector.calibration_ is not None:
                alarms = leery.evaluation.false_alarms(
                    detector, images, labels, bounds=limits, seed=seed
                )
        known_by = attacker.run(detector, images, labels, limits, seed, _bar(bars))
    _show(found, alarms, known_by, as_json=as_json)


def _bar(bars: Progress) -> Callable[[float], object]:
    """A function that shows the completed fraction of the attacks on the detector."""
    task = bars.add_task("attacking classifier and detector, %", total=100, visible=False)
    return lambda share: bars.update(task, completed=round(100 * share), visible=True)


def _show(
    found: pd.DataFrame | None,
    alarms: pd.DataFrame | None,
    known_by: AdaptiveEvaluation | None,
    *,
    as_json: bool,
) -> None:
    """Print what was measured."""
    if as_json:
        tables = {"rows": found, "false_alarms": alarms}
        facts: dict[str, Any] = {
            name: table.to_dict(orient="records")
            for name, table in tables.items()
            if table is not None
        }
        if known_by is not None:
            facts["adaptive"] = {**asdict(known_by), "failed": known_by.signs.failed}
        print_json(facts)
        return
    console = _console()
    if found is not None:
        console.print(_table(found), _worst_case(found), _false_alarms(found, alarms), sep="\n")
    if known_by is not None:
        console.print(_adaptive(known_by))


def _adaptive(found: AdaptiveEvaluation) -> str:
    """What an attacker achieves who knows the detector, in sentences."""
    norm = {"linf": "L-infinity", "l2": "L2"}[found.norm]
    by = ", ".join(f"{name} {count}" for name, count in found.by.items()) or "none"
    growth = ", ".join(f"{share:.1%} after {steps}" for steps, share in found.found_after.items())
    failed = found.signs.failed
    text = [
        f"Attacks on classifier and detector together, {norm}, up to {found.steps} steps, "
        f"{found.restarts} run{'s' * (found.restarts != 1)}, on {found.images:,} images that "
        "the classifier gets right. An attack succeeds if the image is misclassified and not "
        "flagged.",
        f"First attack that succeeded: {by}.",
        *([f"Images evading the detector, by steps: {growth}."] if growth else []),
        f"Signs that the attack has failed: {', '.join(failed)}; the detector may be weaker than "
        "it looks."
        if failed
        else "Signs that the attack has failed: none.",
    ]
    if found.certified is not None:
        proved = found.certified.estimate
        text.append(f"Certified: no such attack can succeed on {proved:.1%} of the images.")
    share = found.evaded
    text.append(
        f"An attacker who knows the detector evaded it on {share.estimate:.1%} of the images that "
        f"the classifier gets right (95 % interval {share.low:.1%} to {share.high:.1%}) with "
        f"{norm} changes of at most {found.epsilon:g}; a stronger one may evade it on more."
    )
    return "\n".join(text)


def _check_together(*, baselines: bool, train: bool) -> None:
    """Raise if only one of the two options is given."""
    if baselines != train:
        message = (
            "expected --baselines and --train together, because baselines learn from training "
            "images, got one of them; add the other"
        )
        raise InputError(message)


def _fitted_baselines(
    detector: Detector, file: Path, train: list[Path] | None, form: Format
) -> dict[str, MetricBaseline]:
    """The baselines, with the settings of the detector, fitted to training images."""
    data = leery.inputs.load_labelled(train or [], form)
    settings = {
        "feature_layer": detector.feature_layer_,
        "bounds": detector.inputs_.bounds,
        "trust_outputs": leery.detector.describe(file)["settings"]["trust_outputs"],
    }
    images = data[0].ndim == 4 and data[0].is_floating_point()  # noqa: PLR2004 - images
    makers = leery.baselines.BASELINES
    return {
        name: makers[name](detector.model, **settings).fit(data)
        for name in (*BASELINES, *(IMAGE_BASELINES if images else ()))
    }


def _table(found: pd.DataFrame) -> Table:
    table = Table(title="The attacker knows the classifier and not the detector.")
    compared = found.detector.nunique() > 1
    calibrated = "found" in found
    table.add_column("attack, prediction", no_wrap=True)
    if compared:
        table.add_column("detector", no_wrap=True)
    # Beside the names of other detectors there is no room for intervals.
    heads = ["images", "AUC", "95 % interval", "TPR at 1 %", "at 5 %"]
    if compared:
        heads = ["images", "AUC", "at 1 %", "at 5 %"]
    for head in [*heads, "flagged"] if calibrated else heads:
        table.add_column(head, justify="right")
    words = {"all": "{}", "successful": "  changed", "failed": "  unchanged"}
    order = {name: place for place, name in enumerate(words)}
    rows = found.sort_values("positives", key=lambda column: column.map(order), kind="stable")
    for attack in found.attack.unique():
        for row in rows[rows.attack == attack].itertuples():
            if row.positives != "all" and row.success in (0, 1):
                continue
            interval = f"{row.auc_low:.3f}-{row.auc_high:.3f}"
            flagged = "" if not calibrated or row.found != row.found else f"{row.found:.1%}"
            table.add_row(
                plain_text(words[str(row.positives)].format(row.attack)),
                *([plain_text(str(row.detector))] if compared else []),
                f"{row.n_adversarial:,}",
                f"{row.auc:.3f}",
                *([] if compared else [interval]),
                f"{row.tpr_at_1_fpr:.1%}",
                f"{row.tpr_at_5_fpr:.1%}",
                *([flagged] if calibrated else []),
            )
    return table


def _worst_case(found: pd.DataFrame) -> str:
    """The worst attack, and the images on which every successful attack is found."""
    own = found[(found.detector == "detector") & (found.positives == "successful")]
    if own.empty:
        return "No attack succeeded."
    calibrated = "found" in found
    share = "found" if calibrated else "tpr_at_1_fpr"
    worst, row = own.loc[own[share].idxmin()], own.iloc[0]
    one = every = ""
    if calibrated:
        one = f" (95 % interval {worst.found_low:.1%} to {worst.found_high:.1%})"
        every = f" (95 % interval {row.every_attack_low:.1%} to {row.every_attack_high:.1%})"
    on_every = row["every_attack" if calibrated else "every_attack_at_1_fpr"]
    return (
        f"At {'the threshold' if calibrated else '1 % false alarms'}, the worst attack is "
        f"{worst.attack}: {worst[share]:.1%} of its {worst.n_adversarial:,} successful adversarial "
        f"images are flagged{one}. Among the images on which an attack succeeds, every successful "
        f"attack is flagged on {on_every:.1%}{every}."
    )


def _false_alarms(found: pd.DataFrame, alarms: pd.DataFrame | None) -> str:
    if alarms is None:
        return "Not calibrated: no verdicts."
    row, (clean, *others) = found.iloc[0], alarms[alarms["class"] == "all"].itertuples()
    noisy = (
        f"; among noisy versions: {row.false_alarms_noisy:.2%}"
        if "false_alarms_noisy" in row
        else ""
    )
    text = (
        f"False alarms among the {clean.images:,} clean images that the classifier gets right: "
        f"{clean.share:.2%} (95 % interval {clean.low:.2%} to {clean.high:.2%}){noisy}."
    )
    classes = alarms[(alarms["class"] != "all") & (alarms.change == "clean")]
    if clean.share:
        most = classes.loc[classes.share.idxmax()]
        text += (
            f" Highest rate in one class: {most.share:.2%} of {most.images:,} clean images (class "
            f"{most['class']})."
        )
    if not others:
        return f"{text} Harmless changes need floating-point images with known bounds."
    most = max(others, key=lambda other: other.share)
    return f"{text} Highest rate under a harmless change: {most.share:.2%} ({most.change})."


def _console() -> Console:
    """Standard output; where it is no terminal, with room for every column."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _LOG_WIDTH)
    return console
