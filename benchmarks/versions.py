"""Two versions of leery on the same work, in turn: what a change gained or lost.

    python benchmarks/versions.py OLD [NEW] [--rounds 11] [--threads 1] [--only "50 passes"]

OLD and NEW are git revisions, or folders that hold the package; NEW is the working tree by default.
Each version runs in a process of its own; the two are asked in turn, so that they share whatever
else the machine does.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from pairs import spread

HERE = Path(__file__).parent


class Version:
    """A process that runs one version.

    Attributes:
        cases: the names of what it can be asked for.
    """

    def __init__(self, source: Path, threads: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(  # noqa: S603 - our own file
            [sys.executable, HERE / "served.py", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.cases: list[str] = self._answer()

    def __enter__(self) -> "Version":
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def seconds(self, case: str) -> float:
        """The seconds of a call."""
        assert self._process.stdin is not None
        print(case, file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> object:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def compared(old: Version, new: Version, only: str, rounds: int) -> Iterator[str]:
    """A line of a table for each case whose name contains a text."""
    for name in (name for name in old.cases if only in name):
        seconds = [(old.seconds(name), new.seconds(name)) for _ in range(rounds)]
        ratio = spread([before / after for before, after in seconds])
        before, after = (spread(each)[0] * 1e3 for each in zip(*seconds, strict=True))
        shown = "{:.2f} ({:.2f} to {:.2f})".format(*ratio)
        yield f"| {name} | {before:.3g} | {after:.3g} | {shown} |"


def source_of(version: str, folder: Path) -> Path:
    """The folder that holds the package of a version."""
    if (Path(version) / "leery").is_dir():
        return Path(version).resolve()
    command = ["git", "archive", version, "src"]
    packed = subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True).stdout  # noqa: S603 - git
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default=str(HERE.parent / "src"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="text that the name of a case must contain")
    options = parser.parse_args()
    print(f"| threads: {options.threads} | old, ms | new, ms | old / new (least to most) |")
    print("| --- | --- | --- | --- |")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        old, new = (
            stack.enter_context(Version(source_of(name, folder / place), options.threads))
            for name, place in ((options.old, "old"), (options.new, "new"))
        )
        for line in compared(old, new, options.only, options.rounds):
            print(line, flush=True)


if __name__ == "__main__":
    main()
