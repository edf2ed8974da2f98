"""Every optimisation of mc_dropout and of the attacks, with it and without it.

    python benchmarks/without.py [--rounds 5] [--only WORDS]

An optimisation is taken out of a copy of the package by replacing a few words of its code; the
copy and the package then work in turn (benchmarks/versions.py). What gains less than 10 % on every
row is deleted. The tables go to benchmarks/optimisations.md, each in place of its last one.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from versions import Version, compared

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src"

ENGINE, SAMPLER = "mc_dropout/_engine.py", "mc_dropout/_sampler.py"
LINEAR, LAYOUT = "mc_dropout/_masked_linear.py", "models/_layout.py"


@dataclass(frozen=True)
class Optimisation:
    """What is left out and on which rows that is measured.

    Attributes:
        only: words in the names of the rows.
        file: of the package.
        old: what is replaced in the file.
        new: what it is replaced by.
        threads: of torch.
        busy: the number of other processes that keep a core busy meanwhile.
    """

    only: str
    file: str
    old: str
    new: str
    threads: int = 1
    busy: int = 0


OWN_BATCHES = Optimisation(
    "50 passes", "tuning.py", "IMAGES_OF_A_THREAD = 128", "IMAGES_OF_A_THREAD = 2**40", threads=2
)

OPTIMISATIONS = {
    "linear layers multiply kept units only": Optimisation(
        "50 passes", ENGINE, "find_masked_linears(self._sites, drawn)", "({}, set())"
    ),
    "weights of fixed masks are cached": Optimisation(
        "50 passes", SAMPLER, "        return prepared.cache\n", "        return None\n"
    ),
    "few images share operations": Optimisation(
        "50 passes", "tuning.py", "FEW_IMAGES = 16", "FEW_IMAGES = 0"
    ),
    "... without vmap where a pass is linear layers": Optimisation(
        "50 passes", ENGINE, "if self._is_flat and", "if False and"
    ),
    "... units that are 0 in all of them are left out": Optimisation(
        "50 passes", LINEAR, "if not differs and rows", "if False and rows"
    ),
    "channels last": Optimisation(
        "images", LAYOUT, "if images.ndim != 4 or", "if True or images.ndim != 4 or"
    ),
    "freed memory stays": Optimisation(
        "ResNet-18", LAYOUT, "torch.empty(FREED_BYTES,", "torch.empty(1,"
    ),
    "the versions of few images run as one batch": Optimisation(
        "verdicts", "observation.py", "few = bool(makes) and", "few = False and"
    ),
    "calibration scores are sorted once": Optimisation(
        "verdicts", "calibration.py", "@cached_property", "@property"
    ),
    "a thread has batches of its own": OWN_BATCHES,
    "a thread has batches of its own, beside a busy process": replace(OWN_BATCHES, busy=1),
}  # fmt: skip


def variant(folder: Path, left_out: Optimisation) -> Path:
    """A copy of the package without an optimisation."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "leery" / left_out.file
    text = path.read_text()
    assert text.count(left_out.old) == 1, f"{left_out.old!r} is not once in {path.name}"
    path.write_text(text.replace(left_out.old, left_out.new))
    return folder


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many cores are kept busy by other processes."""
    spin = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(spin) for _ in range(processes)]  # noqa: S603 - our own interpreter
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


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
    for name, left_out in OPTIMISATIONS.items():
        if options.only not in name:
            continue
        lines = [
            f"| {name} | without, ms | with, ms | without / with (least to most) |",
            "| --- | --- | --- | --- |",
        ]
        with tempfile.TemporaryDirectory() as folder:
            without = variant(Path(folder) / "src", left_out)
            threads = left_out.threads
            with (
                busy(left_out.busy),
                Version(without, threads) as old,
                Version(SOURCE, threads) as new,
            ):
                for line in compared(old, new, left_out.only, options.rounds):
                    print(line, flush=True)
                    lines.append(line)
        written(name, lines)


if __name__ == "__main__":
    main()
