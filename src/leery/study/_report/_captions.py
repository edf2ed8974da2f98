"""What the figures show, in words: descriptions for those who cannot see them, and captions.

Every number in them is taken from the tables.
"""

from leery.data import named
from leery.metrics import PAPER_METRICS
from leery.study._report._comparisons import near_flip
from leery.study._report._style import METRIC_NAMES
from leery.study._tables import StudyResult, held_out, held_out_areas

__all__ = [
    "abstention_alt",
    "density_trace_caption",
    "example_alt",
    "example_caption",
    "gallery_alt",
    "kl_trace_caption",
    "predicted_kl_caption",
    "roc_alt",
    "roc_caption",
    "roc_low_caption",
    "scores_alt",
    "success_alt",
    "success_caption",
    "trace_alt",
    "uncertainty_trace_caption",
    "weights_alt",
]

HALF = 0.5


def example_alt(study: StudyResult) -> str:
    clean, adversarial = study.of_first_seed("example").to_dict("records")
    names = named(study.dataset).classes
    return (
        f"Test image {clean['source']}, seen as {names[clean['predicted']]} with confidence "
        f"{clean['confidence']:.2f}; the perturbation; and their sum, seen as "
        f"{names[adversarial['predicted']]} with confidence {adversarial['confidence']:.2f}."
    )


def example_caption(study: StudyResult) -> str:
    row = study.of_first_seed("example").iloc[0]
    return (
        "The first test image whose label both BIM and FGSM change inside the range, under "
        f"{row['attack']} at {row['epsilon']:g}, the weakest strength of the grid that does it. "
        "The confidence is the mean over the dropout passes; the label is that with dropout off."
    )


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
        "Test images that the classifier gets right, from the first on; the band is Wilson's 95% "
        "interval. Look at where each curve leaves the ground and where it ends: one step "
        "(FGSM) against many (BIM, PGD). The paper has FGSM level off near 65% and the others "
        "reach 100% near 0.2."
    )


def _grid_text(study: StudyResult) -> str:
    table = study.of_first_seed("turning-points")
    step, images = table["step"].iloc[0], table["source"].nunique()
    return (
        "The chosen image is that of figure 1; mean and band (10 to 90%) are over the first "
        f"{images:,} test images that the classifier gets right. Steps of {step:g}. "
    )


def _median_flip(study: StudyResult, attack: str) -> str:
    table = study.of_first_seed("turning-points")
    flips = table.loc[table["attack"] == attack, "flip"]
    return f"{flips.median():g}" if flips.notna().any() else "none"


def uncertainty_trace_caption(study: StudyResult) -> str:
    return _grid_text(study) + (
        "The line marks the change of label. Orange is the paper's low-confidence interval, here "
        "the strengths between which the entropy is at least half its largest value; blue its "
        "high-confidence intervals, where uncertainty does not tell. The median of the strengths "
        f"at which labels change is {_median_flip(study, 'BIM')}; the mean blends them all."
    )


def trace_alt(study: StudyResult, name: str, what: str) -> str:
    table = study.of_first_seed(name)
    mean = table[table["shown"] == "mean"]
    parts = []
    for (attack, metric, against), rows in mean.groupby(
        ["attack", "metric", "against"], sort=False
    ):
        ends = rows.sort_values("epsilon")["value"]
        label = f"{METRIC_NAMES[metric]}, {against} class"
        parts.append(f"{attack}, {label}: from {ends.iloc[0]:.3g} to {ends.iloc[-1]:.3g}")
    return f"{what} against epsilon. Means of the images, " + "; ".join(parts) + "."


def _crossing_text(study: StudyResult, column: str, attack: str) -> str:
    table = study.of_first_seed("turning-points")
    rows = table[(table["attack"] == attack) & table["flip"].notna()]
    return f"{near_flip(rows, column).mean():.0%}" if len(rows) else "none"


def density_trace_caption(study: StudyResult) -> str:
    return _grid_text(study) + (
        "The target is the class at the first change of label, which the vertical line marks; "
        "where the label never changes there is none, so its mean is over fewer images. The paper "
        "has the lines of source and target cross there; of the images that change, they do "
        "within one step for "
        f"{_crossing_text(study, 'crossing_kernel_density', 'BIM')} under BIM and "
        f"{_crossing_text(study, 'crossing_kernel_density', 'FGSM')} under FGSM. Larger is closer."
    )


