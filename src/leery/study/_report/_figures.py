"""The figures of the study, each drawn from its saved table."""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS
from leery.reporting import INK, MUTED, PALETTE, new_figure
from leery.study._config import PAPER_SETS
from leery.study._report._style import ATTACK_LINES, METRIC_LINES, METRIC_NAMES, epsilon_axis
from leery.study._tables import PIXELS, held_out_areas

__all__ = [
    "abstention_figure",
    "attack_success_figure",
    "density_trace_figure",
    "example_figure",
    "gallery_figure",
    "kl_trace_figure",
    "predicted_kl_trace_figure",
    "roc_figure",
    "roc_low_figure",
    "scores_figure",
    "uncertainty_trace_figure",
    "weights_figure",
]

CLOSE_LINES: dict[str, dict[str, Any]] = {
    "source": {"color": PALETTE["vermillion"], "linestyle": "-"},
    "target": {"color": PALETTE["blue"], "linestyle": "-"},
    "predicted": {"color": INK, "linestyle": ":", "linewidth": 2.2},
}

KL_LABELS = {"kl_divergence": "softmax", "kl_divergence_sum": "by sum"}
"""How features become probabilities."""

KIND_COLOURS = {
    "clean": PALETTE["blue"],
    "noisy": PALETTE["sky"],
    "adversarial, label changed": PALETTE["vermillion"],
    "adversarial, label kept": PALETTE["orange"],
}


def example_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Figure 1: an image, what is added to it, and the sum, with predictions."""
    figure = new_figure(9, 3.3)
    clean, adversarial = (_image(row) for _, row in table.iterrows())
    first, last = (row for _, row in table.iterrows())
    left, middle, right = figure.subplots(1, 3)
    for axes, image, row in ((left, clean, first), (right, adversarial, last)):
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(
            f"{row['panel']}: {names[row['predicted']]}\nconfidence {row['confidence']:.2f}"
        )
    reach = float(first["epsilon"])
    shown = middle.imshow(adversarial - clean, cmap="RdBu_r", vmin=-reach, vmax=reach)
    figure.colorbar(shown, ax=middle, shrink=0.8, label="pixel units of [0, 1]")
    middle.set_title(f"{first['attack']} perturbation\nepsilon {reach:g}")
    for axes in (left, middle, right):
        _bare(axes)
    return figure


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


def uncertainty_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 4: the four metrics of uncertainty of one image and of many, under BIM."""
    figure = new_figure(12, 5.4)
    panels = figure.subplots(2, len(UNCERTAINTY_METRICS), sharex=True, sharey="col")
    doubt = table[(table["metric"] == "predictive_entropy") & (table["shown"] == "image")]
    for column, metric in enumerate(UNCERTAINTY_METRICS):
        rows = table[table["metric"] == metric]
        line = {"color": METRIC_LINES[metric]["color"], "linewidth": 1.8}
        _trace(panels[:, column], rows, line, METRIC_NAMES[metric])
        _shade(panels[0, column], doubt)
        _mark_flip(panels[0, column], rows)
        panels[0, column].set_title(METRIC_NAMES[metric] + _unit(metric))
    for row, title in enumerate((_image_title(table), _mean_title(table))):
        panels[row, 0].set_ylabel(title)
    figure.supxlabel("epsilon (pixel units of [0, 1])", fontsize=9, color=INK)
    panels[0, 0].legend(*_shade_legend(), loc="upper left", fontsize=7)
    return figure


