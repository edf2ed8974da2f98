"""Write the tables of README and docs anew from docs/results, which real runs left.

make results runs the study, make choices the measurements of choosing.md, and both run this;
tests/test_readme.py and tests/test_docs.py hold the texts to it.
"""

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pandas as pd

from leery.arena import summary

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
README, CHOOSING = DOCS.parent / "README.md", DOCS / "choosing.md"
PAPER, ARENA, CERTIFICATE, THREATS, CLUSTER = (
    DOCS / f"{name}.md" for name in ("paper", "arena", "certificate", "threats", "cluster")
)
WEIGHTS = DOCS.parent / "src" / "leery" / "classifiers" / "weights"

PAPERS = "the paper's six"
"""The set of metrics of that name in benchmarks/detection.py."""

JUDGED = [
    *("digits-0", "digits-1", "digits-2", "fashion-0"),
    *("strange-enlarged", "strange-coloured", "strange-plain", "strange-transformer"),
]
"""The scenes of benchmarks/scenes.py for which results are reported."""

KINDS = {
    "digits": "digits, three classifiers",
    "fashion": "fashion articles",
    "strange": "four unseen classifiers",
}
"""Kinds of scenes, by how their names begin."""

THRESHOLDS = {
    "clean and changed images": "tpr_at_1_fpr",
    "clean images": "tpr_at_1_fpr_clean_threshold",
}
"""Columns of an arena's cells, by the images on which the threshold was set."""

COLUMNS = {
    "variance": "variance",
    "predictive_entropy": "entropy",
    "mutual_information": "mut. inf.",
    "confidence": "confidence",
    "kernel_density": "density",
    "kl_divergence": "KL",
    "uncertainty": "uncertainty",
    "closeness": "closeness",
}


def results_table(dataset: str) -> str:
    """The held-out areas of a dataset, all positives, with those of the paper's protocol."""
    table = pd.read_csv(RESULTS / dataset / "results.csv")
    table = table[table["positives"] == "all"]
    headings = ["attack", "changes the label", *COLUMNS.values(), "**all six**", "95 % interval"]
    headings += ["TPR at 1 % FPR", "as in the paper"]
    lines = []
    for (attack, epsilon), rows in table.groupby(["attack", "epsilon"], sort=False):
        held_out, paper = (
            rows[rows["protocol"] == protocol].set_index("metrics")
            for protocol in ("held-out", "paper")
        )
        whole = held_out.loc["all"]
        cells = [f"{attack} {epsilon:.2f}", f"{whole['attack_success']:.1%}"]
        cells += [f"{held_out.loc[name, 'auc']:.3f}" for name in COLUMNS]
        cells += [f"**{whole['auc']:.3f}**", f"{whole['auc_low']:.3f} to {whole['auc_high']:.3f}"]
        cells += [f"{whole['tpr_at_1_fpr']:.2f}", f"{paper.loc['all', 'auc']:.3f}"]
        lines.append(cells)
    return _table(headings, lines)


def seeds_table() -> str:
    """All six metrics over several classifiers: mean and standard deviation."""
    table = pd.read_csv(RESULTS / "mnist-seeds" / "results.csv")
    table = table[(table["protocol"] == "held-out") & (table["positives"] == "all")]
    lines = []
    for (attack, epsilon), rows in table.groupby(["attack", "epsilon"], sort=False):
        by_set = rows.groupby("metrics")
        means, spreads = by_set.mean(numeric_only=True), by_set.std(numeric_only=True)
        cells = [
            f"{means.loc[name, column]:.{digits}f} ± {spreads.loc[name, column]:.{digits}f}"
            for name, column, digits in (
                ("all", "auc", 3),
                ("kernel_density", "auc", 3),
                ("all", "tpr_at_1_fpr", 2),
            )
        ]
        lines.append([f"{attack} {epsilon:.2f}", *cells])
    return _table(["attack", "all six", "kernel density", "TPR at 1 % FPR, all six"], lines)


