"""The figures draw what their tables say, and the captions quote it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch

from leery.reporting import figure_style
from leery.study import StudyResult, load_result
from leery.study._config import PAPER_SETS
from leery.study._report.figures import (
    _abstention,
    _attack_success,
    _kl_trace,
    _roc,
    _roc_low,
    _scores,
    _uncertainty_trace,
    _weights,
)

SAVED = Path(__file__).parents[2] / "docs" / "results"


@pytest.fixture(scope="module")
def study() -> StudyResult:
    """The committed study of digits."""
    return load_result(SAVED / "mnist")


def drawn(figure: Figure, panel: int, line: int) -> np.ndarray:
    """The vertical values of a line."""
    return np.asarray(figure.axes[panel].lines[line].get_ydata(), dtype=float)


def test_success_is_drawn_against_strength_for_each_attack(study: StudyResult) -> None:
    table = study.tables["attack-success"]
    with figure_style():
        figure = _attack_success.attack_success_figure(table)
    for line, attack in enumerate(("FGSM", "BIM", "PGD")):
        rows = table[table["attack"] == attack].sort_values("epsilon")
        assert len(rows) >= 13
        assert drawn(figure, 0, line) == pytest.approx(rows["share"].to_numpy())
    assert (
        f"PGD changes half of the labels at 0.12 and {1:.0%} at most"
        in _attack_success.success_alt(study)
    )


def test_the_flip_is_marked_and_the_doubt_around_it_shaded(study: StudyResult) -> None:
    table = study.tables["uncertainty-trace"]
    with figure_style():
        figure = _uncertainty_trace.uncertainty_trace_figure(table)
    image = table[table["shown"] == "image"]
    for panel, metric in enumerate(
        ("variance", "predictive_entropy", "mutual_information", "confidence")
    ):
        rows = image[image["metric"] == metric]
        assert drawn(figure, panel, 0) == pytest.approx(rows["value"].to_numpy())
        changed = rows[rows["predicted"] != rows["predicted"].iloc[0]]
        marked = figure.axes[panel].lines[1].get_xdata()
        assert np.asarray(marked).tolist() == [changed["epsilon"].min()] * 2
    entropy = image[image["metric"] == "predictive_entropy"]
    doubtful = entropy[entropy["value"] >= entropy["value"].max() / 2]["epsilon"]
    low, *high = (patch.get_extents().width for patch in figure.axes[0].patches)
    assert low / (low + sum(high)) == pytest.approx((len(doubtful)) / 30, abs=0.02)
    mean = table[(table["shown"] == "mean") & (table["metric"] == "confidence")]
    assert drawn(figure, 7, 0) == pytest.approx(mean["value"].to_numpy())


def test_each_reading_has_its_row_and_each_class_its_line(study: StudyResult) -> None:
    table = study.tables["kl-trace"]
    with figure_style():
        figure = _kl_trace.kl_trace_figure(table)
    for row, metric in enumerate(("kl_divergence", "kl_divergence_sum")):
        for line, against in enumerate(("source", "target")):
            chosen = table[(table["metric"] == metric) & (table["against"] == against)]
            mean = chosen[chosen["shown"] == "mean"]["value"].to_numpy()
            assert drawn(figure, 2 * row + 1, line) == pytest.approx(mean)
    turning = study.tables["turning-points"]
    rows = turning[(turning["attack"] == "BIM") & turning["flip"].notna()]
    near = ((rows["crossing_kl_divergence_sum"] - rows["flip"]).abs() < 0.015).mean()
    assert f"{near:.0%} (by sum)" in _kl_trace.kl_trace_caption(study)


def test_roc_panels_hold_the_papers_nine_curves_with_their_areas(study: StudyResult) -> None:
    with figure_style():
        figure = _roc.roc_figure(study.tables["roc"], study.results)
    rows = study.results[
        (study.results["protocol"] == "held-out") & (study.results["positives"] == "all")
    ]
    for panel, (attack, epsilon) in zip(
        figure.axes, [(a, e) for e in (0.30, 0.12) for a in ("FGSM", "BIM", "PGD")], strict=True
    ):
        assert panel.get_title() == f"{attack}, epsilon {epsilon:.2f}"
        assert len(panel.lines) == 1 + len(PAPER_SETS)
        legend = panel.get_legend()
        assert legend is not None
        shown = [float(text.get_text().split()[0]) for text in legend.get_texts()]
        areas = rows[(rows["attack"] == attack) & (rows["epsilon"] == epsilon)]
        areas = areas[areas["metrics"].isin(PAPER_SETS)]["auc"]
        assert shown == sorted(areas.round(3), reverse=True)
        # The trapezoids of the drawn curve have the area that the legend says.
        curve = panel.lines[1]
        area = np.trapezoid(np.asarray(curve.get_ydata()), np.asarray(curve.get_xdata()))
        assert area == pytest.approx(shown[0], abs=0.004)


def test_weights_are_means_over_folds_and_risk_ends_at_the_error(study: StudyResult) -> None:
    table = study.tables["weights"]
    with figure_style():
        weights = _weights.weights_figure(table)
        abstaining = _abstention.abstention_figure(study.tables["abstention"])
    first = table[(table["attack"] == "FGSM") & (table["epsilon"] == 0.30)]
    means = first.groupby("metric", sort=False)["weight"].mean()
    bars = [patch.get_width() for patch in weights.axes[0].patches if isinstance(patch, Rectangle)]
    assert bars == pytest.approx(means.to_numpy()[::-1])
    error = 100 * (1 - float(study.tables["classifier"]["accuracy"].iloc[0]))
    for line in range(6):
        assert drawn(abstaining, 0, line)[-1] == pytest.approx(error)


def test_histograms_are_shares_of_each_kind(study: StudyResult) -> None:
    table = study.tables["scores"]
    with figure_style():
        figure = _scores.scores_figure(table)
    steps = [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]
    heights = [np.asarray(patch.get_data()[0]) for patch in steps]
    assert len(heights) == 8
    for values in heights:
        assert values.sum() == pytest.approx(1)


def test_captions_quote_the_worst_and_the_best_condition(study: StudyResult) -> None:
    rows = study.results[
        (study.results["protocol"] == "held-out")
        & (study.results["positives"] == "all")
        & (study.results["metrics"] == "all")
    ]
    worst = rows.loc[rows["auc"].idxmin()]
    quoted = f"weakest at {worst['attack']} {worst['epsilon']:.2f} ({worst['auc']:.3f})"
    assert quoted in _roc.roc_caption(study)
    found = pd.Series(rows["tpr_at_1_fpr"])
    assert f"{found.min():.0%} of the adversarial images in the worst" in _roc_low.roc_low_caption(
        study
    )
    assert f"{found.max():.0%} in the best" in _roc_low.roc_low_caption(study)
