"""ROC figures against scikit-learn and a bootstrap; pools and protocols by their laws."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from leery.combiners import Facts, LogisticCombiner
from leery.detector import MetricTable
from leery.errors import InputError
from leery.evaluation import (
    Pool,
    abstention,
    cross_fit,
    detection,
    every_attack_found,
    held_out_scores,
    in_sample_scores,
    mean_difference,
    roc_auc_difference,
    roc_auc_interval,
    select_positives,
    share_difference,
    share_interval,
    tpr_at_fpr,
)
from leery.evaluation._protocols import scores_of


def versions(
    count: int, seed: int, *, gap: float = 1.0, shared: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, truth and source image of clean, noisy and adversarial versions."""
    generator = np.random.default_rng(seed)
    image = shared * generator.normal(size=count)
    scores = [image + generator.normal(size=count) + shift for shift in (0, 0, gap)]
    truth = np.repeat([False, False, True], count)
    return np.concatenate(scores), truth, np.tile(np.arange(count), 3)


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_equals_scikit_learns_with_and_without_ties(*, ties: bool) -> None:
    scores, truth, source = versions(200, 1)
    scores = scores.round(0) if ties else scores
    expected = sklearn.metrics.roc_auc_score(truth, scores)
    assert roc_auc_interval(scores, truth, source).estimate == pytest.approx(expected)


@pytest.mark.parametrize("shared", [0.0, 1.0, 3.0])
def test_the_interval_equals_a_bootstrap_over_source_images(shared: float) -> None:
    scores, truth, source = versions(300, 2, shared=shared)
    found = roc_auc_interval(scores, truth, source)
    generator = np.random.default_rng(3)
    by_image = np.arange(900).reshape(3, 300)
    areas = []
    for _ in range(2000):
        rows = by_image[:, generator.integers(0, 300, 300)].ravel()
        areas.append(sklearn.metrics.roc_auc_score(truth[rows], scores[rows]))
    low, high = np.quantile(areas, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.006)
    assert found.high == pytest.approx(high, abs=0.006)


def test_versions_of_one_image_make_the_interval_narrower_than_strangers() -> None:
    scores, truth, source = versions(300, 4, shared=3.0)
    paired = roc_auc_interval(scores, truth, source)
    strangers = roc_auc_interval(scores, truth, np.arange(900))
    assert paired.high - paired.low < 0.7 * (strangers.high - strangers.low)


def test_the_interval_covers_the_truth_in_95_percent_of_draws() -> None:
    # For gap 1 and unit noise on top of a shared unit normal: P(Z < 1 / sqrt(2 + 2)).
    truth_area = 0.6914625
    hits = []
    for seed in range(400):
        scores, truth, source = versions(100, seed)
        interval = roc_auc_interval(scores, truth, source)
        hits.append(interval.low <= truth_area <= interval.high)
    # The standard error of the share is 0.011.
    assert 0.915 < np.mean(hits) < 0.985


def test_limits_of_the_interval() -> None:
    perfect = roc_auc_interval(np.arange(4.0), np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1]))
    # Two clusters that agree say little: Wilson's interval of 2 of 2.
    assert (perfect.estimate, perfect.high) == (1.0, 1.0)
    assert perfect.low == pytest.approx(0.3424, abs=1e-4)
    lone = roc_auc_interval(
        np.array([1.0, 3.0, 2.0]), np.array([0, 0, 1], bool), np.array([0, 1, 0])
    )
    assert (lone.estimate, lone.low, lone.high) == (0.5, 0.0, 1.0)
    lucky = roc_auc_interval(np.arange(2.0), np.array([0, 1], bool), np.array([0, 0]))
    assert (lucky.estimate, lucky.low, lucky.high) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "truth", "text"),
    [
        (np.arange(3.0), np.zeros(3, bool), "expected positives and negatives, got 0 and 3"),
        (np.arange(3.0), np.array([0, 1, 1]), "expected one bool per score, .* got int64 of shape"),
        (np.arange(3.0), np.zeros(2, bool), r"shape \(3,\), got bool of shape \(2,\)"),
        (np.array([1.0, np.nan]), np.array([True, False]), "expected finite scores"),
    ],
)
def test_what_has_no_roc_curve_is_refused(scores: np.ndarray, truth: np.ndarray, text: str) -> None:
    with pytest.raises(InputError, match=text):
        roc_auc_interval(scores, truth, np.arange(len(scores)))
    with pytest.raises(InputError, match=text):
        tpr_at_fpr(scores, truth, 0.05)


