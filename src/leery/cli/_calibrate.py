"""``leery calibrate``: another false-alarm rate, or other clean images, without a new fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    check_replaceable,
    print_json,
    stoppable,
)

if TYPE_CHECKING:
    from leery.calibration import Promise

__all__ = ["calibrate"]

_Clean = Annotated[
    list[Path],
    typer.Option(
        help="Clean calibration images; those that were used to fit the metrics or the combiner "
        "are left out. Can be repeated.",
        show_default=False,
    ),
]

_Pac = Annotated[
    bool,
    typer.Option(
        "--pac",
        help="Promise the rate for this calibration set, with probability --confidence, instead of "
        "only on average over such sets.",
    ),
]

_Confidence = Annotated[float, typer.Option(help="The confidence of --pac, in (0, 1).")]

_PerClass = Annotated[
    bool,
    typer.Option("--per-class", help="Promise the rate within each predicted class."),
]

_Out = Annotated[
    Path | None,
    typer.Option(help="Output file; by default the detector file itself.", show_default=False),
]


@with_groups
def calibrate(
    file: DetectorFile,
    classifier: ClassifierOptions,
    reading: InputOptions,
    clean: _Clean,
    *,
    fpr: Annotated[float, typer.Option(help="The false-alarm rate, in (0, 1).")] = 0.05,
    pac: _Pac = False,
    confidence: _Confidence = 0.95,
    per_class: _PerClass = False,
    right_only: RightOnly = False,
    no_harmless: NoHarmless = False,
    out: _Out = None,
    force: Force = False,
    metric: OwnMetrics = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Choose the threshold so that at most the given share of clean images is flagged.

    Too few images for the rate are refused, with the number that is needed. A detector
    that is calibrated already is replaced only with --force.

    Examples:
      leery calibrate guard.leery --model net:make --clean other/ --fpr 0.01 --out new.leery
      leery calibrate guard.leery --model net:make --clean other.npz --pac --per-class --force
    """
    target = out or file
    if out is not None or "calibration" in leery.detector.describe(file):
        check_replaceable(target, force=force)
    check_output(target)
    metrics = leery.metrics.load_metrics(metric)
    detector = leery.Detector.load(file, classifier.load(), metrics=metrics)
    known = detector.inputs_
    form = reading.format(shape=known.shape, dtype=known.dtype, resize=resize)
    promise: Promise = "pac" if pac else "marginal"
    with stoppable("the detector is as it was"):
        images, labels = clean_images(
            clean, replace(form, classes=detector.classes_), labelled=right_only
        )
        earlier = detector.calibration_
        detector.calibrate(
            images,
            labels,
            fpr=fpr,
            promise=promise,
            confidence=confidence,
            per_class=per_class,
            harmless={} if no_harmless else None,
        )
        detector.save(target)
    assert detector.calibration_ is not None
    warn_of_lost_promises(earlier, detector.calibration_)
    facts = described(target)
    if as_json:
        print_json(facts)
    else:
        print_description(Console(highlight=False), target, facts)
