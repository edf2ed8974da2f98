"""``leery calibrate``: another false-alarm rate, or other clean images, without a new fit."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from leery import inputs
from leery._files import check_output
from leery.cli._describe import described, print_description
from leery.cli._model import Model, Weights, load_model
from leery.cli._options import (
    ChannelsOption,
    Guard,
    ImagesKey,
    Json,
    Resize,
    image_format,
    print_json,
    stoppable,
)
from leery.detector import Detector, Promise

__all__ = ["calibrate"]

_Clean = Annotated[
    list[Path],
    typer.Option(
        help="Clean images that neither fit nor combiner has seen. Can be repeated.",
        show_default=False,
    ),
]

_Pac = Annotated[
    bool,
    typer.Option(
        "--pac",
        help="Promise the rate for this very set of images, with --confidence, and not only on "
        "average over sets.",
    ),
]

_Confidence = Annotated[float, typer.Option(help="Of the promise of --pac.")]

_PerClass = Annotated[
    bool, typer.Option("--per-class", help="Promise the rate in each predicted class.")
]

_Out = Annotated[
    Path | None,
    typer.Option(help="Another file; by default the detector's own.", show_default=False),
]


def calibrate(
    guard: Guard,
    model: Model,
    clean: _Clean,
    *,
    fpr: Annotated[float, typer.Option(help="The false-alarm rate, in (0, 1).")] = 0.05,
    pac: _Pac = False,
    confidence: _Confidence = 0.95,
    per_class: _PerClass = False,
    out: _Out = None,
    weights: Weights = None,
    resize: Resize = False,
    channels: ChannelsOption = "first",
    images_key: ImagesKey = "images",
    as_json: Json = False,
) -> None:
    """Choose the threshold so that at most a share of clean images is flagged.

    Refuses a rate that so few images cannot support, and says how many are needed.

    Examples:
      leery calibrate guard.leery --model net:make --clean held/ --fpr 0.01
      leery calibrate guard.leery --model net:make --clean held.npz --fpr 0.05 --pac --per-class
    """
    detector = Detector.load(guard, load_model(model, weights))
    form = image_format(channels, images_key, None, shape=detector.inputs_[0], resize=resize)
    check_output(out or guard)
    promise: Promise = "pac" if pac else "marginal"
    with stoppable("the detector is as it was"):
        images, _ = inputs.load(clean, form)
        detector.calibrate(images, fpr, promise, confidence=confidence, per_class=per_class)
        detector.save(out or guard)
    facts = described(out or guard)
    if as_json:
        print_json(facts)
    else:
        print_description(Console(highlight=False), out or guard, facts)
