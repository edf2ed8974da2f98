"""Comparisons that decide claims; each collects its evidence from the saved tables.

Every function here yields estimates that, according to the claim, are above a bound.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from scipy import stats

from leery.evaluation import Interval, mean_difference, share_difference, share_interval
from leery.metrics import PAPER_METRICS, UNCERTAINTY_METRICS, direction_of
from leery.study._report._evidence import UNKNOWN, Evidence, evidence, negated
from leery.study._tables import StudyResult

__all__ = [
    "Studies",
    "abstaining",
    "ahead",
    "ends_lower",
    "everywhere",
    "falls_again",
    "fooled",
    "levels_off",
    "more_doubtful",
    "near_flip",
    "no_best",
    "strong",
    "turns_at_flip",
    "up_to",
    "weak",
]

Studies = Sequence[StudyResult]

Chosen = Callable[[StudyResult, str, float], bool]


def everywhere(_study: StudyResult, _attack: str, _epsilon: float) -> bool:
    """True for every condition."""
    return True


def strong(study: StudyResult, attack: str, epsilon: float) -> bool:
    """True for BIM and PGD at the larger strength, where they change almost every label."""
    return attack != "FGSM" and epsilon == float(study.results["epsilon"].max())


def weak(study: StudyResult, attack: str, epsilon: float) -> bool:
    """True for FGSM, and for BIM and PGD at the smaller strength."""
    return not strong(study, attack, epsilon)


def ahead(
    studies: Studies,
    chosen: Chosen,
    better: Sequence[str],
    worse: Sequence[str],
    comparisons: int = 1,
) -> Iterator[Evidence]:
    """Held-out ROC-AUC of each set in ``better`` minus that of each set in ``worse``."""
    for study in studies:
        for (attack, epsilon), rows in study.tables["comparisons"].groupby(
            ["attack", "epsilon"], sort=False
        ):
            if not chosen(study, attack, epsilon):
                continue
            where = f"{study.dataset}, {attack} {epsilon:.2f}"
            differences = _differences(rows)
            for first in better:
                for second in worse:
                    found = differences.get((first, second), [])
                    what = f"AUC({first}) - AUC({second})"
                    yield evidence(where, what, found, comparisons=comparisons)


def _differences(rows: pd.DataFrame) -> Mapping[tuple[str, str], list[Interval]]:
    """Differences of ROC-AUC by pair of sets, with one interval per classifier."""
    found = defaultdict(list)
    columns = ["first", "second", "difference", "low", "high"]
    for first, second, *numbers in rows[columns].itertuples(index=False):
        interval = Interval(*map(float, numbers))
        found[first, second].append(interval)
        found[second, first].append(negated(interval))
    return found


def no_best(studies: Studies) -> Iterator[Evidence]:
    """Largest lead of any rival over the metric for which this lead is smallest."""
    largest = []
    for metric in PAPER_METRICS:
        rivals = [name for name in PAPER_METRICS if name != metric]
        comparisons = len(rivals) * _conditions(studies)
        lags = ahead(studies, everywhere, rivals, [metric], comparisons)
        largest.append(max(lags, key=_known_estimate))
    yield min(largest, key=_known_estimate)


def _known_estimate(entry: Evidence) -> float:
    return entry.found.estimate if entry.known else -math.inf


def _conditions(studies: Studies) -> int:
    return sum(len(study.results.drop_duplicates(["attack", "epsilon"])) for study in studies)


def up_to(studies: Studies) -> Iterator[Evidence]:
    """Largest ROC-AUC of all six metrics together, evaluated as in the paper."""
    best = []
    for study in studies:
        rows = study.results
        rows = rows[
            (rows["metrics"] == "all")
            & (rows["protocol"] == "paper")
            & (rows["positives"] == "all")
        ]
        for (attack, epsilon), found in rows.groupby(["attack", "epsilon"], sort=False):
            areas = found[["auc", "auc_low", "auc_high"]].itertuples(index=False)
            intervals = [Interval(*map(float, row)) for row in areas]
            where = f"{study.dataset}, {attack} {epsilon:.2f}"
            what = "AUC(all), in-sample"
            count = _conditions(studies)
            best.append(evidence(where, what, intervals, bound=0.96, comparisons=count))
    yield max(best, key=_known_estimate)


def _by_seed(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    for _, rows in table.groupby("seed", sort=False):
        yield rows


def more_doubtful(studies: Studies) -> Iterator[Evidence]:
    """Mean of each metric over wrong minus right predictions; larger is more uncertain."""
    for study in studies:
        for metric in UNCERTAINTY_METRICS:
            table = study.tables["uncertainty"]
            rows = table[table["metric"] == metric].itertuples()
            sign = "-" if direction_of(metric) < 0 else ""
            yield evidence(
                study.dataset,
                f"{sign}{metric}: mean of wrong - mean of right",
                [_gap(row, direction_of(metric)) for row in rows],
            )


def _gap(row: Any, direction: int) -> Interval:  # noqa: ANN401 - pandas makes the row's type
    if min(row.n_wrong, row.n_right) < 2:  # noqa: PLR2004 - a spread needs two
        return UNKNOWN
    found = mean_difference(
        (row.wrong, row.wrong_sd, row.n_wrong), (row.right, row.right_sd, row.n_right)
    )
    return found if direction > 0 else negated(found)


def abstaining(studies: Studies) -> Iterator[Evidence]:
    """Error rate on the 10% most uncertain images minus that on the others."""
    for study in studies:
        table = study.tables["abstention"]
        for metric in UNCERTAINTY_METRICS:
            curves = _by_seed(table[table["metric"] == metric])
            yield evidence(
                study.dataset,
                f"error rate of the 10% most uncertain by {metric} - that of the rest",
                [_rest_against_kept(curve) for curve in curves],
            )


def _rest_against_kept(curve: pd.DataFrame) -> Interval:
    images, errors = int(curve["images"].iloc[0]), int(curve["wrong"].max())
    kept = curve[curve["kept"] <= 0.9 * images]
    if kept.empty:
        return UNKNOWN
    last = kept.loc[kept["kept"].idxmax()]
    answered, wrong = int(last["kept"]), int(last["wrong"])
    return share_difference((errors - wrong, images - answered), (wrong, answered))


def fooled(studies: Studies) -> Iterator[Evidence]:
    """Success rate of BIM and PGD for epsilon of 0.2 and above."""
    for study in studies:
        table = study.tables["attack-success"]
        rows = table[(table["attack"] != "FGSM") & (table["epsilon"] >= 0.2)]  # noqa: PLR2004
        for (attack, epsilon), found in rows.groupby(["attack", "epsilon"], sort=False):
            yield evidence(
                f"{study.dataset}, {attack} {epsilon:.2f}",
                "share of labels changed",
                _shares(found),
                bound=0.99,
            )


def levels_off(studies: Studies) -> Iterator[Evidence]:
    """Distance of FGSM's largest success rate from the edge of the band around 65%."""
    for study in studies:
        table = study.tables["attack-success"]
        table = table[table["attack"] == "FGSM"]
        distances = [
            _inside(_shares(rows.loc[[rows["share"].idxmax()]])[0], middle=0.65, reach=0.05)
            for rows in _by_seed(table)
        ]
        yield evidence(
            f"{study.dataset}, FGSM, any epsilon",
            "5% - distance of the largest share of labels changed from 65%",
            distances,
            comparisons=table["epsilon"].nunique(),
        )


