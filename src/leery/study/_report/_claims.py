"""The paper's claims, each with the comparison that decides it and the verdict."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd

from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS
from leery.study._report import _comparisons as compare
from leery.study._report._comparisons import Studies
from leery.study._report._evidence import Evidence

__all__ = [
    "CLAIMS",
    "READINGS",
    "VERDICTS",
    "Claim",
    "Judged",
    "claims_table",
    "evidence_table",
    "judge",
]

Verdict = Literal["holds", "holds in part", "does not hold", "undecided"]

VERDICTS: Mapping[Verdict, str] = {
    "holds": "every comparison supports it",
    "undecided": "otherwise, more than half of the comparisons are inconclusive",
    "holds in part": "otherwise, at least as many comparisons support as contradict it",
    "does not hold": "otherwise",
}
"""Verdicts in order of testing; a comparison is inconclusive if its interval holds the bound."""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes:
        key: short unique identifier.
        source: section, figure or table of the paper.
        sentence: the claim in our words.
        test: description of the comparison that decides the claim.
        gather: function that collects the evidence from the tables.
    """

    key: str
    source: str
    sentence: str
    test: str
    gather: Callable[[Studies], Iterator[Evidence]]


@dataclass(frozen=True)
class Judged:
    """A claim with its evidence.

    Attributes:
        claim: the claim of the paper.
        evidence: every comparison that was made.
    """

    claim: Claim
    evidence: tuple[Evidence, ...]

    @property
    def counts(self) -> Counter[str]:
        """Number of comparisons "for", "against" and "neither"."""
        return Counter(entry.speaks for entry in self.evidence)

    @property
    def verdict(self) -> Verdict:
        """The verdict on the claim, by the rules of :data:`VERDICTS`."""
        counts, total = self.counts, len(self.evidence)
        if total and counts["for"] == total:
            return "holds"
        if 2 * counts["neither"] > total or not total:
            return "undecided"
        return "holds in part" if counts["for"] >= counts["against"] else "does not hold"

    @property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest measured estimate; NaN if none could be measured."""
        known = [entry.found.estimate for entry in self.evidence]
        known = [estimate for estimate in known if not math.isnan(estimate)] or [math.nan]
        return min(known), max(known)

    @property
    def measured(self) -> bool:
        """True if any estimate could be measured."""
        return not math.isnan(self.extremes[0])

    @property
    def range(self) -> str:
        """The smallest and largest estimate as text."""
        first, last = self.extremes
        if not self.measured:
            return "not measured"
        return f"{first:.3f}" if first == last else f"{first:.3f} to {last:.3f}"

    @property
    def remark(self) -> str:
        """Remark if the spread of the classifiers leaves comparisons undecided, else ""."""
        blurred = sum(entry.blurred for entry in self.evidence)
        if not blurred:
            return ""
        return (
            f"By images alone {blurred} of {len(self.evidence)} comparisons are decided that these "
            "few classifiers leave undecided."
        )


def judge(studies: Studies) -> list[Judged]:
    """The verdict on every claim, from the tables of the studies alone."""
    return [Judged(claim, tuple(claim.gather(studies))) for claim in CLAIMS]


def claims_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A table with one row per claim."""
    return pd.DataFrame(
        [
            {
                "claim": entry.claim.key,
                "source": entry.claim.source,
                "sentence": entry.claim.sentence,
                "test": entry.claim.test,
                "verdict": entry.verdict,
                **{side: entry.counts[side] for side in ("for", "against", "neither")},
                "smallest": entry.extremes[0],
                "largest": entry.extremes[1],
                "remark": entry.remark,
            }
            for entry in judged
        ]
    )


def evidence_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """A table with one row per comparison."""
    return pd.DataFrame(
        [
            {
                "claim": entry.claim.key,
                "where": found.where,
                "figure": found.what,
                "estimate": found.found.estimate,
                "low": found.found.low,
                "high": found.found.high,
                "bound": found.bound,
                "speaks": found.speaks,
            }
            for entry in judged
            for found in entry.evidence
        ]
    )


def _density_leads(studies: Studies) -> Iterator[Evidence]:
    yield from compare.ahead(studies, compare.strong, ["closeness"], ["uncertainty"])
    rivals = [*UNCERTAINTY_METRICS, "kl_divergence"]
    yield from compare.ahead(studies, compare.strong, ["kernel_density"], rivals)


READINGS = (
    ("kl_divergence", "", "features by softmax"),
    ("kl_divergence_sum", "-sum", "features by their sum"),
)
"""Conversions of features to probabilities, open in equations 10 to 12: metric, key, text."""


def _figures_6_and_7(reading: str, key: str, how: str) -> Iterator[Claim]:
    yield Claim(
        f"figure-6{key}",
        "section 3.5.3, figure 6",
        f"The KL divergences from true and target class ({how}) cross where the label changes.",
        "BIM; share of images that cross within one grid step of the change, above half.",
        partial(
            compare.turns_at_flip,
            attacks=["BIM"],
            columns={f"crossing_{reading}": f"{reading} crosses at the change of label"},
        ),
    )
    yield Claim(
        f"figure-7-peak{key}",
        "section 3.5.3, figure 7",
        f"The KL divergence from the predicted class ({how}) peaks where the label changes.",
        "BIM and FGSM; share of images whose largest value over the range lies within one grid "
        "step of the change, above half.",
        partial(
            compare.turns_at_flip,
            attacks=["BIM", "FGSM"],
            columns={f"peak_{reading}": f"{reading} peaks at the change of label"},
        ),
    )
    yield Claim(
        f"figure-7-end{key}",
        "section 3.5.3, figure 7",
        "At the largest strength BIM ends closer to the predicted class than FGSM by KL divergence "
        f"({how}).",
        "Divergence from the predicted class, FGSM minus BIM, of images that both change.",
        partial(compare.ends_lower, metric=reading),
    )