def density_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 5: kernel density under the true, the target and the predicted class."""
    attacks = list(table["attack"].unique())
    figure = new_figure(5 * len(attacks), 6.6)
    panels = figure.subplots(2, len(attacks), sharex=True, squeeze=False)
    for column, attack in enumerate(attacks):
        of_attack = table[table["attack"] == attack]
        for against in of_attack["against"].unique():
            rows = of_attack[of_attack["against"] == against]
            _trace(panels[:, column], rows, CLOSE_LINES[against], f"{against} class")
        _mark_flip(panels[0, column], of_attack)
        panels[0, column].set_title(f"{attack}: {_image_title(table)}")
        panels[1, column].set_title(f"{attack}: {_mean_title(of_attack)}")
        epsilon_axis(panels[1, column])
    for axes in panels.flat:
        axes.set_ylabel("log density")
    panels[0, 0].legend()
    return figure


def kl_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 6: KL divergence from the true and the target class, under BIM; a row a reading."""
    figure, panels = _readings(table)
    for row, of_reading in zip(panels, _by_reading(table), strict=True):
        for against in of_reading["against"].unique():
            rows = of_reading[of_reading["against"] == against]
            _trace(row, rows, CLOSE_LINES[against], f"{against} class")
        _mark_flip(row[0], of_reading)
        row[0].legend()
    return figure


def predicted_kl_trace_figure(table: pd.DataFrame) -> Figure:
    """Figure 7: KL divergence from the predicted class, under BIM and FGSM; a row a reading."""
    figure, panels = _readings(table)
    for row, of_reading in zip(panels, _by_reading(table), strict=True):
        for attack in of_reading["attack"].unique():
            rows = of_reading[of_reading["attack"] == attack]
            line = {key: value for key, value in ATTACK_LINES[attack].items() if key != "marker"}
            _trace(row, rows, line, attack)
            _mark_flip(row[0], rows, line["color"])
        row[0].legend()
    return figure


def _readings(table: pd.DataFrame) -> tuple[Figure, Any]:
    """A row of two panels, one image and many, for each reading of the KL divergence."""
    count = len(list(_by_reading(table)))
    figure = new_figure(10, 3.2 * count + 0.2)
    panels = figure.subplots(count, 2, sharex=True, squeeze=False)
    for row, (name, label) in zip(panels, KL_LABELS.items(), strict=False):
        of_reading = table[table["metric"] == name]
        row[0].set_title(f"{label}: {_image_title(of_reading)}")
        row[1].set_title(f"{label}: {_mean_title(of_reading)}")
        for axes in row:
            axes.set_ylabel("KL divergence (nats)")
    for axes in panels[-1]:
        epsilon_axis(axes)
    return figure, panels


