"""leery against what a user would pick instead, and against what the machine can do.

    python benchmarks/bench.py [--out benchmarks] [--rounds 5] [--threads N] [--device cpu]
        [--scale 1] [--pieces kde attacks passes alone six fit default auxiliary growth ...]

Everyone works on the same images in the same process with the same number of threads (torch's own
default; scikit-learn's density knows one only, Feinman's pool has a process for each processor), in
turn; outputs are compared first. "alone" is one thread, whose share of the floor no
other core has a part in. Only ratios within a run mean anything: hours of a shared machine differ.
Writes results.json, and results.md from it; a piece that is not asked for keeps the rows that it
has there, with the machine and versions that they are of. Growth and the study are always the
processor's.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growth import SIZES
from pairs import spread
from pieces import PIECES, Bench, Row
from rivals import versions

OWN = ("leery", "torch", "numpy", "scikit-learn")


def facts(device: str) -> dict[str, Any]:
    """What all figures hold for."""
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none at hand"
    return {
        "processor": names[0] if names else platform.machine(),
        "processors": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "GPU": gpu if device == "cuda" else f"{gpu}: not measured",
        **{name: metadata.version(name) for name in OWN},
        **versions(),
    }


def conditions(bench: Bench) -> str:
    """What the figures of one piece hold for."""
    rates = [(one.multiply32 / 1e9, one.multiply64 / 1e9, one.copy / 1e9) for one in bench.machines]
    single, double, copies = (
        "{1:.0f} to {2:.0f}".format(*spread(found)) for found in zip(*rates, strict=True)
    )
    return (
        f"At commit {commit()}: {bench.rounds} rounds, {bench.scale:g} of the images, threads: "
        f"{bench.threads}. "
        f"In them the machine did {single} GFLOP/s in a float32 matrix product, {double} in a "
        f"float64 one, and copied {copies} GB/s"
    )


def commit() -> str:
    """What is measured; with a "+" where files have been changed since."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - ours
    return done.stdout.strip() or "unknown"


