"""Every optimisation of mc_dropout and of the attacks, with it and without it.

    python benchmarks/without.py [--rounds 5] [--only WORDS]

An optimisation is taken out of a copy of the package by replacing a few words of its code; the
copy and the package then work in turn (benchmarks/versions.py). What gains less than 10 % on every
row is deleted. The tables go to benchmarks/optimisations.md, each in place of its last one.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from versions import Version, compared

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"

Edit = tuple[str, str, str]
"""A file of the package, what is replaced in it, and by what."""

ENGINE, SAMPLER = "mc_dropout/_engine.py", "mc_dropout/_sampler.py"
LINEAR, LAYOUT = "mc_dropout/_masked_linear.py", "models/_layout.py"

OPTIMISATIONS: dict[str, tuple[str, int, Sequence[Edit]]] = {
    "linear layers multiply kept units only": (
        "50 passes",
        1,
        [(ENGINE, "find_masked_linears(self._sites, drawn)", "({}, set())")],
    ),
    "weights of fixed masks are cached": (
        "50 passes",
        1,
        [(SAMPLER, "        return prepared.cache\n", "        return None\n")],
    ),
    "few images share operations": (
        "50 passes",
        1,
        [("tuning.py", "FEW_IMAGES = 16", "FEW_IMAGES = 0")],
    ),
    "... without vmap where a pass is linear layers": (
        "50 passes",
        1,
        [(ENGINE, "if self._is_flat and", "if False and")],
    ),
    "... units that are 0 in all of them are left out": (
        "50 passes",
        1,
        [(LINEAR, "if not differs and rows", "if False and rows")],
    ),
    "channels last": (
        "images",
        1,
        [(LAYOUT, "if images.ndim != 4 or", "if True or images.ndim != 4 or")],
    ),
    "freed memory stays": (
        "ResNet-18",
        1,
        [(LAYOUT, "torch.empty(FREED_BYTES,", "torch.empty(1,")],
    ),
    "a thread has batches of its own": (
        "50 passes",
        2,
        [("tuning.py", "IMAGES_OF_A_THREAD = 128", "IMAGES_OF_A_THREAD = 2**40")],
    ),
}  # fmt: skip
"""What is left out: the rows that it is measured on, the threads, and the edits."""


def variant(folder: Path, edits: Sequence[Edit]) -> Path:
    """A copy of the package with these edits."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in edits:
        path = folder / "leery" / name
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new))
    return folder


def written(name: str, lines: Sequence[str]) -> None:
    """The table of one optimisation put into the file, in place of the last one of that name."""
    path = HERE / "optimisations.md"
    tables = path.read_text().split("\n\n| ")[1:] if path.exists() else []
    of_name = {table.split(" | ")[0]: "| " + table.strip() for table in tables}
    of_name[name] = "\n".join(lines)
    known = [of_name[each] for each in OPTIMISATIONS if each in of_name]
    about = "\n".join((__doc__ or "").splitlines()[4:])
    path.write_text("\n\n".join(["# With and without", about, *known]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="words in the optimisation's name")
    options = parser.parse_args()
    for name, (only, threads, edits) in OPTIMISATIONS.items():
        if options.only not in name:
            continue
        lines = [
            f"| {name} | without, ms | with, ms | without / with (least to most) |",
            "| --- | --- | --- | --- |",
        ]
        with tempfile.TemporaryDirectory() as folder:
            without = variant(Path(folder) / "src", edits)
            with Version(without, threads) as old, Version(SOURCE, threads) as new:
                for line in compared(old, new, only, options.rounds):
                    print(line, flush=True)
                    lines.append(line)
        written(name, lines)


if __name__ == "__main__":
    main()