def _by_reading(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for name in KL_LABELS:
        yield table[table["metric"] == name]


def _trace(panels: Any, rows: pd.DataFrame, line: dict[str, Any], label: str) -> None:  # noqa: ANN401
    """One image in the first panel, mean and band in the second."""
    image, mean = (rows[rows["shown"] == shown] for shown in ("image", "mean"))
    if len(image):
        panels[0].plot(image["epsilon"], image["value"], label=label, **line)
    if len(mean):
        panels[1].plot(mean["epsilon"], mean["value"], label=label, **line)
        panels[1].fill_between(
            mean["epsilon"], mean["low"], mean["high"], color=line["color"], alpha=0.15, lw=0
        )


def _mark_flip(axes: Axes, rows: pd.DataFrame, colour: str = INK) -> None:
    """Mark the first strength at which the image's predicted class is another one than at 0."""
    image = rows[rows["shown"] == "image"]
    changed = image[image["predicted"] != image["predicted"].iloc[0]] if len(image) else image
    if len(changed):
        axes.axvline(float(changed["epsilon"].min()), color=colour, linestyle=":", linewidth=1)


def _shade(axes: Axes, doubt: pd.DataFrame) -> None:
    """The paper's low-confidence interval: where entropy is at least half its largest value."""
    if doubt.empty:
        return
    epsilons, entropy = doubt["epsilon"].to_numpy(), doubt["value"].to_numpy()
    low = entropy >= entropy.max() / 2
    step = (epsilons[1] - epsilons[0]) / 2
    start, stop = epsilons[low].min() - step, epsilons[low].max() + step
    axes.axvspan(start, min(stop, epsilons[-1]), color=PALETTE["orange"], alpha=0.22, lw=0)
    for left, right in ((epsilons[0], start), (stop, epsilons[-1])):
        if right > left:
            axes.axvspan(left, right, color=PALETTE["sky"], alpha=0.16, lw=0)


def _shade_legend() -> tuple[list[Any], list[str]]:
    return (
        [Patch(color=PALETTE["orange"], alpha=0.4), Patch(color=PALETTE["sky"], alpha=0.4)],
        ["low-confidence interval", "high-confidence interval"],
    )


def _image_title(table: pd.DataFrame) -> str:
    return "the chosen image" if (table["shown"] == "image").any() else "no image changes"


def _mean_title(table: pd.DataFrame) -> str:
    """How many images the mean is over, and how many of them have a target class."""
    mean = table[table["shown"] == "mean"]
    if mean.empty:
        return "no image"
    title = f"mean of {int(mean['images'].max()):,} images"
    targets = mean.loc[mean["against"] == "target", "images"]
    return f"{title} (target: {int(targets.min()):,})" if len(targets) else title


def _unit(metric: str) -> str:
    return " (nats)" if metric in ("predictive_entropy", "mutual_information") else ""


def roc_figure(table: pd.DataFrame, results: pd.DataFrame) -> Figure:
    """Figures 9 and 10: ROC curves, a row for each strength, a column for each attack."""
    figure, panels = _grid(table, 4.1)
    of_all = held_out_areas(results)
    for axes, (attack, epsilon), rows in panels:
        areas = of_all.loc[(attack, epsilon)]
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8)
        for name in sorted(PAPER_SETS, key=lambda name: -areas[name]):
            curve = rows[rows["metrics"] == name]
            label = f"{areas[name]:.3f}  {METRIC_NAMES[name]}"
            axes.plot(curve["fpr"], curve["tpr"], label=label, **METRIC_LINES[name])
        axes.set_aspect("equal")
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.legend(title="ROC-AUC", loc="lower right", fontsize=7, title_fontsize=7)
    _grid_labels(figure, "false-positive rate", "true-positive rate")
    return figure


def roc_low_figure(table: pd.DataFrame) -> Figure:
    """The same curves where an operator works: few false alarms."""
    figure, panels = _grid(table, 3.0)
    for axes, _, rows in panels:
        for name in ("uncertainty", "closeness", "all"):
            curve = rows[(rows["metrics"] == name) & (rows["fpr"] > 0)]
            axes.plot(curve["fpr"], curve["tpr"], label=METRIC_NAMES[name], **METRIC_LINES[name])
        chance = np.geomspace(1e-3, 1, 50)
        axes.plot(chance, chance, color=MUTED, linewidth=0.8, label="chance")
        axes.set_xscale("log")
        axes.set_xlim(1e-3, 1)
        axes.set_ylim(-0.01, 1.01)
    figure.axes[0].legend(loc="upper left", fontsize=7)
    _grid_labels(figure, "false-positive rate", "true-positive rate")
    return figure


def scores_figure(table: pd.DataFrame) -> Figure:
    """Histograms of the fused score, by kind of image."""
    figure, panels = _grid(table, 2.9, sharex=False)
    for axes, _, rows in panels:
        for kind, colour in KIND_COLOURS.items():
            bins = rows[rows["kind"] == kind]
            total = bins["images"].sum()
            if not total:
                continue
            edges = [*bins["low"], bins["high"].iloc[-1]]
            share = bins["images"] / total
            axes.stairs(share, edges, color=colour, lw=1.4)
            axes.stairs(share, edges, color=colour, alpha=0.18, fill=True, lw=0)
    figure.axes[0].legend([Patch(color=c) for c in KIND_COLOURS.values()], KIND_COLOURS, fontsize=7)
    _grid_labels(figure, "score (log odds of being adversarial)", "share of its kind")
    return figure


