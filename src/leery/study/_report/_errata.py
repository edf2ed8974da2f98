"""Misprints of the paper, each with evidence from our own results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from leery.metrics import UNCERTAINTY_METRICS
from leery.study._tables import StudyResult, held_out_areas

__all__ = ["PAPER_UNCERTAINTY", "Erratum", "errata"]

PAPER_UNCERTAINTY: Mapping[str, tuple[float, float]] = {
    "variance": (0.02195, 0.00135),
    "predictive_entropy": (0.96277, 0.08891),
    "mutual_information": (0.42247, 0.04068),
    "confidence": (0.59387, 0.97724),
}
"""Means over wrong and over right predictions in the only legible table of this kind in the paper.

Its caption says table 4, fashion articles.
"""


@dataclass(frozen=True)
class Erratum:
    """A misprint in the paper.

    Attributes:
        where: location in the paper.
        printed: description of what is printed.
        used: what leery computes instead.
        evidence: sentences with our results, at least one per dataset.
    """

    where: str
    printed: str
    used: str
    evidence: tuple[str, ...]


def errata(studies: Sequence[StudyResult]) -> list[Erratum]:
    """The misprints with their evidence, from the tables of the studies alone."""
    return [
        Erratum(
            "Equation 2 (BIM)",
            "The iterate is missing inside the clip: x_{k+1} = clip(alpha sign(grad)). Each step "
            "replaces the image by its own sign pattern instead of adding to it.",
            "x_{k+1} = clip(x_k + alpha sign(grad)), as Kurakin et al. define it. In the paper's "
            "figure 2 BIM fools every image from 0.2 on.",
            tuple(_printed_bim(studies)),
        ),
        Erratum(
            "Equation 8 (mutual information)",
            "H(p) - mean of sum p_t log p_t, which is H(p) plus the mean entropy of the passes: "
            "never below H(p).",
            "H(p) minus the mean entropy of the passes: between 0 and H(p).",
            (*_printed_information(studies), _paper_information()),
        ),
        Erratum(
            "Equation 9 (kernel density)",
            "The kernel exp(-d^2 / sigma^2), summed over the training images.",
            "exp(-d^2 / (2 h^2)), scikit-learn's kernel, for which Feinman's procedure selects "
            "bandwidths; the logarithm of the mean, so that classes of any size are comparable.",
            tuple(_printed_kernel(studies)),
        ),
        Erratum(
            "Equations 10 to 12 (KL divergence)",
            "Features must first become probabilities; the conversion is not specified.",
            "Softmax, in all six metrics; division by the sum as a separate reading.",
            tuple(_open_conversion(studies)),
        ),
        Erratum(
            "Caption of table 4",
            "Uncertainty on fashion articles.",
            "Nothing is computed from it. The text lacks the numbers of table 3; the smaller the "
            "factor below, the better the printed table fits that dataset.",
            tuple(_swapped_caption(studies)),
        ),
    ]


def _printed_bim(studies: Sequence[StudyResult]) -> Iterator[str]:
    for study in studies:
        for epsilon, rows in study.tables["printed-bim"].groupby("epsilon", sort=False):
            ours, printed = (
                _mean_share(rows[column], rows["images"])
                for column in ("changed", "changed_as_printed")
            )
            yield (
                f"{study.dataset}, epsilon {epsilon:.2f}: as printed BIM changes {printed:.1%} of "
                f"{int(rows['images'].iloc[0]):,} labels, as used here {ours:.1%}."
            )


def _mean_share(hits: pd.Series, trials: pd.Series) -> float:
    return float((hits / trials).mean())


def _printed_information(studies: Sequence[StudyResult]) -> Iterator[str]:
    for study in studies:
        wrong = study.tables["uncertainty"].groupby("metric")["wrong"].mean()
        entropy, information = wrong["predictive_entropy"], wrong["mutual_information"]
        if np.isnan(entropy):
            continue
        yield (
            f"{study.dataset}, wrong predictions: entropy {entropy:.3f}, mutual information as "
            f"used here {information:.3f}, as printed {2 * entropy - information:.3f} nats."
        )


def _paper_information() -> str:
    entropy = PAPER_UNCERTAINTY["predictive_entropy"][0]
    information = PAPER_UNCERTAINTY["mutual_information"][0]
    return (
        f"The paper's own table has {information:.3f} beside an entropy of {entropy:.3f}: below "
        "it, which the printed equation cannot give."
    )


def _printed_kernel(studies: Sequence[StudyResult]) -> Iterator[str]:
    for study in studies:
        table = study.tables["kernels"]
        areas = table.pivot_table(
            index=["attack", "epsilon"], columns="kernel", values="auc", sort=False
        )
        used, printed = (areas[name] for name in table["kernel"].unique())
        gap = (printed - used).abs()
        attack, epsilon = gap.idxmax()
        yield (
            f"{study.dataset}, {int(table['images'].iloc[0]):,} images: with the printed kernel "
            f"(the mean kept) the area of kernel density alone moves by {gap.max():.3f} at most "
            f"({attack} {epsilon:.2f}: {used[attack, epsilon]:.3f} to "
            f"{printed[attack, epsilon]:.3f})."
        )


def _open_conversion(studies: Sequence[StudyResult]) -> Iterator[str]:
    for study in studies:
        areas = held_out_areas(study.results)
        gap = areas["kl_divergence_sum"] - areas["kl_divergence"]
        attack, epsilon = gap.abs().idxmax()
        yield (
            f"{study.dataset}: the area of KL divergence alone is larger by the sum in "
            f"{int((gap > 0).sum())} of {len(gap)} conditions; they differ most at {attack} "
            f"{epsilon:.2f}: {areas['kl_divergence'][attack, epsilon]:.3f} by softmax, "
            f"{areas['kl_divergence_sum'][attack, epsilon]:.3f} by the sum. All six: "
            f"{areas['all'].min():.3f} to {areas['all'].max():.3f} with softmax, "
            f"{areas['all_sum'].min():.3f} to {areas['all_sum'].max():.3f} with the sum."
        )


def _swapped_caption(studies: Sequence[StudyResult]) -> Iterator[str]:
    for study in studies:
        means = study.tables["uncertainty"].groupby("metric")[["wrong", "right"]].mean()
        ours = means.loc[list(UNCERTAINTY_METRICS)].to_numpy()
        if np.isnan(ours).any():
            continue
        factors = np.abs(np.log(ours / np.array([*PAPER_UNCERTAINTY.values()])))
        yield (
            f"{study.dataset}: the eight figures differ from the printed ones by a factor of "
            f"{np.exp(factors.mean()):.2f} on average, {np.exp(factors.max()):.2f} at most."
        )