def test_tpr_at_fpr_is_the_best_threshold_within_the_rate() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.35, 0.45, 0.6, 0.7, 0.05])
    truth = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], bool)
    assert tpr_at_fpr(scores, truth, 0.0) == 0.4
    assert tpr_at_fpr(scores, truth, 0.19) == 0.4
    assert tpr_at_fpr(scores, truth, 0.2) == 0.6
    assert tpr_at_fpr(scores, truth, 0.4) == 0.8
    assert tpr_at_fpr(scores, truth, 1.0) == 1.0
    assert tpr_at_fpr(np.zeros(10), truth, 0.05) == 0.0


def test_an_image_counts_as_found_if_every_successful_attack_on_it_is_flagged() -> None:
    success = np.array([[1, 1, 0, 0, 1], [1, 0, 0, 1, 1]], bool)
    flagged = np.array([[1, 0, 1, 0, 1], [1, 1, 0, 1, 0]], bool)
    found = every_attack_found(success, flagged)
    assert found is not None
    assert found == share_interval(2, 4)
    assert every_attack_found(success & False, flagged) is None


def table(predicted: list[int], value: float) -> MetricTable:
    values = np.column_stack([np.arange(len(predicted)) + value, np.zeros(len(predicted))])
    return MetricTable(("a", "b"), values, np.array(predicted))


def small_pool() -> Pool:
    labels = np.array([0, 1, 2, 3])
    clean = table([0, 1, 9, 3], 0.0)
    noisy = table([0, 1, 2, 9], 100.0)
    adversarial = table([5, 1, 2, 8], 200.0)
    return Pool.of_versions(clean, adversarial, noisy, labels)


def test_a_pool_holds_the_versions_of_correctly_classified_images() -> None:
    pool = small_pool()
    assert pool.source.tolist() == [0, 1, 3] * 3
    assert pool.table.column("a").tolist() == [0, 1, 3, 100, 101, 103, 200, 201, 203]
    assert pool.noisy.tolist() == [False] * 3 + [True] * 3 + [False] * 3
    assert pool.adversarial.tolist() == [False] * 6 + [True] * 3
    assert pool.successful.tolist() == [False] * 6 + [True, False, True]
    assert pool.attack_success == pytest.approx(2 / 3)


def test_a_pool_may_lack_noisy_versions() -> None:
    pool = Pool.of_versions(table([0, 1], 0), table([1, 1], 5), None, np.array([0, 1]))
    assert pool.noisy.sum() == 0
    assert pool.adversarial.tolist() == [False, False, True, True]
    assert pool.successful.tolist() == [False, False, True, False]


def test_positives_are_all_successful_or_failed_and_negatives_always_count() -> None:
    pool = small_pool()
    assert select_positives(pool, "all").sum() == 9
    assert select_positives(pool, "successful").tolist() == [True] * 7 + [False, True]
    assert select_positives(pool, "failed").tolist() == [True] * 6 + [False, True, False]
    with pytest.raises(
        InputError, match="expected one of all, successful, failed as positives, got 'some'"
    ):
        select_positives(pool, "some")  # type: ignore[arg-type]


def test_a_detection_counts_and_measures_what_is_selected() -> None:
    pool = small_pool()
    found = detection(pool, pool.table.column("a"), "successful")
    assert (found.n_clean, found.n_noisy, found.n_adversarial) == (3, 3, 2)
    assert found.auc == 1.0
    assert found.tpr_at_1_fpr == 1.0
    assert found.average_precision == 1.0
    backwards = detection(pool, -pool.table.column("a"))
    assert backwards.auc == 0.0
    assert backwards.tpr_at_5_fpr == 0.0


def test_tables_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"tables of 2 rows and equal metrics, got .*\[2, 3\]"):
        Pool.of_versions(table([0, 1], 0), table([1, 1, 1], 5), None, np.array([0, 1]))
    with pytest.raises(InputError, match="correctly classified image, got none"):
        Pool.of_versions(table([0, 1], 0), table([1, 1], 5), None, np.array([5, 5]))


