"""Figure 2: how many labels each attack changes, against its strength."""

import pandas as pd
from matplotlib.figure import Figure

from leery.reporting import new_figure
from leery.study._report._style import ATTACK_LINES, epsilon_axis
from leery.study._report.figures._figure import StudyFigure
from leery.study._tables import StudyResult

__all__ = ["FIGURE", "attack_success_figure"]


HALF = 0.5


def attack_success_figure(table: pd.DataFrame) -> Figure:
    """Figure 2: how many labels each attack changes, against its strength."""
    datasets = list(table["dataset"].unique())
    figure = new_figure(5.2 * len(datasets) + 0.4, 3.8)
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        of_dataset = table[table["dataset"] == dataset]
        for attack, line in ATTACK_LINES.items():
            rows = of_dataset[of_dataset["attack"] == attack].sort_values("epsilon")
            axes.plot(rows["epsilon"], rows["share"], label=attack, **line)
            axes.fill_between(
                rows["epsilon"], rows["low"], rows["high"], color=line["color"], alpha=0.2, lw=0
            )
        axes.set_title(f"{dataset}, {int(of_dataset['images'].iloc[0]):,} images")
        axes.set_ylim(-0.02, 1.02)
        epsilon_axis(axes)
    panels[0].set_ylabel("share of labels changed")
    panels[0].legend(loc="lower right")
    return figure


def success_alt(study: StudyResult) -> str:
    table = study.of_first_seed("attack-success")
    parts = []
    for attack in ("FGSM", "BIM", "PGD"):
        rows = table[table["attack"] == attack].sort_values("epsilon")
        half = rows[rows["share"] >= HALF]
        reached = (
            f"half of the labels at {half['epsilon'].iloc[0]:g}" if len(half) else "never half"
        )
        parts.append(f"{attack} changes {reached} and {rows['share'].max():.0%} at most")
    return f"{study.dataset}: " + "; ".join(parts) + "."


def success_caption(_study: StudyResult) -> str:
    return (
        "The first test images that are correctly classified; the band is Wilson's 95% "
        "interval. Note where each curve rises from zero and where it ends: one step "
        "(FGSM) against many (BIM, PGD). In the paper FGSM levels off near 65% and the others "
        "reach 100% near 0.2."
    )


FIGURE = StudyFigure(
    "attack-success",
    "how many labels each attack changes (figure 2)",
    success_alt,
    success_caption,
    lambda s: attack_success_figure(s.of_first_seed("attack-success")),
    "attack-success",
)
