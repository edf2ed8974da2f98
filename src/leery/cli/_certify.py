"""``leery certify``: proofs that every misclassified image within epsilon is flagged."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import leery
from leery._files import make_folder, write_atomically
from leery._progress import progress_bars
from leery.cli._certify_train import train_and_add
from leery.cli._describe import training_of
from leery.cli._groups import ClassifierOptions, InputOptions, with_groups
from leery.cli._options import (
    DetectorFile,
    Json,
    OwnMetrics,
    Resize,
    plain_values,
    print_json,
    stoppable,
)
from leery.errors import InputError, warn

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from leery.certify import Sentinel
    from leery.detector import Detector
    from leery.inputs import InputSpec

__all__ = ["certify"]

NOT_COVERED = (
    "Not covered: changes that are small only in another norm, such as L2; rotations, patches and "
    "other unrestricted changes; L-infinity changes above epsilon; pixels outside the bounds. "
    "Shares leave out images that the classifier gets wrong."
)
"""What every output says beside a certificate."""

_DEFAULT = "images"
"""Name of the command that is meant where the first argument is a detector file."""


class _Certify(TyperGroup):
    """Commands of which one needs no name, and --epsilon takes several numbers."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's own class
        """Add the name of the default command, and an --epsilon to each further number."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [_DEFAULT, *args]
        named: list[str] = []
        for place, text in enumerate(args):
            after = named[-2:-1] == ["--epsilon"] and _is_number(named[-1])
            if after and place and _is_number(text):
                named.append("--epsilon")
            named.append(text)
        return super().parse_args(ctx, named)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


certify = typer.Typer(
    cls=_Certify,
    no_args_is_help=True,
    help="Count the images for which it is proved that every misclassified image within L-infinity "
    "distance epsilon is flagged, or train the sentinel that this needs.",
    epilog="leery certify DETECTOR is short for leery certify images DETECTOR.",
)

_Data = Annotated[
    list[Path],
    typer.Option(
        help="Labelled clean images that were not used for training, fitting or calibration. "
        "Images used for calibration are not recognised as such. Can be repeated.",
        show_default=False,
    ),
]

_Epsilons = Annotated[
    list[float],
    typer.Option(
        "--epsilon",
        help="One or more L-infinity radii, in units of the pixel values.",
        show_default=False,
    ),
]

_Boxes = Annotated[
    int,
    typer.Option(
        help="Branch and bound: if the ball around an image cannot be certified as a whole, split "
        "it, with at most this many unproved boxes per image at a time. 1: no splitting. Values "
        "above 1 are slower. The radii and 'cannot alarm' never use splitting."
    ),
]

_Folder = Annotated[
    Path | None,
    typer.Option(
        help="Output folder for a row per image (csv), the shares (json) and a figure (svg, only "
        "with the extra 'study'), which replace earlier ones; by default nothing is written.",
        show_default=False,
    ),
]


@with_groups
def images(
    file: DetectorFile,
    classifier: ClassifierOptions,
    reading: InputOptions,
    data: _Data,
    epsilon: _Epsilons,
    *,
    boxes: _Boxes = 1,
    out: _Folder = None,
    metric: OwnMetrics = None,
    resize: Resize = False,
    as_json: Json = False,
) -> None:
    """Count the images that are certified: within epsilon, every misclassified image is flagged.

    An image is certified if it is proved that every image within L-infinity distance epsilon of it,
    inside the pixel bounds, is either classified correctly or flagged, whatever the attacker knows.
    Shares are of the images that the classifier gets right. The detector needs a sentinel, which
    leery certify train adds.

    Examples:
      leery certify certified.leery --model net:make --data test.npz --epsilon 0.1 0.2 0.3
      leery certify certified.leery --model net:make --data test/ --epsilon 0.1 --out shares/
    """
    detector = leery.Detector.load(
        file, classifier.load(), metrics=leery.metrics.load_metrics(metric)
    )
    sentinel = _sentinel(detector, file)
    known = detector.inputs_
    _check_below_range(epsilon, known)
    form = reading.format(
        shape=known.shape, dtype=known.dtype, resize=resize, classes=detector.classes_
    )
    with stoppable("nothing was written"), progress_bars() as bars:
        pixels, labels = leery.inputs.load_labelled(data, form)
        _check_unseen(detector, pixels)
        if out is not None:
            make_folder(out)
        task = bars.add_task("certifying", total=len(pixels))
        rows = leery.evaluation.certificates(
            sentinel,
            pixels,
            labels,
            epsilons=epsilon,
            boxes=boxes,
            advance=lambda count: bars.advance(task, count),
        )
    facts = _facts(rows, detector, sentinel)
    if out is not None:
        _write(out, rows, facts)
    if as_json:
        print_json(facts)
    else:
        Console(highlight=False).print(_table(facts), _sentences(facts), sep="\n")


certify.command(name=_DEFAULT)(images)
certify.command(name="train")(train_and_add)


def _check_below_range(epsilons: list[float], inputs: InputSpec) -> None:
    """Raise if the ball of an epsilon would be the whole pixel range.

    Raises:
        InputError: when it would.
    """
    import numpy as np

    # A detector with a sentinel has bounds: numbers, or pairs of them.
    ends = np.array(inputs.bounds, dtype=np.float64).reshape(-1, 2)
    span, largest = float((ends[:, 1] - ends[:, 0]).max()), max(epsilons)
    if largest >= span:
        message = (
            f"expected each epsilon below the pixel range {span:g}, got {largest:g}; give it in "
            "units of the pixel values"
        )
        raise InputError(message)


def _sentinel(detector: Detector, file: Path) -> Sentinel:
    """The detector's calibrated sentinel.

    Raises:
        InputError: when there is none.
    """
    sentinel = detector.sentinel_
    if sentinel is None or sentinel.calibration_ is None:
        what = "one without" if sentinel is None else "one that is not calibrated"
        message = (
            f"expected a detector with a calibrated sentinel at {file}, got {what}; run leery "
            "certify train"
        )
        raise InputError(message)
    return sentinel


def _check_unseen(detector: Detector, pixels: Tensor) -> None:
    """Refuse images that the detector has learned from.

    Raises:
        InputError: when there are more than a few.
    """
    from leery._checks import more_than_a_few

    seen = int(detector.has_seen(pixels).sum())
    if more_than_a_few(seen, len(pixels)):
        message = (
            f"expected test images that the detector has not learned from, got {seen} of "
            f"{len(pixels)} that it has; name others with --data"
        )
        raise InputError(message)


def _facts(rows: pd.DataFrame, detector: Detector, sentinel: Sentinel) -> dict[str, Any]:
    """What is printed and written beside the rows."""
    calibration = sentinel.calibration_
    assert calibration is not None
    right, training = rows[rows.right], sentinel.training_
    quantiles = right.linf_radius.quantile([0.1, 0.25, 0.5, 0.75, 0.9])
    return {
        "norm": "L-infinity",
        "images": len(rows),
        "right": len(right),
        "false_alarm_rate": detector.fpr_,
        "false_alarm_rate_of_the_sentinel": calibration.fpr,
        "shares": leery.evaluation.certified_shares(rows).to_dict(orient="records"),
        "training_of_the_sentinel": None if training is None else asdict(training),
        "radius_quantiles": {f"{place:g}": float(value) for place, value in quantiles.items()},
        "not_covered": NOT_COVERED,
    }


def _table(facts: dict[str, Any]) -> Table:
    shown = Table(
        title=f"Certified share of the {facts['right']:,} images that the classifier gets right",
        title_justify="left",
    )
    interval = ("95 % interval",)
    for head in ("L-infinity epsilon", "certified", *interval, "cannot alarm", *interval):
        shown.add_column(head, justify="right")
    found = {(row["what"], row["epsilon"]): row for row in facts["shares"]}
    for epsilon in [epsilon for what, epsilon in found if what == "certified"]:
        cells = [
            text
            for row in (found["certified", epsilon], found["cannot alarm", epsilon])
            for text in (f"{row['share']:.1%}", f"{row['low']:.1%} to {row['high']:.1%}")
        ]
        shown.add_row(f"{epsilon:g}", *cells)
    return shown


def _sentences(facts: dict[str, Any]) -> str:
    """What the table means, and what it does not cover."""
    alarms = facts["shares"][0]
    radii = facts["radius_quantiles"]
    training = facts["training_of_the_sentinel"]
    sentences = [
        "Certified: every image within epsilon (L-infinity) that the classifier gets wrong is "
        "flagged. Cannot alarm: the sentinel flags no image within epsilon that the classifier "
        "gets right (the metrics may still flag it).",
        f"Measured false alarms of the sentinel: {alarms['share']:.2%} (95 % interval "
        f"{alarms['low']:.2%} to {alarms['high']:.2%}). Promised: at most "
        f"{100 * facts['false_alarm_rate_of_the_sentinel']:.3g}%; of the whole detector at most "
        f"{100 * facts['false_alarm_rate']:.3g}%.",
        "Read the certified share together with the false-alarm rate: a detector that flags every "
        "image would certify every image.",
        *_flagged_themselves(facts),
        "Certified L-infinity radius, in units of the pixel values, without splitting: median "
        f"{radii['0.5']:.3g}, quartiles {radii['0.25']:.3g} and {radii['0.75']:.3g}; 0 where no "
        "radius is certified.",
    ]
    if training is not None:
        sentences.append(f"The sentinel was trained {training_of(training)}.")
    return "\n".join([*sentences, facts["not_covered"]])


def _flagged_themselves(facts: dict[str, Any]) -> list[str]:
    """A sentence on certified images that are false alarms, if there are any."""
    found = {(row["what"], row["epsilon"]): row["share"] for row in facts["shares"]}
    calm = {epsilon: share for (what, epsilon), share in found.items() if "not flagged" in what}
    if all(found["certified", epsilon] == share for epsilon, share in calm.items()):
        return []
    shares = ", ".join(f"{share:.1%} at {epsilon:g}" for epsilon, share in calm.items())
    return [
        "The threshold is negative, so that a certified image may be flagged itself. Certified and "
        f"not flagged: {shares}."
    ]


def _write(folder: Path, rows: pd.DataFrame, facts: dict[str, Any]) -> None:
    """The rows, the facts and, if matplotlib is installed, the figure."""
    write_atomically(folder / "certificates.csv", rows.to_csv(index_label="image"))
    content = json.dumps(plain_values(facts), indent=1, allow_nan=False) + "\n"
    write_atomically(folder / "certificates.json", content)
    if find_spec("matplotlib") is None:
        warn("no figure was written, because matplotlib is not installed (extra 'study')")
        return
    from leery.reporting import figure_style, to_svg

    with figure_style():
        write_atomically(folder / "certificates.svg", to_svg(_figure(rows, facts), "certificates"))


def _figure(rows: pd.DataFrame, facts: dict[str, Any]) -> Any:  # noqa: ANN401 - matplotlib is an extra
    """The share of images whose certified radius is at least epsilon."""
    import numpy as np

    from leery.reporting import INK, PALETTE, new_figure

    right = rows[rows.right]
    table = [row for row in facts["shares"] if row["what"] == "certified"]
    radii = np.sort(right.linf_radius[right.linf_radius > 0].to_numpy())
    last = max([*radii[-1:], *(row["epsilon"] for row in table)])
    remaining = np.arange(len(radii), -1, -1) / max(1, len(right))
    figure = new_figure(6.0, 3.6)
    axes = figure.subplots()
    axes.step(
        [0.0, *radii, last],
        [remaining[0], *remaining],
        where="pre",
        color=PALETTE["blue"],
        label="without splitting, any epsilon",
    )
    share, low, high = (np.array([row[end] for row in table]) for end in ("share", "low", "high"))
    axes.errorbar(
        [row["epsilon"] for row in table],
        share,
        [share - low, high - share],
        fmt="o",
        color=PALETTE["vermillion"],
        label="as in the table, with 95 % intervals",
    )
    axes.legend()
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, None)
    axes.set_xlabel("L-infinity epsilon, units of the pixels")
    axes.set_ylabel("share certified")
    rate = facts["false_alarm_rate_of_the_sentinel"]
    axes.set_title(
        "Certified: within L-infinity distance epsilon, every misclassified image is flagged\n"
        f"(false-alarm rate of the sentinel {100 * rate:.3g}%; not covered: other norms)",
        color=INK,
    )
    return figure