def claims_table() -> str:
    """The verdicts on the paper's claims, on both datasets together."""
    table = pd.read_csv(RESULTS / "claims.csv")
    lines = []
    for row in table.to_dict("records"):
        counts = " / ".join(str(row[side]) for side in ("for", "against", "neither"))
        lines.append([row["sentence"], row["source"], f"**{row['verdict']}**", counts])
    headings = ["the paper says", "where", "verdict", "comparisons for / against / neither"]
    return _table(headings, lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    return "\n".join(map(_line, [headings, ["---"] * len(headings), *rows]))


def _shares(title: str, frame: pd.DataFrame, form: str = "{:.3f}") -> str:
    """A table of shares, with the names of its rows under a title; nothing where one is missing."""
    rows = [
        [str(name), *("" if pd.isna(share) else form.format(share) for share in row)]
        for name, row in frame.iterrows()
    ]
    return _table([title, *frame.columns], rows)


def detection_tables() -> dict[str, pd.DataFrame]:
    """The committed tables of detection by scene, those that are judged."""
    folder = RESULTS / "detection"
    return {name: pd.read_csv(folder / f"{name}.csv") for name in JUDGED}


def found(
    table: pd.DataFrame, rate: float = 0.01, promise: str = "clean and harmless"
) -> pd.DataFrame:
    """The TPR of every set of metrics (columns) in every cell (rows)."""
    rows = table[(table.what == "found") & (table.rate == rate) & (table.promise == promise)]
    return rows.pivot_table(index="cell", columns="metrics", values="share", sort=False)


def default_table() -> str:
    """The worst and the mean cell of the default and of maximum softmax, by kind of classifier."""
    rows = []
    for kind, name in KINDS.items():
        tables = [found(t) for scene, t in detection_tables().items() if scene.startswith(kind)]
        cells = pd.concat(tables)
        shares = [
            share
            for title in ("default", "baseline max_softmax")
            for share in (cells[title].min(), cells[title].mean())
        ]
        rows.append([name, str(len(cells)), *(f"{share:.2f}" for share in shares)])
    names = ["TPR at 1 % false alarms", "cells", "leery, worst", "leery, mean"]
    return _table([*names, "maximum softmax, worst", "maximum softmax, mean"], rows)


def arenas() -> list[str]:
    """Names of the datasets whose arena is committed."""
    return sorted(path.parent.name for path in (RESULTS / "arena").glob("*/leaderboard.csv"))


def arena_shares(dataset: str, column: str = "tpr_at_1_fpr") -> pd.DataFrame:
    """What each detector (columns) finds of each attack (rows), unseen and successful.

    For the shipped classifier, whatever others there are.
    """
    table = pd.read_csv(RESULTS / "arena" / dataset / "cells.csv")
    table = table[table.unseen & (table.positives == "successful") & (table.seed == 0)]
    return table.pivot_table(index="attack", columns="detector", values=column, sort=False)


def arena_table() -> str:
    """The worst and the mean share that leery finds in each arena, and the best of the others."""
    rows = []
    for dataset in arenas():
        table = summary(pd.read_csv(RESULTS / "arena" / dataset / "leaderboard.csv"))
        table = table.set_index("detector")
        for what, column in THRESHOLDS.items():
            cells = [dataset, what]
            for measured in ("worst", "mean"):
                shares = table[column.replace("tpr", measured)]
                others = shares.drop("leery")
                cells += [f"{shares['leery']:.2f}", f"{others.max():.2f} (`{others.idxmax()}`)"]
            rows.append(cells)
    names = ["dataset", "threshold set on", "leery, worst", "best other, worst"]
    return _table([*names, "leery, mean", "best other, mean"], rows)


def attacks_table(dataset: str) -> str:
    """What leery finds of each attack beside the best other detector, the worst first."""
    first, second = (arena_shares(dataset, column) for column in THRESHOLDS.values())
    rows = []
    for attack in first.sort_values("leery", kind="stable").index:
        cells = [str(attack)]
        for shares in (first.loc[attack], second.loc[attack]):
            others = shares.drop("leery")
            cells += [f"{shares['leery']:.3f}", f"{others.max():.3f} (`{others.idxmax()}`)"]
        rows.append(cells)
    names = ["attack", "leery", "best of the others"]
    return _table([*names, "leery, clean threshold", "best of the others, clean threshold"], rows)


def leaderboard(dataset: str) -> str:
    """The detectors of an arena by the attack that they find least, and what they cost."""
    folder = RESULTS / "arena" / dataset
    times = pd.read_csv(folder / "times.csv").query("kind == 'detector'")
    cost = times.groupby("name").score_ms.mean()
    rows = []
    board = summary(pd.read_csv(folder / "leaderboard.csv"))
    attacked = ["evaded_at_1_fpr", "certified_at_1_fpr"] if "evaded_at_1_fpr" in board else []
    for row in board.to_dict("records"):
        name = f"`{row['detector']}`" + (" *" if row["learns_from_attacks"] else "")
        low, high = (f"{row[f'worst_at_1_fpr_{end}']:.2f}" for end in ("low", "high"))
        cells = [
            name,
            row["worst_attack_at_1_fpr"],
            f"{row['worst_at_1_fpr']:.2f} ({low} to {high})",
        ]
        columns = ["mean_at_1_fpr", "every_attack_at_1_fpr", *attacked]
        columns += ["worst_at_1_fpr_clean_threshold"]
        cells += ["" if pd.isna(row[column]) else f"{row[column]:.2f}" for column in columns]
        cells += [f"{row[f'{what}_at_5_fpr']:.2f}" for what in ("worst", "mean")]
        alarms = [row["false_alarms_at_1_fpr"], row["most_false_alarms_at_1_fpr"]]
        cells += [f"{alarms[0]:.1%}", f"{alarms[1]:.1%} ({row['most_false_alarms_on_at_1_fpr']})"]
        rows.append([*cells, f"{cost[row['detector']]:.2f}"])
    names = [
        "detector",
        "its worst attack",
        "share found",
        "mean",
        "images with every attack found",
    ]
    names += ["evaded by an informed attacker", "certified"] if attacked else []
    names += ["worst, clean threshold", "worst at 5 %", "mean at 5 %", "false alarms"]
    return _table([*names, "most false alarms on changed images", "ms per image"], rows)


def shipped_table() -> str:
    """What the default finds of each attack on the README's classifier, the worst first."""
    shares = arena_shares("mnist")[["leery", "max_softmax"]]
    shares = shares.sort_values(["leery", "max_softmax"], kind="stable")
    low = shares["leery"] < 0.99  # noqa: PLR2004 - the others are one row
    rows = [[str(cell), *(f"{share:.3f}" for share in own)] for cell, own in shares[low].iterrows()]
    others = shares[~low]
    spans = [f"{column.min():.3f} to {column.max():.3f}" for _, column in others.items()]
    rows.append([f"{len(others)} others: {', '.join(map(str, others.index))}", *spans])
    return _table(["attack", "leery", "maximum softmax"], rows)


def elsewhere() -> str:
    """What the default finds on other classifiers, in words."""
    tables = {name: found(table)["default"] for name, table in detection_tables().items()}
    shares = {
        "on the same architecture trained with two other seeds": [
            table for scene, table in tables.items() if scene in ("digits-1", "digits-2")
        ],
        "on Fashion-MNIST": [arena_shares("fashion-mnist")["leery"]],
        "on CIFAR-10": [arena_shares("cifar-10")["leery"]],
        "on four unseen classifiers": [
            table for scene, table in tables.items() if scene.startswith("strange")
        ],
    }
    *most, last = (
        f"{pd.concat(own).min():.2f} {name} (mean {pd.concat(own).mean():.2f})"
        for name, own in shares.items()
    )
    return f"On other classifiers the lowest share is smaller: {', '.join(most)}, {last}."


def classifiers_table() -> str:
    """The test accuracy of the shipped classifiers, and of other seeds where they were kept."""
    seeds = json.loads((RESULTS / "mnist-seeds" / "manifest.json").read_text())["classifiers"]
    others = ", ".join(f"{own['test_accuracy']:.2%}" for own in seeds)
    rows = []
    for name, dataset, more, paper in (
        ("DigitNet", "mnist", others, "98.84%"),
        ("FashionNet", "fashion-mnist", "", "92.03%"),
    ):
        record = json.loads((WEIGHTS / f"{dataset}.json").read_text())
        own = [f"{record['recipe']['dropout']:g}", f"{record['test_accuracy']:.2%}"]
        rows.append([name, *own, more, paper])
    return _table(["", "dropout", "test accuracy, seed 0", "seeds 0, 1, 2", "the paper's"], rows)


def strangers_table(promise: str) -> str:
    """The default beside the best baseline of each cell, at 1 % and at 5 % false alarms."""
    rows = []
    for name, table in detection_tables().items():
        if not name.startswith("strange"):
            continue
        for cell in found(table).index:
            cells = [name.removeprefix("strange-"), str(cell)]
            for rate in (0.01, 0.05):
                shares = found(table, rate, promise).loc[cell]
                rivals = shares[shares.index.str.startswith("baseline")]
                best = rivals.idxmax().removeprefix("baseline ")
                cells += [f"{shares['default']:.3f}", f"{rivals.max():.3f} ({best})"]
            rows.append(cells)
    names = ["scene", "attack", "default, 1 %", "best baseline, 1 %"]
    return _table([*names, "default, 5 %", "best baseline, 5 %"], rows)


def alarms_table() -> str:
    """The share of fresh images that the default flags, of each kind."""
    columns = {}
    for name, table in detection_tables().items():
        own = (table.what == "false alarms") & (table.metrics == "default")
        own &= (table.rate == 0.01) & (table.promise == "clean and harmless")  # noqa: PLR2004
        columns[name] = table[own].set_index("cell").share
    return _shares("images", pd.DataFrame(columns), "{:.2%}")


def ablation_table() -> str:
    """The worst and the mean cell of other sets of metrics, over scenes of one kind."""
    columns = {}
    for kind in KINDS:
        tables = [found(t) for name, t in detection_tables().items() if name.startswith(kind)]
        cells = pd.concat(tables)
        cells = cells[cells.columns[~cells.columns.str.startswith("baseline")]]
        columns[f"{kind}, worst"], columns[f"{kind}, mean"] = cells.min(), cells.mean()
    frame = pd.DataFrame(columns).dropna(how="all")
    return _shares("metrics", frame.loc[sorted(frame.index, key=_kind_of_set)])


def _kind_of_set(title: str) -> tuple[int, bool, str]:
    """Where a set of metrics stands: the default, then without some, with more, others, alone."""
    kinds = ("default", "without", "with", PAPERS)
    place = next((place for place, kind in enumerate(kinds) if title.startswith(kind)), len(kinds))
    return place, "_" in title, title


def accuracies_table() -> str:
    """The accuracy of each scene's classifier and auxiliary network on fresh images."""
    rows = []
    for name, table in detection_tables().items():
        shares = table[table.what == "accuracy"].set_index("metrics").share
        rows.append([name, *(f"{shares[who]:.2%}" for who in ("classifier", "auxiliary network"))])
    return _table(["scene", "classifier", "auxiliary network"], rows)


def exceptions_table() -> str:
    """Cells in which something else finds more than the default.

    Shown are a metric or family alone, or the paper's metrics, that find over 5 points more at 1 %;
    for unseen classifiers also a baseline that finds over 3 points more at 1 % or 5 %, with either
    promise (clean images, or clean and harmlessly changed ones).
    """
    rows = []
    for name, table in detection_tables().items():
        strange = name.startswith("strange")
        for promise in ("clean and harmless", "clean") if strange else ("clean and harmless",):
            for rate in (0.01, 0.05) if strange else (0.01,):
                for cell, shares in found(table, rate, promise).iterrows():
                    where = [name, str(cell), f"{rate:.0%}", promise]
                    if rate == 0.01 and promise == "clean and harmless":  # noqa: PLR2004
                        alone = shares.index.str.endswith(" alone") | (shares.index == PAPERS)
                        rows += _better(where, shares, alone, 0.05)
                    if strange:
                        baselines = shares.index.str.startswith("baseline")
                        rows += _better(where, shares, baselines, 0.03)
    return _table(
        [
            "scene",
            "attack",
            "false alarms",
            "threshold set on",
            "TPR of the default",
            "better",
            "TPR of the better",
        ],
        rows,
    )


def _better(
    where: list[str], shares: pd.Series, others: pd.Series, least: float
) -> list[list[str]]:
    """The best of the others, if it finds more than the default by more than ``least``."""
    best = shares[others].idxmax()
    if shares[best] - shares["default"] <= least:
        return []
    return [[*where, f"{shares['default']:.3f}", best, f"{shares[best]:.3f}"]]


def costs_table() -> str:
    """What calibration is worth with fewer images, without labels and without shuffling."""
    table = pd.read_csv(RESULTS / "detection" / "digits-0-costs.csv")
    rows = []
    for row in table.itertuples(index=False):
        way, worst, mean, *alarms = row
        rows.append([str(way), f"{worst:.3f}", f"{mean:.3f}", *(f"{one:.2%}" for one in alarms)])
    return _table(list(table.columns), rows)


def densities_table() -> str:
    """What bandwidth, references and precision cost: mean areas and the largest loss."""
    table = pd.read_csv(RESULTS / "choices" / "densities.csv")
    judged = ["logistic", "kernel_density"]
    names = ["all six, logistic", "density alone"]
    lines = []
    for dataset, rows in table.groupby("dataset", sort=False):
        paper = rows[rows["setting"] == "paper's bandwidth"]["logistic"].to_numpy()
        for setting, own in rows.groupby("setting", sort=False):
            low, high = own["bandwidth_low"].iloc[0], own["bandwidth_high"].iloc[0]
            bandwidth = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
            loss = (paper - own["logistic"].to_numpy()).max()
            cells = [f"{own[name].mean():.3f}" for name in judged]
            lines.append([dataset, setting, bandwidth, *cells, f"{max(loss, 0):.3f}"])
    headings = [
        "dataset",
        "setting",
        "bandwidth",
        *names,
        "largest loss of AUC on one attack against the paper's setting",
    ]
    return _table(headings, lines)


def certificates(name: str) -> pd.DataFrame:
    """A committed table of benchmarks/certificates.py."""
    return pd.read_csv(RESULTS / "certificates" / f"{name}.csv")


def certified_tables(what: str) -> str:
    """Shares of a kind by classifier and false-alarm rate, a table for each dataset."""
    shares = certificates("shares")
    guards = ["classifier", "rate"]
    alarms = shares[shares.what == "false alarms"].set_index(["dataset", *guards]).share
    made = []
    for dataset, table in shares[shares.what == what].groupby("dataset", sort=False):
        rows = []
        for guard, own in table.groupby(guards, sort=False):
            cells = [guard[0], f"{guard[1]:.0%}", f"{alarms[dataset, *guard]:.2%}"]
            for _, both in own.groupby("epsilon"):
                whole, *split = both.sort_values("boxes").to_dict("records")
                cell = f"{whole['share']:.3f} ({whole['low']:.3f} to {whole['high']:.3f})"
                cells.append(
                    cell + "".join(f", with splitting {row['share']:.3f}" for row in split)
                )
            rows.append(cells)
        epsilons = [f"epsilon {epsilon:g}" for epsilon in sorted(table.epsilon.unique())]
        names = [f"classifier ({dataset})", "promised false-alarm rate", "measured false alarms"]
        made.append(_table([*names, *epsilons], rows))
    return "\n\n".join(made)


def detector_table() -> str:
    """What is certified if the sentinel has half of a detector's false-alarm rate."""
    shares = certificates("detector")
    shares = shares[shares.what == "certified"]
    rows = []
    settings = ["dataset", "right only", "harmless changes"]
    for (dataset, right_only, harmless), own in shares.groupby(settings, sort=False):
        cells = [
            str(dataset),
            "those that the classifier gets right" if right_only else "all",
            "clean and with harmless changes" if harmless else "clean only",
        ]
        found = [f"{row.share:.3f} at {row.epsilon:g}" for row in own.itertuples()]
        rows.append([*cells, ", ".join(found)])
    return _table(["dataset", "calibrated on", "kinds of images", "certified"], rows)


def sizes_table() -> str:
    """What is certified by number of training images and of epochs, at the largest epsilon."""
    shares = certificates("sizes")
    shares = shares[(shares.what == "certified") & (shares.epsilon == shares.epsilon.max())]
    table = shares.pivot_table("share", "training images", "epochs")
    rows = [
        [f"{count:,}", *(f"{share:.3f}" for share in table.loc[count])] for count in table.index
    ]
    return _table(["training images", *(f"{epochs} epochs" for epochs in table.columns)], rows)


def alone_table() -> str:
    """The network of each sentinel as the classifier."""
    shares = certificates("shares")
    rows = []
    for dataset, table in shares[shares.classifier == "sentinel alone"].groupby(
        "dataset", sort=False
    ):
        right = table[table.epsilon.isna()].share
        verified = [
            f"{row.share:.3f} at epsilon {row.epsilon:g}"
            for row in table[table.what == "verified"].itertuples()
        ]
        rows.append([str(dataset), *(f"{share:.3f}" for share in right), ", ".join(verified)])
    names = ["dataset", "accuracy of the classifier", "accuracy of the sentinel's network"]
    return _table([*names, "verified accuracy of the sentinel's network"], rows)


def broken_table() -> str:
    """Certified, broken and undecided images."""
    rows = [
        [row["dataset"], row["classifier"], f"{row['rate']:.0%}", f"{row['epsilon']:g}"]
        + [
            f"{row[what] / row['images']:.3f}"
            for what in ("certified without splitting", "certified", "broken", "undecided")
        ]
        for row in certificates("attack").to_dict("records")
    ]
    names = ["dataset", "classifier", "promised false-alarm rate", "epsilon"]
    names += ["certified without splitting", "certified with splitting", "broken", "undecided"]
    return _table(names, rows)


def points_table() -> str:
    """Points that were tried inside balls, by kind, over all classifiers and epsilons."""
    rows = []
    for kind, own in certificates("sound").groupby("points", sort=False):
        cells = [str(kind)]
        for balls in ("certified", "not certified"):
            tried = own[own.balls == balls]
            cells += [f"{tried['tried'].sum():,}", f"{tried['accepting a wrong class'].sum():,}"]
        rows.append(cells)
    names = ["kind of point", "tried in certified balls", "accepted for a wrong class"]
    names += ["tried in other balls", "accepted for a wrong class (control)"]
    return _table(names, rows)


def certificate_costs() -> str:
    """Times as multiples of another one, with their range over the rounds."""
    rows = [
        [row["what"], row["of"], f"{row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})"]
        for row in certificates("costs").to_dict("records")
    ]
    return _table(["work", "as a multiple of", "ratio (range)"], rows)


def adaptive(name: str) -> pd.DataFrame:
    """A committed table of benchmarks/adaptive.py."""
    return pd.read_csv(RESULTS / "adaptive" / f"{name}.csv")


GUARDS = {
    "unguarded": "no detector",
    "six": "the paper's six metrics",
    "default": "leery's default",
    "with sentinel": "default and sentinel",
    "hardened, 1 % rejected": "hardened classifier, rejects the 1 % least confident",
    "hardened, confidence": "hardened classifier, rejects by confidence",
    "distilled, unguarded": "distilled classifier, no detector",
    "hardened, default": "hardened classifier, default",
    "hardened, with sentinel": "hardened classifier, default and sentinel",
    "hardened, unguarded": "hardened classifier, no detector",
}
"""Names of guards for readers, by those in the tables."""

ATTACKS = {
    "selective": "selective PGD",
    "orthogonal": "orthogonal PGD",
    "weighted": "weighted PGD",
    "confident": "PGD-Conf",
    "towards": "high confidence, each class",
    "towards +1": "high confidence",
    "transfer": "transfer (ignores the score)",
    "features": "feature matching",
    "squares": "random squares",
}
"""Names of attacks for readers, by those in the tables."""


def guards_table() -> str:
    """What holds against whom, for each guard."""
    columns = {
        "classifier": "attacker knows the classifier only",
        "guard": "attacker knows everything",
        "proved": "proved",
    }
    rows = []
    for row in adaptive("threats").to_dict("records"):
        cells = [
            "none" if name == "proved" and not row["proved share"] else _interval(row, f"{name} ")
            for name in columns
        ]
        rows.append([GUARDS[row["guard"]], *cells])
    return _table(["guard", *columns.values()], rows)


def _interval(row: dict[Hashable, Any], prefix: str = "") -> str:
    """A share with its interval."""
    share, low, high = (row[f"{prefix}{name}"] for name in ("share", "low", "high"))
    return f"{share:.2f} ({low:.2f} to {high:.2f})"


LADDER = {"a hundredth": "after 1 % of the steps", "a tenth": "after 10 %", "all": "after all"}
"""Headings of the columns of evasions by steps."""


def falls_table() -> str:
    """Evasions of the paper's six and of the default by each attack alone."""
    rows = [
        [GUARDS[row["guard"]], f"{row['epsilon']:g}", ATTACKS[row["attack"]]]
        + [f"{row['steps']:,}", _interval(row)]
        + [f"{row[f'after {part}']} of {row['images']}" for part in LADDER]
        for row in adaptive("falls").to_dict("records")
    ]
    names = ["guard", "largest change", "attack", "steps", "evaded (95 % interval)"]
    return _table([*names, *LADDER.values()], rows)


def active_table() -> str:
    """Of the planted points, those that each attack and random points found."""
    rows = []
    for (name, epsilon), table in adaptive("active").groupby(["guard", "epsilon"], sort=False):
        guard = f"{GUARDS[str(name)]}, within {epsilon:g}"
        for attack, own in table.groupby("attack", sort=False):
            rows.append([guard, ATTACKS[str(attack)], *_found(own, "found")])
        tried = table.dropna(subset="by chance")
        rows.append([guard, "random points", *_found(tried, "by chance")])
    return _table(["guard", "attack", "found", "found, inverted"], rows)


def _found(table: pd.DataFrame, what: str) -> list[str]:
    """Of the planted points, those that were found: in the test itself, and in the inverted one."""
    both = (table[table.inverted == inverted].iloc[0] for inverted in (False, True))
    return [f"{row[what]:.0f} of {row.planted}" for row in both]


def masks_table() -> str:
    """Evasions by what the attacker knows of the dropout masks."""
    kinds = {"known": "known", "unknown": "fixed, unknown", "fresh": "drawn anew each time"}
    rows = [
        [kinds[row["masks"]], str(row["draws"]), _interval({**row, "share": row["evaded"]})]
        for row in adaptive("masks").to_dict("records")
    ]
    names = ["masks", "draws that judged each image", "evaded (95 % interval)"]
    return _table(names, rows)


def false_alarms_table() -> str:
    """Evaded or flagged by an attacker's choice, by alpha."""
    table, rows = adaptive("alarms"), []
    guards = list(dict.fromkeys(table.guard))
    for alpha, own in table.groupby("alpha"):
        by = own.set_index("guard")
        cells = [f"{by.share[name]:.2f} / {by.flagged[name]:.2f}" for name in guards]
        rows.append([f"{0.3 * float(str(alpha)):.3g}", *cells])
    names = [f"{GUARDS[name]}: either / flagged" for name in guards]
    return _table(["change", *names], rows)


def budget_table() -> str:
    """Evasions by the largest change, for each guard."""
    shares = adaptive("budget").pivot_table(index="epsilon", columns="guard", values="share")
    names = [name for name in GUARDS if name in shares]
    rows = [
        [f"{epsilon:g}", *(f"{row[name]:.2f}" for name in names)]
        for epsilon, row in shares.iterrows()
    ]
    return _table(["largest change", *(GUARDS[name] for name in names)], rows)


def distance_table() -> str:
    """The median smallest L2 change that evades each guard."""
    rows = [
        [GUARDS[row["guard"]], f"{row['median L2']:.2f}", _interval(row)]
        for row in adaptive("distance").to_dict("records")
    ]
    return _table(["guard", "median L2", "evaded (95 % interval)"], rows)


def growth_table() -> str:
    """Evasions of each guard by each attack alone, by steps and runs."""
    rows = []
    for row in adaptive("growth").to_dict("records"):
        first = " / ".join(str(row[f"after {part}"]) for part in LADDER)
        cells = [first, *(str(row[f"restart {run}"]) for run in (2, 3))]
        rows.append([GUARDS[row["guard"]], ATTACKS[row["attack"]], str(row["steps"]), *cells])
    names = ["guard", "attack", "steps", "after 1 % / 10 % / all of the steps"]
    return _table([*names, "after 2 runs", "after 3 runs"], rows)


def queries_table() -> str:
    """Attacks without a gradient of the score beside those with one."""
    rows = [
        [
            GUARDS[row["guard"]],
            str(row["attack"]),
            "-" if pd.isna(row["epsilon"]) else f"{row['epsilon']:g}",
            _interval(row),
        ]
        for row in adaptive("queries").to_dict("records")
    ]
    return _table(["guard", "attack", "largest change", "evaded (95 % interval)"], rows)


def hardened_table() -> str:
    """Robust error with rejection of the hardened classifier."""
    norms = {"linf": "L-infinity", "l2": "L2"}
    rows = [
        [
            f"{norms[row['norm']]} {row['epsilon']:g}",
            f"{row['rejected'] * 100:.0f} %",
            f"{row['steps']:,}, {row['restarts']}",
            f"{row['robust error']:.3f}",
            _interval(row),
        ]
        for row in pd.concat([adaptive("hardened"), adaptive("beyond")]).to_dict("records")
    ]
    names = ["change", "clean images rejected", "steps, runs", "robust error"]
    return _table([*names, "evaded (95 % interval)"], rows)


def signs_table() -> str:
    """Six signs of failure; those that speak against the attack are bold."""
    table, rows = adaptive("signs").fillna({"failed": ""}), []
    names = ["zero", "unstable", "silent", "moving", "transfer", "unlimited"]
    for row in table.to_dict("records"):
        failed = row["failed"].split()
        cells = [f"**{row[name]:.2f}**" if name in failed else f"{row[name]:.2f}" for name in names]
        rows.append([GUARDS[row["guard"]], ATTACKS[row["attack"]], *cells])
    return _table(["guard", "attack", *names], rows)


def distillation_table() -> str:
    """Evasions of the distilled classifier and of the plain one."""
    table, rows = adaptive("distillation"), []
    for (epsilon, attack), part in table.groupby(["epsilon", "attack"], sort=False):
        by = part.set_index("guard").to_dict("index")
        cells = [_interval(by[name]) for name in ("unguarded", "distilled, unguarded")]
        rows.append([f"{epsilon:g}", str(attack), *cells])
    return _table(["largest change", "attack", "plain", "distilled"], rows)


def robust_table() -> str:
    """Robust accuracy of the hardened classifier under the suite and under plain PGD."""
    rows = [
        [
            *(str(row["attack"]), f"{row['steps']:,}", str(row["restarts"])),
            f"{row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        ]
        for row in adaptive("robust").to_dict("records")
    ]
    return _table(["attack", "steps", "runs", "still right (95 % interval)"], rows)


def of_choosing() -> dict[str, str]:
    """The tables of docs/choosing.md."""
    return {
        "default": default_table(),
        "arenas": arena_table(),
        **{f"attacks of {dataset}": attacks_table(dataset) for dataset in arenas()},
        "strangers": strangers_table("clean and harmless"),
        "strangers, clean": strangers_table("clean"),
        "exceptions": exceptions_table(),
        "accuracies": accuracies_table(),
        "alarms": alarms_table(),
        "ablation": ablation_table(),
        "costs": costs_table(),
        "densities": densities_table(),
    }


def of_certificate() -> dict[str, str]:
    """The tables of docs/certificate.md."""
    return {
        "certified shares": certified_tables("certified"),
        "certified and not flagged": certified_tables("certified, not flagged"),
        "cannot alarm": certified_tables("cannot alarm"),
        "certified in a detector": detector_table(),
        "training sizes": sizes_table(),
        "certified and broken": broken_table(),
        "points in balls": points_table(),
        "sentinel alone": alone_table(),
        "certificate costs": certificate_costs(),
    }


def of_threats() -> dict[str, str]:
    """The tables of docs/threats.md."""
    return {
        "guards": guards_table(),
        "falls": falls_table(),
        "active tests": active_table(),
        "masks": masks_table(),
        "alarms": false_alarms_table(),
        "robust accuracy": robust_table(),
        "distillation": distillation_table(),
        "distance": distance_table(),
        "signs": signs_table(),
        "hardened": hardened_table(),
        "queries": queries_table(),
        "budget": budget_table(),
        "growth": growth_table(),
    }


def cluster(name: str) -> pd.DataFrame:
    """A committed table of benchmarks/cluster.py."""
    return pd.read_csv(RESULTS / "cluster" / f"{name}.csv")


COMPUTERS = {
    ("processes", 1): "1 process",
    ("processes", 2): "2 processes, a shard each",
    ("actors", 1): "1 Ray actor",
    ("actors", 2): "2 Ray actors",
}
"""Names of those that compute parts."""


STORED = "bytes per part in the object store"
"""Heading of a column."""


def cluster_speed_table() -> str:
    """Speed and costs of actors and of plain processes: medians over the rounds, and the range."""
    known = cluster("speed").drop(columns=["sha256", "round", "memory"])
    rounds = known.groupby(["kind", "count"], sort=False)
    median = rounds.median()
    single = median["parts per second"]["processes", 1]
    least, most = (rounds["parts per second"].agg(what) / single for what in ("min", "max"))
    rows = [
        [
            COMPUTERS[computer],
            f"{row['parts per second'] / single:.2f}",
            f"{least[computer]:.2f} to {most[computer]:.2f}",
            f"{row['start-up seconds']:.0f} s",
            f"{row['computing seconds']:.0f} s",
            f"{row['driver seconds'] + row['other seconds']:.0f} s",
            f"{row['stored bytes per part']:.0f}",
        ]
        for computer, row in median.iterrows()
    ]
    names = ["computed by", "relative speed", "in each round", "time to the first part"]
    return _table([*names, "processor time, parts", "processor time, driver and Ray", STORED], rows)


def cluster_memory_table() -> str:
    """Memory of all processes of Ray together, by number of rows."""
    rows = [
        [f"{row['rows']:,}", f"{row['memory'] / 1e6:,.0f} MB"]
        for row in cluster("memory").to_dict("records")
    ]
    return _table(["rows", "memory of all processes together"], rows)


def sizing_table() -> str:
    """Times of three workloads, as predicted from two samples of each, and as measured.

    The first figure of each is a median over the rounds, or predicted from medians; then come the
    smallest and the largest of the rounds.
    """
    known = cluster("sizing").set_index("inputs")
    rows = []
    for inputs, rounds in known.groupby(level=0, sort=False):
        median, each = predicted(rounds.median()), rounds.apply(predicted, axis=1)
        rows.append(
            [
                inputs,
                f"{median['count']:,.0f}",
                f"{median['start-up']:.1f} s",
                f"{median['per second']:,.0f}",
                f"{median['bytes'] / median['count']:.0f}",
                *(
                    f"{median[what]:.0f} s, {each[what].min():.0f} to {each[what].max():.0f}"
                    for what in ("predicted", "seconds")
                ),
            ]
        )
    names = ["inputs", "number", "start-up", "inputs per second", "bytes per row of the output"]
    return _table([*names, "predicted", "measured"], rows)


def predicted(times: pd.Series) -> pd.Series:
    """Times of a small and a large sample, and the time of all inputs that follows from them."""
    more = times["large count"] - times["small count"]
    speed = more / (times["large seconds"] - times["small seconds"])
    start = times["small seconds"] - times["small count"] / speed
    of_all = start + times["count"] / speed
    return pd.concat(
        [times, pd.Series({"start-up": start, "per second": speed, "predicted": of_all})]
    )


IMAGES, REFERENCE = 10**9, 1_280_000
"""Images and reference points of the task that is estimated."""

POINTS, FEWER = 1280, 100
"""Reference points of a class, and how many would do with less memory."""

MACHINES, PROCESSORS, MEMORY = 100, 16, 128e9
"""Machines of that task, and processors and bytes of memory of each."""


def estimate_table() -> str:
    """What scoring a billion images would take, from the measured costs of single things."""
    known = cluster("scale")
    costs = known[known.points.isna()].set_index("what").value
    by_points = known.dropna(subset=["points"]).pivot_table(
        index="points", columns="what", values="value"
    )
    least, most = by_points.index.min(), by_points.index.max()
    memory = by_points["bytes of a process"]
    point = (memory[most] - memory[least]) / (most - least)
    process = memory[least] + point * (REFERENCE - least)
    files = by_points["bytes of the detector's file"]
    stored = (files[most] - files[least]) / (most - least)
    # It does not grow with the points beyond the noise.
    each = by_points["seconds for an image"].max()
    # The process that starts the others holds the detector too.
    processes = int(min(PROCESSORS, MEMORY // process - 1))
    fewer = memory[least] + point * (FEWER * REFERENCE / POINTS - least)
    with_fewer = int(min(PROCESSORS, MEMORY // fewer - 1))
    rows = {
        "processor time for an image": f"{1000 * each:.0f} ms",
        "processor hours for all": f"{round(IMAGES * each / 3600, -2):,.0f}",
        "memory of a process, most of it the reference": f"{process / 1e9:.1f} GB",
        f"processes of a machine with {PROCESSORS} processors and {MEMORY / 1e9:.0f} GB": (
            f"{processes}"
        ),
        f"hours with {MACHINES} such machines": (
            f"{IMAGES * each / 3600 / MACHINES / processes:,.0f}"
        ),
        f"hours with {FEWER} points of each class, {with_fewer} processes of a machine": (
            f"{IMAGES * each / 3600 / MACHINES / with_fewer:,.0f}"
        ),
        "images read, as JPEG files of 224 x 224 pixels": (
            f"{IMAGES * costs['bytes of a JPEG'] / 1e12:.0f} TB"
        ),
        f"detector files read, three times by each of {MACHINES * (processes + 1)} processes": (
            f"{3 * MACHINES * (processes + 1) * stored * REFERENCE / 1e12:.0f} TB"
        ),
        "parts and output written": f"{2 * IMAGES * costs['bytes of a row'] / 1e9:.0f} GB",
        "minutes for merging, in one process": (
            f"{IMAGES * costs['seconds to merge a row'] / 60:.0f}"
        ),
        "list of the inputs in each process, if each image were a file": (
            f"{IMAGES * costs['bytes of a listed file'] / 1e9:.0f} GB, made in "
            f"{IMAGES * costs['seconds to list a file'] / 3600:.0f} hours"
        ),
    }
    return _table(["what", "estimate"], [[name, value] for name, value in rows.items()])


def of_cluster() -> dict[str, str]:
    """The tables of docs/cluster.md."""
    return {
        "speed": cluster_speed_table(),
        "memory": cluster_memory_table(),
        "sizing": sizing_table(),
        "estimate": estimate_table(),
    }


def of_arena() -> dict[str, str]:
    """The tables of docs/arena.md."""
    return {f"leaderboard of {dataset}": leaderboard(dataset) for dataset in arenas()}


def of_readme() -> dict[str, str]:
    """The tables of README.md."""
    return {"results": shipped_table(), "elsewhere": elsewhere()}


def of_paper() -> dict[str, str]:
    """The tables of docs/paper.md."""
    return {
        "classifiers": classifiers_table(),
        "results of mnist": results_table("mnist"),
        "results of fashion-mnist": results_table("fashion-mnist"),
        "claims": claims_table(),
        "seeds": seeds_table(),
    }


PAGES = {
    README: of_readme,
    CHOOSING: of_choosing,
    PAPER: of_paper,
    ARENA: of_arena,
    CERTIFICATE: of_certificate,
    THREATS: of_threats,
    CLUSTER: of_cluster,
}
"""The functions that make the tables of each page, by name."""


def filled(path: Path) -> str:
    """A page with what stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` made anew."""
    text = path.read_text()
    for name, block in PAGES[path]().items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        text, found = marked.subn(rf"\g<1>{block}\g<2>", text)
        assert found == 1, name
    return text


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path))