def growth() -> Iterator[dict[str, Any]]:
    """Each case at each size in a process of its own, and the exponents of seconds and memory."""
    script = Path(__file__).with_name("growth.py")
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    for case, sizes in SIZES.items():
        found = []
        for size in sizes:
            command = [sys.executable, str(script), case, str(size)]
            done = subprocess.run(  # noqa: S603 - ours
                command, check=True, capture_output=True, text=True, env=threads
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(case, size, found[-1], flush=True)
        steps = np.log(sizes)
        yield {
            "case": case,
            "sizes": list(sizes),
            "seconds": [one["seconds"] for one in found],
            "peak": [one["peak"] for one in found],
            "grown": [one["grown"] for one in found],
            "seconds_exponent": float(
                np.polyfit(steps, np.log([o["seconds"] for o in found]), 1)[0]
            ),
            "peak_exponent": float(np.polyfit(steps, np.log([o["peak"] for o in found]), 1)[0]),
        }


def reproduce() -> dict[str, Any]:
    """The seconds of each stage of the digit study on all test images, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "leery", "reproduce", "mnist", "--out", folder]
        subprocess.run(command, check=True)  # noqa: S603 - ours
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return {
        "workers": manifest["machine"]["workers"],
        "seconds": manifest["seconds"],
        "stages": {name: stage["seconds"] for name, stage in manifest["stages"].items()},
    }


def markdown(machines: list[dict[str, Any]]) -> str:
    """results.md."""
    parts = [
        "# Measured",
        "Written by `make bench`. Times are medians of rounds in which everyone worked in turn; a "
        "ratio is a rival's time over leery's in the same round, median (least to most). The floor "
        "is the number of operations that must be done over the rate of the machine's matrix "
        "product, or the bytes that must be moved over the rate of its copies where that takes "
        "longer, both measured in each round; convolutions can beat it. Rivals that "
        "are tuned or have their channels last were given by hand what leery does by itself.",
    ]
    for machine in machines:
        facts = [[name, str(value)] for name, value in machine["facts"].items()]
        parts.append(table(["machine and versions", ""], facts))
        for piece in machine["pieces"].values():
            rows = [Row(**row) for row in piece["rows"]]
            parts += [f"## {rows[0].piece}", f"{piece['conditions']}.", piece_table(rows)]
        if "growth" in machine:
            parts += [
                "## Growth",
                "Of a process: what the work adds to it at most, and its peak, which holds the "
                "libraries (about 400 MB) and what the work is given, a fitted detector or points.",
                growth_table(machine["growth"]),
            ]
        if "reproduce" in machine:
            parts += ["## `leery reproduce mnist`", stages_table(machine["reproduce"])]
    return "\n\n".join(parts) + "\n"


def piece_table(rows: list[Row]) -> str:
    headings = ["setting", "who", "a second", "times leery's", "share of the floor", "outputs"]
    lines = []
    for row in rows:
        ratio = "" if row.ratio is None else "{:.2f} ({:.2f} to {:.2f})".format(*row.ratio)
        share = "" if row.share is None else "{:.0%} ({:.0%} to {:.0%})".format(*row.share)
        rate = "" if row.per_second is None else f"{row.per_second:,.4g} {row.unit}"
        note = row.note if row.agrees else f"**differs**: {row.note}"
        lines.append([row.setting, row.contestant, rate, ratio, share, note])
    return table(headings, lines)


def growth_table(cases: list[dict[str, Any]]) -> str:
    headings = ["case", "sizes", "seconds", "exponent", "added, MB", "peak, MB", "exponent"]
    lines = [
        [
            case["case"],
            ", ".join(f"{size:,}" for size in case["sizes"]),
            ", ".join(f"{seconds:.3g}" for seconds in case["seconds"]),
            f"{case['seconds_exponent']:.2f}",
            ", ".join(f"{grown / 1e6:,.0f}" for grown in case["grown"]),
            ", ".join(f"{peak / 1e6:,.0f}" for peak in case["peak"]),
            f"{case['peak_exponent']:.2f}",
        ]
        for case in cases
    ]
    return table(headings, lines)


def stages_table(found: dict[str, Any]) -> str:
    whole = found["seconds"]
    lines = [[name, f"{s:.1f}", f"{s / whole:.0%}"] for name, s in found["stages"].items()]
    lines.append([f"**whole**, {found['workers']} workers", f"{whole:.1f}", ""])
    return table(["stage", "seconds", "share"], lines)


def table(headings: list[str], lines: list[list[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def replaced(
    machines: list[dict[str, Any]], here: dict[str, Any], found: dict[str, Any]
) -> list[dict[str, Any]]:
    """The results with a piece that was measured here; elsewhere it no longer stands."""
    pieces = found.get("pieces", {})
    whole = found.keys() - {"pieces"}
    others = []
    for other in machines:
        if other["facts"] != here["facts"]:
            kept = {key: value for key, value in other.items() if key not in whole}
            left = {name: one for name, one in other["pieces"].items() if name not in pieces}
            if left or len(kept) > 2:
                others.append(kept | {"pieces": left})
    return [here | found | {"pieces": here["pieces"] | pieces}, *others]


def measured(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[Row]]:
    """One piece as it stands in the results, and its rows."""
    if name == "growth":
        return {"growth": list(growth())}, []
    if name == "reproduce":
        return {"reproduce": reproduce()}, []
    bench = Bench(options.rounds, options.scale, options.device, options.threads)
    PIECES[name](bench)
    rows = [asdict(row) for row in bench.rows]
    return {"pieces": {name: {"conditions": conditions(bench), "rows": rows}}}, bench.rows


def main() -> None:
    names = [*PIECES, "growth", "reproduce"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--pieces", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.json"
    machines = json.loads(results.read_text()) if results.exists() else []
    own = facts(options.device)
    here = next((one for one in machines if one["facts"] == own), {"facts": own, "pieces": {}})
    differing: list[Row] = []
    for name in options.pieces:
        found, rows = measured(name, options)
        differing += [row for row in rows if not row.agrees and not row.stray]
        machines = replaced(machines, here, found)
        here = machines[0]
        results.write_text(json.dumps(machines, indent=1) + "\n")
        results.with_suffix(".md").write_text(markdown(machines))
    if differing:
        sys.exit(f"outputs differ: {differing}")


if __name__ == "__main__":
    main()