def _inside(found: Interval, *, middle: float, reach: float) -> Interval:
    """Distance of an estimate from the edge of a band; negative outside the band."""
    ends = sorted(abs(end - middle) for end in (found.low, found.high))
    nearest = 0.0 if found.low <= middle <= found.high else ends[0]
    return Interval(reach - abs(found.estimate - middle), reach - ends[1], reach - nearest)


def _shares(rows: pd.DataFrame) -> list[Interval]:
    columns = rows[["share", "low", "high"]].itertuples(index=False)
    return [Interval(*map(float, row)) for row in columns]


def turns_at_flip(
    studies: Studies, attacks: Sequence[str], columns: Mapping[str, str]
) -> Iterator[Evidence]:
    """Fraction of images whose turning point is within one grid step of the label change."""
    for study in studies:
        table = study.tables["turning-points"]
        for attack in attacks:
            for column, what in columns.items():
                flipped = table[(table["attack"] == attack) & table["flip"].notna()]
                intervals = [_share_near(rows, column) for rows in _by_seed(flipped)]
                where = f"{study.dataset}, {attack}"
                yield evidence(where, f"share of images: {what}", intervals, bound=0.5)


def near_flip(rows: pd.DataFrame, column: str) -> "pd.Series[bool]":
    """Mask of the images whose turning point is within one grid step of the label change."""
    # Half a step more: the strengths are multiples of the step up to rounding.
    near: pd.Series[bool] = (rows[column] - rows["flip"]).abs() <= 1.5 * rows["step"]
    return near


def _share_near(rows: pd.DataFrame, column: str) -> Interval:
    near = near_flip(rows, column)
    return share_interval(int(near.sum()), len(near)) if len(near) else UNKNOWN


def falls_again(studies: Studies) -> Iterator[Evidence]:
    """The entropy at the change of label minus that at the largest strength, image by image."""
    for study in studies:
        table = study.tables["turning-points"]
        intervals = [
            _mean((rows["entropy_at_flip"] - rows["entropy_at_end"]).dropna())
            for rows in _by_seed(table[table["attack"] == "BIM"])
        ]
        what = "entropy at the change of label - entropy at the largest strength"
        yield evidence(f"{study.dataset}, BIM", what, intervals)


def ends_lower(studies: Studies, metric: str) -> Iterator[Evidence]:
    """KL divergence from the predicted class at the largest strength, FGSM minus BIM, paired."""
    for study in studies:
        intervals = []
        table = study.tables["turning-points"]
        for rows in _by_seed(table[table["flip"].notna()]):
            ends = rows.pivot_table(index="source", columns="attack", values=f"{metric}_at_end")
            both = ends.reindex(columns=["FGSM", "BIM"]).dropna()
            intervals.append(_mean(both["FGSM"] - both["BIM"]))
        what = f"{metric} at the largest strength: FGSM - BIM, same images"
        yield evidence(study.dataset, what, intervals)


def _mean(values: pd.Series) -> Interval:
    """A mean with Student's t interval."""
    if len(values) < 2:  # noqa: PLR2004 - a spread needs two
        return UNKNOWN
    found = stats.ttest_1samp(values, 0.0)
    low, high = found.confidence_interval(0.95)
    return Interval(float(values.mean()), float(low), float(high))