def kl_trace_caption(study: StudyResult) -> str:
    return _grid_text(study) + (
        "Above, features become probabilities by softmax, below by division by their sum: the "
        "paper leaves it open. Smaller is closer. The paper has the lines cross at the flip; "
        "of the images that change, they do within one step for "
        f"{_crossing_text(study, 'crossing_kl_divergence', 'BIM')} (softmax) and "
        f"{_crossing_text(study, 'crossing_kl_divergence_sum', 'BIM')} (by sum)."
    )


def predicted_kl_caption(study: StudyResult) -> str:
    return (
        "Left, the image of figure 1, its changes of label marked; right, mean and band (10 to "
        "90%); above by softmax, below by sum. The paper has a peak at the change of label and BIM "
        "ending far below FGSM. Of the images that change under BIM the peak lies there for "
        f"{_crossing_text(study, 'peak_kl_divergence', 'BIM')} (softmax) and "
        f"{_crossing_text(study, 'peak_kl_divergence_sum', 'BIM')} (by sum)."
    )


def roc_alt(study: StudyResult) -> str:
    areas = held_out_areas(study.of_first_seed("results"))
    best = areas[list(PAPER_METRICS)]
    parts = [
        f"{attack} {epsilon:.2f}: all six {areas['all'][attack, epsilon]:.3f}, best single metric "
        f"{METRIC_NAMES[row.idxmax()]} {row.max():.3f}"
        for (attack, epsilon), row in best.iterrows()
    ]
    return "ROC curves of nine sets of metrics. Areas: " + "; ".join(parts) + "."


def roc_caption(study: StudyResult) -> str:
    areas = held_out_areas(study.of_first_seed("results"))
    worst = areas["all"].idxmin()
    winners = areas[list(PAPER_METRICS)].idxmax(axis=1).map(METRIC_NAMES.get).unique()
    return (
        "Held out by source image; positives are all adversarial twins, negatives the clean and "
        f"the noisy images. Best single metrics of the six conditions: {', '.join(winners)}. All "
        f"six together are weakest at {worst[0]} {worst[1]:.2f} ({areas['all'].min():.3f})."
    )


def roc_low_caption(study: StudyResult) -> str:
    rows = held_out(study.of_first_seed("results"))
    rows = rows[rows["metrics"] == "all"]
    return (
        "The same curves on a logarithmic axis, where a detector in use works. At 1% false alarms "
        f"all six find {rows['tpr_at_1_fpr'].min():.0%} of the adversarial images in the worst "
        f"condition and {rows['tpr_at_1_fpr'].max():.0%} in the best."
    )


def scores_alt(study: StudyResult) -> str:
    table = study.of_first_seed("scores")
    middle = (table["low"] + table["high"]) / 2 * table["images"]
    sums = table.assign(total=middle).groupby("kind", sort=False)[["total", "images"]].sum()
    means = sums["total"] / sums["images"]
    parts = [f"{kind} {mean:.1f}" for kind, mean in means.items() if mean == mean]  # noqa: PLR0124
    return "Histograms of the score by kind of image. Means over conditions: " + ", ".join(parts)


def weights_alt(study: StudyResult) -> str:
    table = study.of_first_seed("weights")
    strongest = table.groupby(["attack", "epsilon", "metric"], sort=False)["weight"].mean()
    parts = []
    for (attack, epsilon), weights in strongest.groupby(["attack", "epsilon"], sort=False):
        name = weights.abs().idxmax()[2]
        weight = weights.loc[(attack, epsilon, name)]
        parts.append(f"{attack} {epsilon:.2f}: {METRIC_NAMES[name]} {weight:.1f}")
    return "Weights of the combiner. The largest of each condition: " + "; ".join(parts) + "."


def abstention_alt(study: StudyResult) -> str:
    table = study.of_first_seed("abstention")
    parts = []
    for metric, rows in table[table["metric"].isin(PAPER_METRICS)].groupby("metric", sort=False):
        kept = rows[rows["kept"] <= 0.9 * rows["images"]]
        if len(kept):
            last = kept.iloc[-1]
            parts.append(f"{METRIC_NAMES[metric]} {last['wrong'] / last['kept']:.2%}")
    error = table["wrong"].max() / table["images"].iloc[0]
    return (
        f"Risk-coverage curves. All images answered: {error:.2%} wrong. At 90% coverage: "
        + ", ".join(parts)
    )


def gallery_alt(study: StudyResult) -> str:
    names = named(study.dataset).classes
    return "Images with their scores. " + "; ".join(
        f"{row['attack']} {row['epsilon']:.2f}, {row['kind']}: {names[row['label']]} seen as "
        f"{names[row['predicted']]}"
        for row in study.of_first_seed("gallery").to_dict("records")
    )