def noise_pool(count: int, seed: int) -> Pool:
    """Metrics that say nothing: 40 columns of noise."""
    generator = np.random.default_rng(seed)
    names = tuple(f"m{i}" for i in range(40))
    tables = [
        MetricTable(names, generator.normal(size=(count, 40)), np.zeros(count, int))
        for _ in range(3)
    ]
    return Pool.of_versions(tables[0], tables[1], tables[2], np.zeros(count, int))


def test_in_sample_is_optimistic_about_noise_and_held_out_is_not() -> None:
    pool = noise_pool(60, 0)
    names = pool.table.names
    in_sample = detection(pool, in_sample_scores(pool, names)).auc
    held_out = detection(pool, held_out_scores(pool, names)).auc
    assert in_sample > 0.75
    assert abs(held_out - 0.5) < 0.1


def test_held_out_scores_come_from_combiners_that_never_saw_the_image() -> None:
    pool = noise_pool(30, 1)
    names = pool.table.names[:3]
    scores = held_out_scores(pool, names)
    # Changing one image's versions must leave the combiner of its own fold alone.
    values = pool.table.values.copy()
    rows = pool.source == 4
    values[rows] += 1000.0
    changed = Pool(
        MetricTable(pool.table.names, values, pool.table.predicted),
        pool.source,
        pool.noisy,
        pool.adversarial,
        pool.successful,
    )
    same = np.isclose(held_out_scores(changed, names), scores, atol=1e-12)
    by_image = [bool(same[pool.source == image].all()) for image in range(30)]
    assert sum(by_image) == 5  # the fold of image 4 has 6 images; it is one of them
    assert not by_image[4]


def test_every_row_is_judged_once_by_a_combiner_of_the_other_folds() -> None:
    pool = noise_pool(40, 3)
    fitted = list(cross_fit(pool, ["m0", "m1"], seed=1))
    assert len(fitted) == 5
    judged = np.concatenate([rows for _, rows in fitted])
    assert sorted(judged) == list(range(len(pool.source)))
    scores = held_out_scores(pool, ["m0", "m1"], 1)
    for combiner, rows in fitted:
        assert scores[rows] == pytest.approx(scores_of(combiner, pool, ["m0", "m1"], rows))


def test_the_seed_deals_the_folds() -> None:
    pool = noise_pool(40, 2)
    one, again = (held_out_scores(pool, ["m0", "m1"], 5) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, held_out_scores(pool, ["m0", "m1"], 6))
    with pytest.raises(InputError, match="at least 5 correctly classified images for 5 folds"):
        held_out_scores(noise_pool(4, 3), ["m0"])


def taught(values: np.ndarray, adversarial: np.ndarray) -> LogisticCombiner:
    facts = [Facts(f"m{place}", "", "both") for place in range(values.shape[1])]
    nothing = np.zeros(len(values), dtype=np.int64)
    return LogisticCombiner(facts).fit(values, nothing, adversarial=adversarial)


def test_the_combiner_equals_scikit_learns_pipeline() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(300, 4)) * [1, 10, 100, 0] + [0, 5, 0, 3]
    truth = values[:, 0] + generator.normal(size=300) > 0
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(values, truth)
    found = taught(values, truth)(torch.from_numpy(values), torch.zeros(300)).numpy()
    assert np.allclose(found, peer.decision_function(values), atol=1e-12)


def test_the_combiner_refuses_what_it_cannot_learn_from() -> None:
    values = np.zeros((4, 2))
    with pytest.raises(InputError, match="got only adversarial ones"):
        taught(values, np.ones(4, bool))
    values[1, 1] = np.inf
    with pytest.raises(InputError, match="expected finite metrics, got 1 rows"):
        taught(values, np.array([0, 0, 1, 1], bool))


