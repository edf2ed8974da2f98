"""The figures as the report shows them: drawn, titled, described, with what there is to see."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import pandas as pd
from matplotlib.figure import Figure

from leery._files import make_folder, write_atomically
from leery.data import named
from leery.reporting import figure_style, themed, to_svg
from leery.study._report import _captions as say
from leery.study._report import _figures as draw
from leery.study._tables import TABLES, StudyResult, to_csv

__all__ = ["PLOTS", "Plot", "joint_success_plot", "plots"]


@dataclass(frozen=True)
class Plot:
    """A figure of the report.

    Attributes:
        name: of its files.
        title: which figure of the paper it is, and of what.
        alt: what it shows, for those who cannot see it.
        caption: what there is to see.
        svg: fit to stand inside the page.
        data: the path of its data, seen from the page.
        file: the path of its SVG, seen from the page.
    """

    name: str
    title: str
    alt: str
    caption: str
    svg: str
    data: str
    file: str

    def seen_from_above(self, folder: str) -> Self:
        """The same figure for a page in the folder above."""
        return replace(self, data=f"{folder}/{self.data}", file=f"{folder}/{self.file}")


@dataclass(frozen=True)
class _Spec:
    """How a figure is drawn and described, from one study."""

    name: str
    title: str
    alt: Callable[[StudyResult], str]
    caption: Callable[[StudyResult], str]
    draw: Callable[[StudyResult], Figure]
    table: str


def plots(study: StudyResult) -> dict[str, Plot]:
    """Draw every figure of a study that its images allow, and write the SVG files.

    Returns:
        By name.
    """
    found = {}
    make_folder(study.folder / "figures")
    for spec in _SPECS:
        if study.of_first_seed(spec.table).empty:
            continue
        with figure_style():
            svg = to_svg(spec.draw(study), spec.name)
        file = f"figures/{spec.name}.svg"
        write_atomically(study.folder / file, svg)
        found[spec.name] = Plot(
            name=f"{study.dataset}-{spec.name}",
            title=f"{study.dataset}: {spec.title}",
            alt=spec.alt(study),
            caption=spec.caption(study),
            svg=themed(svg, f"{study.dataset}-{spec.name}"),
            data=TABLES[spec.table].file,
            file=file,
        )
    return found


def joint_success_plot(studies: Sequence[StudyResult], folder: Path) -> Plot:
    """Figure 2 with a panel for each dataset; writes its SVG and its data."""
    name = "attack-success"
    table = pd.concat([study.of_first_seed(name) for study in studies])
    with figure_style():
        svg = to_svg(draw.attack_success_figure(table), name)
    make_folder(folder / "figures")
    write_atomically(folder / f"figures/{name}.svg", svg)
    write_atomically(folder / f"figures/{name}.csv", to_csv(table))
    return Plot(
        name=f"joint-{name}",
        title="How many labels each attack changes (the paper's figure 2)",
        alt=" ".join(say.success_alt(study) for study in studies),
        caption=say.success_caption(studies[0]),
        svg=themed(svg, f"joint-{name}"),
        data=f"figures/{name}.csv",
        file=f"figures/{name}.svg",
    )


def _constant(text: str) -> Callable[[StudyResult], str]:
    return lambda _: text


_SPECS = (
    _Spec(
        "example",
        "an adversarial example (the paper's figure 1)",
        say.example_alt,
        say.example_caption,
        lambda s: draw.example_figure(s.of_first_seed("example"), named(s.dataset).classes),
        "example",
    ),
    _Spec(
        "attack-success",
        "how many labels each attack changes (figure 2)",
        say.success_alt,
        say.success_caption,
        lambda s: draw.attack_success_figure(s.of_first_seed("attack-success")),
        "attack-success",
    ),
    _Spec(
        "uncertainty-trace",
        "uncertainty along the strength of BIM (figure 4)",
        lambda s: say.trace_alt(s, "uncertainty-trace", "The four metrics of uncertainty"),
        say.uncertainty_trace_caption,
        lambda s: draw.uncertainty_trace_figure(s.of_first_seed("uncertainty-trace")),
        "uncertainty-trace",
    ),
    _Spec(
        "density-trace",
        "kernel density along the strength (figure 5)",
        lambda s: say.trace_alt(s, "density-trace", "Kernel density"),
        say.density_trace_caption,
        lambda s: draw.density_trace_figure(s.of_first_seed("density-trace")),
        "density-trace",
    ),
    _Spec(
        "kl-trace",
        "KL divergence along the strength of BIM (figure 6)",
        lambda s: say.trace_alt(s, "kl-trace", "KL divergence"),
        say.kl_trace_caption,
        lambda s: draw.kl_trace_figure(s.of_first_seed("kl-trace")),
        "kl-trace",
    ),
    _Spec(
        "predicted-kl-trace",
        "KL divergence from the predicted class (figure 7)",
        lambda s: say.trace_alt(s, "predicted-kl-trace", "KL divergence from the predicted class"),
        say.predicted_kl_caption,
        lambda s: draw.predicted_kl_trace_figure(s.of_first_seed("predicted-kl-trace")),
        "predicted-kl-trace",
    ),
    _Spec(
        "roc",
        "ROC curves (figures 9 and 10)",
        say.roc_alt,
        say.roc_caption,
        lambda s: draw.roc_figure(s.of_first_seed("roc"), s.of_first_seed("results")),
        "roc",
    ),
    _Spec(
        "roc-low",
        "ROC curves at few false alarms",
        say.roc_low_caption,
        say.roc_low_caption,
        lambda s: draw.roc_low_figure(s.of_first_seed("roc")),
        "roc",
    ),
    _Spec(
        "scores",
        "scores of clean, noisy and adversarial images",
        say.scores_alt,
        _constant(
            "The score is the log odds that the combiner of all six metrics gives, held out. Where "
            "clean or noisy images overlap adversarial ones no threshold can tell. Scores beyond "
            "the axis count in its outer bins."
        ),
        lambda s: draw.scores_figure(s.of_first_seed("scores")),
        "scores",
    ),
    _Spec(
        "weights",
        "what the combiner learned",
        say.weights_alt,
        _constant(
            "Bars are means over the five folds, dots the folds; positive weights raise the score. "
            "The four metrics of uncertainty move together, so a single one's weight, even its "
            "sign, says little; read them as a group against kernel density."
        ),
        lambda s: draw.weights_figure(s.of_first_seed("weights")),
        "weights",
    ),
    _Spec(
        "abstention",
        "what abstaining gains (section 5.2)",
        say.abstention_alt,
        _constant(
            "Clean test images, the most doubtful by each metric left unanswered first. The lower "
            "a curve, the better its metric knows where the classifier is wrong."
        ),
        lambda s: draw.abstention_figure(s.of_first_seed("abstention")),
        "abstention",
    ),
    _Spec(
        "gallery",
        "the worst misses and the worst false alarms",
        say.gallery_alt,
        _constant(
            "For each condition the two adversarial images of lowest score among those whose label "
            "changed, and the clean and the noisy image of highest score. Their metrics are in the "
            "table below."
        ),
        lambda s: draw.gallery_figure(s.of_first_seed("gallery"), named(s.dataset).classes),
        "gallery",
    ),
)

PLOTS = tuple(spec.name for spec in _SPECS)
"""The names of the figures, in the order in which they are drawn."""