def _claims_e(reading: str, key: str, how: str) -> Iterator[Claim]:
    yield Claim(
        f"e-helps{key}",
        "section 5.3",
        f"KL divergence ({how}) adds to kernel density.",
        "Every condition; the two together minus kernel density alone.",
        partial(
            compare.ahead,
            chosen=compare.everywhere,
            better=["closeness" + reading.removeprefix("kl_divergence")],
            worse=["kernel_density"],
        ),
    )
    yield Claim(
        f"e-less{key}",
        "section 5.3",
        f"Against strong attacks KL divergence ({how}) is less useful than kernel density.",
        "BIM and PGD at the larger strength; kernel density minus KL divergence.",
        partial(compare.ahead, chosen=compare.strong, better=["kernel_density"], worse=[reading]),
    )
    yield Claim(
        f"e-weak{key}",
        "section 5.3",
        f"Against weak attacks KL divergence ({how}) is more useful than kernel density.",
        "FGSM, and BIM and PGD at the smaller strength; KL divergence minus kernel density.",
        partial(compare.ahead, chosen=compare.weak, better=[reading], worse=["kernel_density"]),
    )


CLAIMS = (
    Claim(
        "tables-3-4",
        "section 5.2, tables 3 and 4",
        "The classifier is more uncertain where it is wrong than where it is right.",
        "Clean images; difference of means of each metric, Welch's interval.",
        compare.more_doubtful,
    ),
    Claim(
        "abstaining",
        "section 5.2",
        "Abstaining where uncertainty is high makes the remaining answers more reliable.",
        "Clean images; error rate of the most uncertain 10% minus that of the rest, for each "
        "metric, Newcombe's interval.",
        compare.abstaining,
    ),
    Claim(
        "figure-2-strong",
        "section 3.2, figure 2",
        "BIM and PGD fool the classifier on practically every image from epsilon 0.2 on.",
        "Share of labels changed at each epsilon from 0.2 on, Wilson's interval, above 99%.",
        compare.fooled,
    ),
    Claim(
        "figure-2-fgsm",
        "section 3.2, figure 2",
        "The success of FGSM levels off near 65% of the images, however large epsilon.",
        "Largest share of labels changed up to epsilon 0.5: how far inside 60 to 70% it lies, "
        "Wilson's interval, Bonferroni-corrected.",
        compare.levels_off,
    ),
    Claim(
        "figure-4-peak",
        "section 3.4.5, figure 4",
        "Uncertainty is highest (confidence lowest) at the strength where the label changes.",
        "BIM; share of images whose extreme over the range lies within one grid step of the "
        "change, above half.",
        partial(
            compare.turns_at_flip,
            attacks=["BIM"],
            columns={
                f"peak_{metric}": f"extreme of {metric} at the change of label"
                for metric in UNCERTAINTY_METRICS
            },
        ),
    ),
    Claim(
        "figure-4-fall",
        "section 3.4.5, figure 4",
        "Beyond that strength entropy falls again: the classifier is confidently wrong.",
        "BIM; entropy at the change of label minus entropy at the largest strength, paired.",
        compare.falls_again,
    ),
    Claim(
        "figure-5",
        "section 3.5.3, figure 5",
        "The densities under the true and the target class cross where the label changes.",
        "BIM and FGSM; share of images that cross within one grid step of the change, above half.",
        partial(
            compare.turns_at_flip,
            attacks=["BIM", "FGSM"],
            columns={"crossing_kernel_density": "densities cross at the change of label"},
        ),
    ),
    *(claim for reading in READINGS for claim in _figures_6_and_7(*reading)),
    Claim(
        "a",
        "section 6",
        "No single metric is the best everywhere: the choice depends on the threat.",
        "For the metric that is beaten least: the largest lead of another one in any condition; "
        "difference of areas, Bonferroni-corrected interval.",
        compare.no_best,
    ),
    Claim(
        "b",
        "section 5.3",
        "Against strong attacks closeness, above all kernel density, beats uncertainty.",
        "BIM and PGD at the larger strength; closeness minus uncertainty, kernel density minus "
        "each metric of uncertainty and minus KL divergence.",
        _density_leads,
    ),
    Claim(
        "c",
        "section 5.3",
        "Against weak attacks uncertainty beats closeness.",
        "FGSM, and BIM and PGD at the smaller strength; uncertainty minus closeness.",
        partial(compare.ahead, chosen=compare.weak, better=["uncertainty"], worse=["closeness"]),
    ),
    Claim(
        "d",
        "section 5.3",
        "Entropy and confidence are (slightly) ahead of variance and mutual information.",
        "Every condition; each of the former minus each of the latter, by whatever margin.",
        partial(
            compare.ahead,
            chosen=compare.everywhere,
            better=["predictive_entropy", "confidence"],
            worse=["variance", "mutual_information"],
        ),
    ),
    *(claim for reading in READINGS for claim in _claims_e(*reading)),
    Claim(
        "f",
        "sections 5.3 and 6",
        "All six metrics together beat each of them alone.",
        "Every condition; all six minus each metric.",
        partial(compare.ahead, chosen=compare.everywhere, better=["all"], worse=PAPER_METRICS),
    ),
    Claim(
        "g",
        "section 6",
        "All six together reach an area of up to 96%.",
        "The best condition, fitted and judged on the same rows as in the paper, above 0.96, "
        "Bonferroni-corrected.",
        compare.up_to,
    ),
)
"""The claims in the order of the paper."""
