"""The report: verdicts that follow the numbers, refusals by name, a page that needs nothing."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from leery.errors import StudyFileError
from leery.evaluation import Interval
from leery.reporting import themed
from leery.study import METRIC_SETS, StudyResult, load_result, report
from leery.study._report._claims import CLAIMS, Judged, claims_table, judge
from leery.study._report._errata import errata
from leery.study._report._evidence import UNKNOWN, Evidence, evidence, pooled
from leery.study._report._sheets import all_six_sheet, detection_sheet, uncertainty_sheet
from leery.study._tables import TABLES

SAVED = Path(__file__).parents[2] / "docs" / "results"

Tables = Mapping[str, pd.DataFrame]


@pytest.fixture(scope="module")
def studies() -> list[StudyResult]:
    """The real studies whose tables are committed."""
    return [load_result(SAVED / name) for name in ("mnist", "fashion-mnist")]


@pytest.fixture
def folder(reports: Path) -> Path:
    """The reports of the committed results; tests that change something copy it."""
    return reports


def changed(studies: list[StudyResult], name: str, table: pd.DataFrame) -> list[StudyResult]:
    """The studies with another table; of both datasets."""
    return [
        replace(
            study, tables={**study.tables, name: table[table["dataset"] == study.dataset].copy()}
        )
        for study in studies
    ]


def both(studies: list[StudyResult], name: str) -> pd.DataFrame:
    return pd.concat([study.tables[name] for study in studies], ignore_index=True)


def verdict(studies: list[StudyResult], key: str) -> str:
    return found(studies, key).verdict


def found(studies: list[StudyResult], key: str) -> Judged:
    (claim,) = (claim for claim in CLAIMS if claim.key == key)
    return Judged(claim, tuple(claim.gather(studies)))


def with_areas(
    studies: list[StudyResult], area: Callable[[str, str, float], float], half: float
) -> list[StudyResult]:
    """The studies as if each set of metrics had that area under each condition."""
    table = both(studies, "comparisons")
    gap = [
        area(row.first, row.attack, row.epsilon) - area(row.second, row.attack, row.epsilon)
        for row in table.itertuples()
    ]
    table = table.assign(difference=gap, low=np.array(gap) - half, high=np.array(gap) + half)
    return changed(studies, "comparisons", table)


def paper_areas(name: str, attack: str, epsilon: float) -> float:
    """A world in which the paper is right about every area."""
    strong = attack != "FGSM" and epsilon in (0.30, 0.12)
    areas = {
        "variance": 0.70,
        "mutual_information": 0.71,
        "predictive_entropy": 0.73,
        "confidence": 0.74,
        "uncertainty": 0.75,
        "kernel_density": 0.90 if strong else 0.60,
        "kl_divergence": 0.55 if strong else 0.61,
        "closeness": 0.91 if strong else 0.70,
        "all": 0.99,
    }
    return areas[name.removesuffix("_sum")]


AREA_CLAIMS = (
    *("a", "b", "c", "d", "f"),
    *("e-helps", "e-less", "e-weak", "e-helps-sum", "e-less-sum", "e-weak-sum"),
)


@pytest.mark.parametrize("key", AREA_CLAIMS)
def test_verdicts_on_areas_follow_the_areas(studies: list[StudyResult], key: str) -> None:
    # Fashion alone: 0.12 is the larger strength of fashion articles and the smaller one of digits.
    fashion = studies[1:]
    assert verdict(with_areas(fashion, paper_areas, 0.001), key) == "holds"
    assert verdict(with_areas(fashion, paper_areas, 0.9), key) == "undecided"

    def turned(name: str, attack: str, epsilon: float) -> float:
        return 1 - paper_areas(name, attack, epsilon)

    expected = "holds" if key == "a" else "does not hold"
    assert verdict(with_areas(fashion, turned, 0.001), key) == expected


def test_one_best_metric_everywhere_refutes_claim_a(studies: list[StudyResult]) -> None:
    def areas(name: str, _attack: str, _epsilon: float) -> float:
        return list(METRIC_SETS).index(name) / 10

    entry = found(with_areas(studies, areas, 0.001), "a")
    assert entry.verdict == "does not hold"
    (best,) = entry.evidence
    assert best.what == "AUC(kernel_density) - AUC(kl_divergence)"


def test_the_best_condition_is_that_of_the_largest_area(studies: list[StudyResult]) -> None:
    table = both(studies, "results")
    best = (table["attack"] == "PGD") & (table["epsilon"] == 0.03)
    area = np.where(best, 0.99, 0.97)
    # Wide where it is largest: the choice must not go by the lower end.
    wide = table.assign(auc=area, auc_low=np.where(best, 0.90, 0.969), auc_high=area + 0.005)
    entry = found(changed(studies, "results", wide), "g")
    assert entry.evidence[0].where == "fashion-mnist, PGD 0.03"
    assert entry.verdict == "undecided"


@pytest.mark.parametrize(
    ("speaking", "against", "neither", "expected"),
    [
        (3, 0, 0, "holds"),
        (2, 0, 1, "holds in part"),
        (1, 1, 0, "holds in part"),
        (1, 2, 0, "does not hold"),
        (0, 1, 1, "does not hold"),
        (0, 0, 1, "undecided"),
        (1, 1, 3, "undecided"),
        (1, 0, 2, "undecided"),
        (1, 0, 1, "holds in part"),
    ],
)
def test_the_verdict_counts_the_comparisons(
    speaking: int, against: int, neither: int, expected: str
) -> None:
    intervals = [
        *[Interval(2, 1, 3)] * speaking,
        *[Interval(-2, -3, -1)] * against,
        *[Interval(0, -1, 1)] * neither,
    ]
    entries = tuple(Evidence("", "", interval, interval) for interval in intervals)
    assert Judged(CLAIMS[0], entries).verdict == expected


def ends_of(table: pd.DataFrame, larger: str) -> "pd.Series[float]":
    """Divergences that end larger under one attack."""
    return table["source"] % 7 * (1.0 + (table["attack"] == larger))


TURNS = [
    (
        "tables-3-4",
        "uncertainty",
        lambda t: t.assign(
            wrong=np.where(t["metric"] == "confidence", 0.2, 0.9), right=0.5, wrong_sd=0.1
        ),
        lambda t: t.assign(
            wrong=np.where(t["metric"] == "confidence", 0.9, 0.2), right=0.5, wrong_sd=0.1
        ),
    ),
    (
        "abstaining",
        "abstention",
        lambda t: t.assign(wrong=np.where(t["kept"] < t["images"], 0, 500)),
        lambda t: t.assign(wrong=500),
    ),
    (
        "figure-2-strong",
        "attack-success",
        lambda t: t.assign(share=1.0, low=0.995, high=1.0),
        lambda t: t.assign(share=0.9, low=0.88, high=0.92),
    ),
    (
        "figure-2-fgsm",
        "attack-success",
        lambda t: t.assign(share=0.65, low=0.64, high=0.66),
        lambda t: t.assign(share=0.85, low=0.82, high=0.88),
    ),
    (
        "figure-4-peak",
        "turning-points",
        lambda t: t.assign(**{column: t["flip"] for column in t if "peak" in column}),
        lambda t: t.assign(**{column: -1.0 for column in t if "peak" in column}),
    ),
    (
        "figure-4-fall",
        "turning-points",
        lambda t: t.assign(entropy_at_end=t["entropy_at_flip"] - t["entropy_at_end"]),
        lambda t: t.assign(entropy_at_end=t["entropy_at_flip"] + t["entropy_at_end"]),
    ),
    (
        "figure-5",
        "turning-points",
        lambda t: t.assign(crossing_kernel_density=t["flip"] + t["step"]),
        lambda t: t.assign(crossing_kernel_density=t["flip"] + 2 * t["step"]),
    ),
    (
        "figure-6",
        "turning-points",
        lambda t: t.assign(crossing_kl_divergence=t["flip"] - t["step"]),
        lambda t: t.assign(crossing_kl_divergence=np.nan),
    ),
    (
        "figure-6-sum",
        "turning-points",
        lambda t: t.assign(crossing_kl_divergence_sum=t["flip"] + t["step"]),
        lambda t: t.assign(crossing_kl_divergence_sum=t["flip"] - 2 * t["step"]),
    ),
    (
        "figure-7-peak",
        "turning-points",
        lambda t: t.assign(peak_kl_divergence=t["flip"]),
        lambda t: t.assign(peak_kl_divergence=t["flip"] + 3 * t["step"]),
    ),
    (
        "figure-7-peak-sum",
        "turning-points",
        lambda t: t.assign(peak_kl_divergence_sum=t["flip"]),
        lambda t: t.assign(peak_kl_divergence_sum=0.0),
    ),
    (
        "figure-7-end",
        "turning-points",
        lambda t: t.assign(kl_divergence_at_end=ends_of(t, "FGSM")),
        lambda t: t.assign(kl_divergence_at_end=ends_of(t, "BIM")),
    ),
    (
        "figure-7-end-sum",
        "turning-points",
        lambda t: t.assign(kl_divergence_sum_at_end=ends_of(t, "FGSM")),
        lambda t: t.assign(kl_divergence_sum_at_end=ends_of(t, "BIM")),
    ),
    (
        "g",
        "results",
        lambda t: t.assign(auc=0.97, auc_low=0.965, auc_high=0.98),
        lambda t: t.assign(auc=0.93, auc_low=0.92, auc_high=0.94),
    ),
]
"""A claim, its table, and changes that make it hold and fail."""


@pytest.mark.parametrize(("key", "name", "holding", "failing"), TURNS)
def test_other_verdicts_follow_their_tables(
    studies: list[StudyResult],
    key: str,
    name: str,
    holding: Callable[[pd.DataFrame], pd.DataFrame],
    failing: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    table = both(studies, name)
    assert verdict(changed(studies, name, holding(table)), key) == "holds"
    assert verdict(changed(studies, name, failing(table)), key) == "does not hold"


def test_every_claim_is_tested_to_turn() -> None:
    assert {claim.key for claim in CLAIMS} == {*AREA_CLAIMS, *(key for key, *_ in TURNS)}
    assert len(CLAIMS) == len({claim.key for claim in CLAIMS})


def test_fgsm_just_outside_the_band_is_undecided_and_far_outside_refuted(
    studies: list[StudyResult],
) -> None:
    table = both(studies, "attack-success")
    near = table.assign(share=0.69, low=0.66, high=0.72)
    assert verdict(changed(studies, "attack-success", near), "figure-2-fgsm") == "undecided"
    few = table.assign(share=0.02, low=0.01, high=0.03)
    entry = found(changed(studies, "attack-success", few), "figure-2-fgsm")
    assert (entry.verdict, entry.counts["for"]) == ("does not hold", 0)


def test_the_committed_verdicts_are_those_of_the_committed_tables(
    studies: list[StudyResult],
) -> None:
    saved = pd.read_csv(SAVED / "claims.csv", keep_default_na=False)
    fresh = claims_table(judge(studies))
    for column in ("claim", "sentence", "verdict", "for", "against", "neither"):
        assert saved[column].tolist() == fresh[column].tolist()


def of_seeds(studies: list[StudyResult], spread: float, seeds: int = 3) -> list[StudyResult]:
    """The studies as if so many classifiers had been trained, their areas that far apart."""
    result = []
    for study in studies:
        tables = {
            name: table
            if "seed" not in table
            else pd.concat([table.assign(seed=seed) for seed in range(seeds)], ignore_index=True)
            for name, table in study.tables.items()
        }
        comparisons = tables["comparisons"]
        shift = spread * (comparisons["seed"] - (seeds - 1) / 2)
        moved = {column: comparisons[column] + shift for column in ("difference", "low", "high")}
        tables["comparisons"] = comparisons.assign(**moved)
        result.append(replace(study, tables=tables))
    return result


def test_a_spread_of_classifiers_makes_a_verdict_undecided_and_says_so(
    studies: list[StudyResult],
) -> None:
    assert verdict(studies, "f") == "holds"
    assert found(studies, "f").remark == ""
    same = found(of_seeds(studies, 0.0), "f")
    assert same.verdict == "holds"
    assert same.extremes == pytest.approx(found(studies, "f").extremes)
    apart = found(of_seeds(studies, 1.0), "f")
    assert apart.verdict == "undecided"
    assert apart.remark.startswith("By images alone 72 of 72 comparisons are decided")


def test_pooling_is_students_interval_when_images_say_nothing_more() -> None:
    values = [0.1, 0.3, 0.4]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    points = pooled([Interval(value, value, value) for value in values])
    assert (points.low, points.high) == pytest.approx((expected.low, expected.high))
    wide = pooled([Interval(value, value - 0.3, value + 0.4) for value in values])
    half = (expected.high - expected.low) / 2
    assert wide.estimate - wide.low == pytest.approx(np.hypot(half, 0.3))
    assert wide.high - wide.estimate == pytest.approx(np.hypot(half, 0.4))
    assert pooled([Interval(1, 0, 3)]) == Interval(1, 0, 3)


def test_bonferronis_interval_is_wider_by_the_quantiles() -> None:
    found = pooled([Interval(0.5, 0.5 - 1.959964, 0.5 + 1.959964)], comparisons=10)
    assert found.high - found.estimate == pytest.approx(stats.norm.ppf(1 - 0.025 / 10))
    values = [0.1, 0.3, 0.4]
    expected = stats.ttest_1samp(values, 0).confidence_interval(1 - 0.05 / 60)
    points = pooled([Interval(value, value, value) for value in values], comparisons=60)
    assert (points.low, points.high) == pytest.approx((expected.low, expected.high))


def test_evidence_speaks_only_when_its_whole_interval_does() -> None:
    def speaks(low: float, high: float, bound: float = 0.0) -> str:
        return Evidence("", "", Interval(0, low, high), Interval(0, low, high), bound).speaks

    assert speaks(0.1, 0.2) == "for"
    assert speaks(-0.2, -0.1) == "against"
    assert speaks(-0.1, 0.1) == "neither"
    assert speaks(0.1, 0.2, bound=0.15) == "neither"
    assert evidence("", "", []).speaks == "neither"
    some = evidence("", "figure", [Interval(2, 1, 3), Interval(2, 1, 3), UNKNOWN])
    assert some.speaks == "for"
    assert some.what == "figure (2 of 3 classifiers)"
    assert Judged(CLAIMS[0], ()).verdict == "undecided"


def test_the_errata_quote_our_own_numbers(studies: list[StudyResult]) -> None:
    found = {entry.where: " ".join(entry.evidence) for entry in errata(studies)}
    assert len(found) == 5
    digits = studies[0].tables["uncertainty"].set_index("metric")["wrong"]
    printed = 2 * digits["predictive_entropy"] - digits["mutual_information"]
    assert f"as printed {printed:.3f} nats" in found["Equation 8 (mutual information)"]
    assert printed > digits["predictive_entropy"]
    bim = studies[0].tables["printed-bim"].iloc[0]
    share = bim["changed_as_printed"] / bim["images"]
    assert f"as printed BIM changes {share:.1%}" in found["Equation 2 (BIM)"]
    factors = re.findall(r"factor of (\d\.\d+) on average", found["Caption of table 4"])
    assert float(factors[0]) < 1.1 < float(factors[1])


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_pages_need_nothing_and_are_small(folder: Path) -> None:
    for place in (folder, folder / "mnist", folder / "fashion-mnist"):
        text = page(place)
        assert len(text) < 10e6
        assert not re.findall(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"(?!data:)", text)
        assert not re.findall(r"url\((?!#)|@import", text)
        links = {link for link in re.findall(r"href=\"([^#\"]+)\"", text) if link[:5] != "data:"}
        assert {link for link in links if link.startswith("http")} == {
            "https://arxiv.org/abs/2012.06390"
        }
        for link in links:
            assert link.startswith("http") or (place / link).is_file(), link


def test_every_figure_is_described_captioned_and_has_its_data(folder: Path) -> None:
    text = page(folder)
    figures = re.findall(r"<figure.*?</figure>", text, re.DOTALL)
    assert len(figures) == 2 * 12 - 2 + 1
    for figure in figures:
        (alt,) = re.findall(r'role="img" aria-label="([^"]+)"', figure)
        assert len(alt) > 60
        assert not re.search(r"\bnan\b", alt)
        caption = re.findall(r"<figcaption>(.*?)</figcaption>", figure, re.DOTALL)[0]
        assert len(caption) > 100
        assert not re.search(r"\bnan\b", caption)
        assert ".csv" in caption
        assert ".svg" in caption
    for dataset in ("mnist", "fashion-mnist"):
        drawn = {path.stem for path in (folder / dataset / "figures").glob("*.svg")}
        assert drawn == {path.stem for path in (folder / dataset / "figures").glob("*.csv")} | {
            "roc-low"
        }


def test_ids_are_unique_and_references_resolve(folder: Path) -> None:
    text = page(folder)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for reference in set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)):
        assert (reference[0] or reference[1]) in ids


def test_the_page_shows_the_figures_of_the_tables(folder: Path, studies: list[StudyResult]) -> None:
    text = page(folder)
    for study in studies:
        (table,) = re.findall(
            rf'<table class="sheet" id="detection-{study.dataset}">.*?</table>', text, re.DOTALL
        )
        body = table.split("<tbody>")[1]
        shown = [
            re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", body)
        ]
        keys = ["attack", "epsilon", "metrics", "protocol"]
        groups = list(study.results.groupby(keys, sort=False))
        assert len(shown) == len(groups) == 6 * len(METRIC_SETS) * 2
        for cells, (key, rows) in zip(shown, groups, strict=True):
            assert (cells[0], float(cells[1])) == key[:2]
            for place, row in enumerate(rows.itertuples()):
                auc, _, low, high = cells[4 + 4 * place : 8 + 4 * place]
                assert auc == ("-" if np.isnan(row.auc) else f"{row.auc:.3f}")
                if not np.isnan(row.auc):
                    assert (low, high) == (f"{row.tpr_at_1_fpr:.1%}", f"{row.tpr_at_5_fpr:.1%}")
    assert text.count('class="verdict ') == len(CLAIMS)


def test_several_classifiers_show_mean_and_spread(
    studies: list[StudyResult],
) -> None:
    (several,) = of_seeds(studies[:1], 0.0)
    results = several.results
    shifted = results.assign(auc=results["auc"] - 0.1 * results["seed"])
    several = replace(several, tables={**several.tables, "results": shifted})
    first = shifted.iloc[0]
    cell = detection_sheet(several).rows[0][4].text
    assert cell == f"{first['auc'] - 0.1:.3f} ± 0.100"
    assert "over 3 classifiers, trained at seeds 0, 1, 2," in all_six_sheet(several).note
    assert "± 0.0000" in uncertainty_sheet(several).rows[0][1].text
    lacking = shifted.assign(auc=shifted["auc"].where(shifted["seed"] != 2))
    several = replace(several, tables={**several.tables, "results": lacking})
    assert detection_sheet(several).rows[0][4].text.endswith("± 0.071 (2 of 3)")


def test_markup_in_a_file_stays_text(folder: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(folder / "mnist", hostile)
    manifest = (hostile / "manifest.json").read_text()
    evil = "</pre><script>alert(1)</script>"
    (hostile / "manifest.json").write_text(manifest.replace('"processors"', f'"{evil}"', 1))
    report(hostile)
    assert evil not in page(hostile)
    assert "&lt;/pre&gt;&lt;script&gt;" in page(hostile)


def test_the_same_tables_give_the_same_page(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "mnist", tmp_path / "again")
    report(tmp_path / "again")
    assert page(tmp_path / "again") == page(folder / "mnist")


def test_an_svg_in_a_page_takes_its_colours_and_keeps_its_ids_to_itself() -> None:
    svg = (
        '<?xml version="1.0"?><svg width="100pt" height="50pt" viewBox="0 0 1 1">'
        '<defs><path id="a" style="fill: #1b1b1b"/></defs><use xlink:href="#a"/>'
        '<g clip-path="url(#a)" style="fill: #fefefe"/></svg>'
    )
    inside = themed(svg, "one")
    assert 'id="one-a"' in inside
    assert 'href="#one-a"' in inside
    assert "url(#one-a)" in inside
    assert "currentColor" in inside
    assert "var(--paper)" in inside
    assert "height=" not in inside


def leery(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "leery", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("damage", ["missing", "cut", "edited"])
def test_a_bad_table_is_refused_by_name_with_the_command(
    tmp_path: Path, folder: Path, name: str, damage: str
) -> None:
    copy = tmp_path / "mnist"
    shutil.copytree(folder / "mnist", copy, ignore=shutil.ignore_patterns("*.svg", "*.html"))
    path = copy / TABLES[name].file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content + b"0\n")
    with pytest.raises(StudyFileError) as refusal:
        load_result(copy)
    assert str(path) in str(refusal.value)
    assert str(refusal.value).endswith(f"; run `leery reproduce mnist --out {copy}`")


def test_the_command_line_refuses_in_one_sentence_and_leaves_the_old_report(
    tmp_path: Path, folder: Path
) -> None:
    copy = tmp_path / "mnist"
    shutil.copytree(folder / "mnist", copy)
    before = page(copy)
    (copy / "results.csv").unlink()
    done = leery("report", str(copy))
    assert done.returncode == 1
    assert done.stderr.startswith(f"leery: expected the table that the study wrote at {copy}")
    assert "No such file" in done.stderr
    assert done.stderr.count("\n") == 1
    assert page(copy) == before
    for text in (
        *("", "{}", "[1]", '{"config": {}, "tables": {}, "again": ""}'),
        '{"config": {"dataset": "mnist"}, "tables": {}, "again": 3}',
        '{"config": {"dataset": "mnist"}, "tables": [], "again": ""}',
    ):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(StudyFileError, match="expected the manifest of a study at"):
            report(copy)
    with pytest.raises(StudyFileError, match="expected a study in .*nowhere, got none; run `leery"):
        report(tmp_path / "nowhere")


def test_a_joint_report_does_not_forget_a_damaged_study(tmp_path: Path, folder: Path) -> None:
    copy = tmp_path / "my runs"
    shutil.copytree(folder, copy)
    before = page(copy)
    (copy / "fashion-mnist" / "manifest.json").unlink()
    with pytest.raises(StudyFileError, match="manifest of a study at .*fashion-mnist") as refusal:
        report(copy)
    assert f"--out '{copy / 'fashion-mnist'}'" in str(refusal.value)
    assert page(copy) == before


def test_the_command_line_names_the_pages(folder: Path) -> None:
    pages = [folder / "mnist", folder / "fashion-mnist", folder]
    shown = (folder.parent / "stdout").read_text()
    assert shown.split() == [str(place / "report.html") for place in pages]