def test_the_difference_of_areas_equals_a_bootstrap_over_source_images() -> None:
    first, truth, source = versions(300, 5, shared=2.0)
    second = first + np.random.default_rng(6).normal(size=900)
    found = roc_auc_difference(first, second, truth, source)
    generator = np.random.default_rng(7)
    by_image = np.arange(900).reshape(3, 300)
    differences = []
    for _ in range(1000):
        rows = by_image[:, generator.integers(0, 300, 300)].ravel()
        one, two = (
            sklearn.metrics.roc_auc_score(truth[rows], scores[rows]) for scores in (first, second)
        )
        differences.append(one - two)
    low, high = np.quantile(differences, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.005)
    areas = [roc_auc_interval(scores, truth, source).estimate for scores in (first, second)]
    assert found.estimate == pytest.approx(areas[0] - areas[1])


def test_the_interval_of_the_difference_is_the_paired_one() -> None:
    first, truth, source = versions(300, 8)
    second = first + 0.1 * np.random.default_rng(9).normal(size=900)
    paired = roc_auc_difference(first, second, truth, source)
    alone = roc_auc_interval(first, truth, source)
    assert paired.high - paired.low < 0.4 * (alone.high - alone.low)


def test_limits_of_the_difference() -> None:
    scores, truth, source = versions(50, 10)
    same = roc_auc_difference(scores, scores, truth, source)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    turned = roc_auc_difference(-scores, scores, truth, source)
    back = roc_auc_difference(scores, -scores, truth, source)
    assert [turned.low, turned.high] == pytest.approx([-back.high, -back.low])
    lone = roc_auc_difference(
        np.array([1.0, 3.0, 2.0]), np.arange(3.0), np.array([0, 0, 1], bool), np.zeros(3, int)
    )
    assert (lone.low, lone.high) == (-1, 1)


def test_shares_have_the_intervals_of_the_literature() -> None:
    # Newcombe (1998), table I: 81 of 263.
    found = share_interval(81, 263)
    assert (round(found.low, 4), round(found.high, 4)) == (0.2553, 0.3662)
    # Newcombe (1998), second paper, table II: 56 of 70 against 48 of 80, method 10.
    found = share_difference((56, 70), (48, 80))
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)
    assert share_interval(0, 10).low == 0
    for hits, trials in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError, match=f"got {hits} of {trials}"):
            share_interval(hits, trials)


def test_the_difference_of_means_is_welchs() -> None:
    generator = np.random.default_rng(11)
    one, two = generator.normal(1, 1, 12), generator.normal(0, 3, 40)
    sizes = [(part.mean(), part.std(ddof=1), len(part)) for part in (one, two)]
    expected = scipy.stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    found = mean_difference(*sizes)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    still = mean_difference((1.0, 0.0, 5), (0.5, 0.0, 5))
    assert (still.low, still.high) == (0.5, 0.5)
    with pytest.raises(InputError, match="at least 2, got 1 and 40"):
        mean_difference((1.0, 0.0, 1), sizes[1])


def test_abstaining_counts_what_is_left() -> None:
    generator = np.random.default_rng(12)
    wrong = generator.random(200) < 0.2
    doubt = wrong + generator.normal(size=200)
    curve = abstention(wrong, doubt)
    for place in (0, 57, 199):
        answered = np.argsort(doubt)[: curve.kept[place]]
        assert curve.wrong[place] == wrong[answered].sum()
    assert curve.coverage[-1] == 1
    assert curve.risk[-1] == pytest.approx(wrong.mean())
    assert abstention(wrong, wrong.astype(float)).risk.tolist() == [0, wrong.mean()]


def test_images_of_equal_doubt_are_answered_together() -> None:
    wrong = np.array([True, False, True, False])
    curve = abstention(wrong, np.array([0.0, 0.0, 1.0, 1.0]))
    assert curve.kept.tolist() == [2, 4]
    assert curve.wrong.tolist() == [1, 2]
    flat = abstention(wrong, np.zeros(4))
    assert (flat.kept.tolist(), flat.risk.tolist()) == ([4], [0.5])
    for doubt in (np.array([0.0, np.nan, 1.0, 1.0]), np.zeros(3)):
        with pytest.raises(InputError, match="expected a finite uncertainty for each image"):
            abstention(wrong, doubt)
    with pytest.raises(InputError, match="expected a finite uncertainty"):
        abstention(np.zeros(0, bool), np.zeros(0))