def weights_figure(table: pd.DataFrame) -> Figure:
    """The weights of the combiner, a dot for each fold."""
    figure, panels = _grid(table, 2.7)
    for axes, _, rows in panels:
        axes.axvline(0, color=MUTED, lw=1)
        for place, metric in enumerate(reversed(PAPER_METRICS)):
            weights = rows.loc[rows["metric"] == metric, "weight"]
            axes.barh(place, weights.mean(), color=PALETTE["sky"], height=0.6)
            axes.plot(weights, [place] * len(weights), "o", color=INK, markersize=2.5)
        names = [METRIC_NAMES[metric] for metric in reversed(PAPER_METRICS)]
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False, axis="y")
    _grid_labels(figure, "weight of the standardised metric", "")
    return figure


def abstention_figure(table: pd.DataFrame) -> Figure:
    """Risk against coverage: the error that is left when the most doubtful are not answered."""
    figure = new_figure(8.6, 4.2)
    axes = figure.subplots()
    for metric in PAPER_METRICS:
        rows = table[table["metric"] == metric]
        coverage, risk = rows["kept"] / rows["images"], rows["wrong"] / rows["kept"]
        axes.plot(100 * coverage, 100 * risk, label=METRIC_NAMES[metric], **METRIC_LINES[metric])
    error = 100 * table["wrong"].max() / table["images"].iloc[0]
    axes.axhline(error, color=MUTED, lw=1, label="abstaining at random")
    axes.set_xlim(50, 100.5)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("coverage (% of the images answered)")
    axes.set_ylabel("risk (% of the answers wrong)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def gallery_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """The worst misses and false alarms, a column for each condition."""
    columns = list(table.groupby(["attack", "epsilon"], sort=False))
    depth = max(len(rows) for _, rows in columns)
    figure = new_figure(2.05 * len(columns), 2.5 * depth)
    panels = figure.subplots(depth, len(columns), squeeze=False)
    for axes in panels.flat:
        _bare(axes)
        axes.set_visible(False)
    for column, ((attack, epsilon), rows) in enumerate(columns):
        for place, (_, row) in enumerate(rows.iterrows()):
            axes = panels[place, column]
            axes.set_visible(True)
            axes.imshow(_image(row), cmap="gray", vmin=0, vmax=1)
            heading = f"{attack} {epsilon:.2f}\n" if place == 0 else ""
            axes.set_title(
                f"{heading}{row['kind']}\n{names[row['label']]} seen as {names[row['predicted']]}"
                f"\nscore {row['score']:.1f}",
                fontsize=7.5,
            )
    return figure


def _grid(
    table: pd.DataFrame, height: float, *, sharex: bool = True
) -> tuple[Figure, Iterator[tuple[Axes, tuple[str, float], pd.DataFrame]]]:
    """A row for each strength and a column for each attack, in the order of the table."""
    epsilons, attacks = table["epsilon"].unique(), table["attack"].unique()
    figure = new_figure(4.1 * len(attacks), height * len(epsilons))
    axes = figure.subplots(len(epsilons), len(attacks), sharex=sharex, sharey=True, squeeze=False)

    def panels() -> Iterator[tuple[Axes, tuple[str, float], pd.DataFrame]]:
        for place, (epsilon, attack) in zip(axes.flat, product(epsilons, attacks), strict=True):
            place.set_title(f"{attack}, epsilon {epsilon:.2f}")
            rows = table[(table["attack"] == attack) & (table["epsilon"] == epsilon)]
            yield place, (attack, epsilon), rows

    return figure, panels()


def _grid_labels(figure: Figure, horizontal: str, vertical: str) -> None:
    figure.supxlabel(horizontal, fontsize=9, color=INK)
    if vertical:
        figure.supylabel(vertical, fontsize=9, color=INK)


def _image(row: "pd.Series[Any]") -> np.ndarray:
    pixels: np.ndarray = row[list(PIXELS)].to_numpy(dtype=float).reshape(28, 28)
    return pixels


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
