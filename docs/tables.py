"""Write the tables of README and docs anew from docs/results, which real runs left.

make results runs the study, make choices the measurements of choosing.md, and both run this;
tests/test_readme.py and tests/test_docs.py hold the texts to it.
"""

import re
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parent
RESULTS = DOCS / "results"
README, CHOOSING = DOCS.parent / "README.md", DOCS / "choosing.md"

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
    lines = [_line(headings), _line(["---"] * len(headings))]
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
        lines.append(_line(cells))
    return "\n".join(lines)


def seeds_table() -> str:
    """All six metrics over several classifiers: mean and standard deviation."""
    table = pd.read_csv(RESULTS / "mnist-seeds" / "results.csv")
    table = table[(table["protocol"] == "held-out") & (table["positives"] == "all")]
    lines = [_line(["attack", "all six", "kernel density", "TPR at 1 % FPR, all six"])]
    lines.append(_line(["---"] * 4))
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
        lines.append(_line([f"{attack} {epsilon:.2f}", *cells]))
    return "\n".join(lines)


def claims_table() -> str:
    """The verdicts on the paper's claims, on both datasets together."""
    table = pd.read_csv(RESULTS / "claims.csv")
    lines = [_line(["the paper says", "where", "verdict", "comparisons for / against / neither"])]
    lines.append(_line(["---"] * 4))
    for row in table.to_dict("records"):
        counts = " / ".join(str(row[side]) for side in ("for", "against", "neither"))
        lines.append(_line([row["sentence"], row["source"], f"**{row['verdict']}**", counts]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def detection_tables() -> dict[str, pd.DataFrame]:
    """The committed tables of detection by scene, at 1 % false alarms."""
    paths = sorted((RESULTS / "detection").glob("*.csv"))
    tables = {path.stem: pd.read_csv(path) for path in paths if not path.stem.endswith("costs")}
    return {name: table[table.rate == 0.01] for name, table in tables.items()}  # noqa: PLR2004


def detection_table() -> str:
    """What the default and maximum softmax find in every cell of each scene, worst cell first."""
    columns = {}
    for name, table in detection_tables().items():
        found = table[table.what == "found"].set_index(["metrics", "cell"])
        for title, short in (("default", name), ("max_softmax alone", f"{name}, maximum softmax")):
            columns[short] = found.loc[title].share
    frame = pd.DataFrame(columns)
    frame = frame.loc[frame.min(axis=1).sort_values().index]
    frame = frame.sort_values(next(iter(columns)))
    lines = [_line(["attack", *frame.columns]), _line(["---"] * (len(frame.columns) + 1))]
    for cell, row in frame.iterrows():
        lines.append(_line([str(cell), *(f"{share:.3f}" for share in row)]))
    return "\n".join(lines)


def alarms_table() -> str:
    """The share of fresh images that the default flags, of each kind."""
    columns = {}
    for name, table in detection_tables().items():
        rows = table[(table.what == "false alarms") & (table.metrics == "default")]
        columns[name] = rows.set_index("cell").share
    frame = pd.DataFrame(columns)
    lines = [_line(["images", *frame.columns]), _line(["---"] * (len(frame.columns) + 1))]
    for cell, row in frame.iterrows():
        lines.append(_line([str(cell), *(f"{share:.2%}" for share in row)]))
    return "\n".join(lines)


def ablation_table() -> str:
    """The worst and the mean cell of other sets of metrics."""
    columns = {}
    for name, table in detection_tables().items():
        found = table[table.what == "found"].groupby("metrics", sort=False).share
        columns[f"{name}, worst"], columns[f"{name}, mean"] = found.min(), found.mean()
    frame = pd.DataFrame(columns)
    lines = [_line(["metrics", *frame.columns]), _line(["---"] * (len(frame.columns) + 1))]
    for title, row in frame.iterrows():
        lines.append(_line([str(title), *(f"{share:.3f}" for share in row)]))
    return "\n".join(lines)


def costs_table() -> str:
    """What calibration is worth with fewer images, without labels and without shuffling."""
    table = pd.read_csv(RESULTS / "detection" / "digits-0-costs.csv")
    lines = [_line(list(table.columns)), _line(["---"] * len(table.columns))]
    for row in table.itertuples(index=False):
        way, worst, mean, *alarms = row
        cells = [str(way), f"{worst:.3f}", f"{mean:.3f}", *(f"{share:.2%}" for share in alarms)]
        lines.append(_line(cells))
    return "\n".join(lines)


def densities_table() -> str:
    """What bandwidth, references and precision cost: mean areas and the largest loss."""
    table = pd.read_csv(RESULTS / "choices" / "densities.csv")
    judged = ["logistic", "conformal", "kernel_density"]
    names = ["all six, logistic", "all six, conformal", "density alone"]
    lines = [_line(["dataset", "setting", "bandwidth", *names, "largest loss, all six logistic"])]
    lines.append(_line(["---"] * (len(names) + 4)))
    for dataset, rows in table.groupby("dataset", sort=False):
        paper = rows[rows["setting"] == "paper's bandwidth"]["logistic"].to_numpy()
        for setting, own in rows.groupby("setting", sort=False):
            low, high = own["bandwidth_low"].iloc[0], own["bandwidth_high"].iloc[0]
            bandwidth = f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
            loss = (paper - own["logistic"].to_numpy()).max()
            cells = [f"{own[name].mean():.3f}" for name in judged]
            lines.append(_line([dataset, setting, bandwidth, *cells, f"{max(loss, 0):.3f}"]))
    return "\n".join(lines)


def blocks(path: Path) -> dict[str, str]:
    """What stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` in a text, by name."""
    if path == CHOOSING:
        return {
            "detection": detection_table(),
            "alarms": alarms_table(),
            "ablation": ablation_table(),
            "costs": costs_table(),
            "densities": densities_table(),
        }
    return {
        "results of mnist": results_table("mnist"),
        "results of fashion-mnist": results_table("fashion-mnist"),
        "claims": claims_table(),
        "seeds": seeds_table(),
    }


def filled(path: Path) -> str:
    """A text with its tables as docs/results has them."""
    text = path.read_text()
    for name, block in blocks(path).items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
        text, found = marked.subn(rf"\g<1>{block}\g<2>", text)
        assert found == 1, name
    return text


if __name__ == "__main__":
    for path in (README, CHOOSING):
        path.write_text(filled(path))
