"""Actors of Ray beside plain processes, and what Ray itself costs.

    python benchmarks/cluster.py speed --images 60000 --rounds 3
    python benchmarks/cluster.py memory
    python benchmarks/cluster.py sizing --rounds 5
    python benchmarks/cluster.py scale --rounds 3

speed: a ResNet-18 of 64 x 64 pixels and a detector score the same images with one and two plain
processes (a shard each) and with one and two actors, in turn, one thread each. memory: the memory
of all processes of Ray together (proportional set size), by number of small rows. sizing: how long
scoring takes for three kinds of inputs, and for a 32nd and a quarter of each, from which the guide
predicts the whole. scale: what an image, a reference point, a row and a file cost, from which
the guide estimates a task of 10^9 images. The tables go to docs/results/cluster.
"""

import argparse
import hashlib
import importlib
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from leery import RECOMMENDED_METRICS, Detector
from leery.classifiers import pretrained
from leery.data import load
from leery.inputs import Cuts, Format, rows_at_once
from leery.metrics import NearestNeighbours
from models import ResNet18, waves

RESULTS = Path("docs/results/cluster")
HERE = Path(__file__).parent.resolve()
TICK = os.sysconf("SC_CLK_TCK")

Row = dict[str, object]


def resnet() -> nn.Module:
    """A ResNet-18 of ten classes, drawn at seed 0."""
    torch.manual_seed(0)
    return ResNet18(classes=10).eval()


def small() -> nn.Module:
    """A classifier of eight numbers, drawn at seed 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)).eval()


@dataclass
class Watch:
    """What the processes below this one use, sampled while a block runs.

    Attributes:
        seconds: processor seconds of each process.
        names: the commands that each process has gone by; Ray renames its workers.
        memory: time of each sample, and proportional set size of all processes in bytes.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    names: dict[int, set[str]] = field(default_factory=dict)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def sample(self, *, memory: bool) -> None:
        """Look at all processes below this one."""
        total = 0
        for process in below(os.getpid()):
            folder = Path("/proc") / str(process)
            try:
                name = (folder / "cmdline").read_text().replace("\0", " ").strip()
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                self.seconds[process] = (int(fields[11]) + int(fields[12])) / TICK
                self.names.setdefault(process, set()).add(name)
                if memory:
                    rows = (folder / "smaps_rollup").read_text().splitlines()
                    total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
            except OSError:
                # It has just ended.
                continue
        self.memory.append((time.monotonic(), 1024 * total))

    def of(self, *names: str, other: bool = False) -> float:
        """Processor seconds of the processes whose command has one of the names, or has none."""
        return sum(
            seconds
            for process, seconds in self.seconds.items()
            if any(name in " ".join(self.names[process]) for name in names) != other
        )

    def memory_between(self, start: float, end: float) -> int:
        """Median of the memory of all processes together in a stretch of time, in bytes."""
        return int(np.median([size for moment, size in self.memory if start <= moment <= end]))


def below(top: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        parents.setdefault(parent, []).append(int(folder.name))
    waiting = list(parents.get(top, []))
    while waiting:
        process = waiting.pop()
        waiting += parents.get(process, [])
        yield process


@contextmanager
def watched(*, memory: bool = False, every: float = 1.0) -> Iterator[Watch]:
    """Sample the processes below this one while a block runs."""
    watch, ended = Watch(), threading.Event()

    def look() -> None:
        while not ended.wait(every):
            watch.sample(memory=memory)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()


def environment(session: str) -> dict[str, str]:
    """One thread for each process, and a folder of Ray's own with a short name."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)]),
        "RAY_TMPDIR": session,
        # By default its processes give way to all others, such as this one.
        "RAY_worker_niceness": "0",
        # Its statistics tell what went through the object store.
        "RAY_BACKEND_LOG_LEVEL": "info",
        "RAY_event_stats_print_interval_ms": "1000",
    }


@dataclass(frozen=True)
class Trial:
    """How the same inputs are scored.

    Attributes:
        kind: "processes" or "actors".
        count: how many.
    """

    kind: str
    count: int

    def commands(self, words: list[str]) -> list[list[str]]:
        """The commands that run at the same time."""
        score = [sys.executable, "-m", "leery", "score", *words]
        if self.kind == "actors":
            # A shard of one keeps its parts, as the others do.
            return [[*score, "--ray", "local", "--actors", str(self.count), "--shard", "1/1"]]
        return [
            [*score, "--workers", "1", "--shard", f"{number}/{self.count}"]
            for number in range(1, self.count + 1)
        ]


def score(place: Path, trial: Trial, model: str, parts: int, *, memory: bool = False) -> Row:
    """Score the inputs of a folder, and say when parts were finished and what it cost."""
    out = place / "scores.parquet"
    words = ["guard.leery", "inputs.npy", "--out", out.name, "--model", f"cluster:{model}"]
    start, finished = time.monotonic(), [0.0, 0.0]
    session_of = TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    with session_of as session, watched(memory=memory) as watch:
        first = 0
        with started(trial.commands(words), place, session) as running:
            while any(process.poll() is None for process in running):
                time.sleep(0.2)
                count = len(list((place / f"{out.name}.parts").glob("0*.parquet")))
                if count and not first:
                    finished[0], first = time.monotonic(), count
                if count == parts and not finished[1]:
                    finished[1] = time.monotonic()
        whole = time.monotonic() - start
        stored = stored_bytes(Path(session)) if trial.kind == "actors" else 0
    merge = [sys.executable, "-m", "leery", "score", *words, "--merge"]
    subprocess.run(  # noqa: S603 - ours
        merge, cwd=place, env=environment("/nowhere"), check=True, stdout=subprocess.DEVNULL
    )
    computing = ("ray::MapWorker",) if trial.kind == "actors" else ("--workers 1",)
    return {
        "kind": trial.kind,
        "count": trial.count,
        "seconds": whole,
        "start-up seconds": finished[0] - start,
        "parts per second": (parts - first) / (finished[1] - finished[0]),
        "computing seconds": watch.of(*computing),
        "driver seconds": watch.of("--ray local"),
        "other seconds": watch.of(*computing, "--ray local", other=True),
        "stored bytes per part": stored / parts,
        "memory": watch.memory_between(*finished) if memory else None,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }


@contextmanager
def started(
    commands: list[list[str]], place: Path, session: str
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes for a block, after which each must have ended without an error."""
    running = [
        subprocess.Popen(  # noqa: S603 - ours
            command, cwd=place, env=environment(session), stdout=subprocess.DEVNULL
        )
        for command in commands
    ]
    try:
        yield running
    finally:
        for process in running:
            process.terminate()
            process.wait()
    if failed := [process.args for process in running if process.returncode]:
        message = f"expected each process to end well, got an error of {failed}"
        raise RuntimeError(message)


def stored_bytes(session: Path) -> int:
    """How many bytes were put into the object store, as its own record says.

    What is below 100 KB goes with a message instead, and is not part of this record.
    """
    files = session.glob("ray/session_2*/logs/raylet.out")
    told = [
        int(line.rpartition(":")[2])
        for file in files
        for line in file.read_text().splitlines()
        if line.startswith("- num bytes created total:")
    ]
    return max(told)


def prepared(place: Path, model: nn.Module, images: np.ndarray, count: int) -> int:
    """Write inputs and a calibrated detector into a folder; return the number of parts."""
    seen = torch.from_numpy(images[:1500])
    seen = seen / 255 if images.dtype == np.uint8 else seen
    # The metrics need none, but every class must be there.
    labels = torch.arange(1000) % model(seen[:1]).shape[1]
    made = Detector(model, metrics=("max_softmax", "energy", "predictive_entropy"), passes=20)
    made.fit(seen[:1000], labels).calibrate(seen[1000:], fpr=0.05).save(place / "guard.leery")
    np.save(place / "inputs.npy", images[:count])
    return -(-count // rows_at_once(images.shape[1:]))


def speed(images: int, rounds: int) -> Iterator[Row]:
    """The same images with plain processes and with actors."""
    torch.manual_seed(1)
    pixels = (waves(max(images, 1500)) * 255).round().byte().numpy()
    trials = [Trial(kind, count) for kind in ("processes", "actors") for count in (1, 2)]
    with TemporaryDirectory() as folder:
        parts = prepared(Path(folder), resnet(), pixels, images)
        results = set()
        for turn in range(rounds):
            for trial in trials:
                row = score(Path(folder), trial, "resnet", parts)
                yield {"round": turn, **row}
                results.add(row["sha256"])
        if len(results) > 1:
            message = f"expected equal bytes of all trials, got {len(results)} kinds"
            raise RuntimeError(message)


def memory() -> Iterator[Row]:
    """Small rows, in numbers that differ by a factor of ten, with two actors."""
    rows = np.random.default_rng(0).random((1_000_000, 8), np.float32)
    for count in (100_000, 300_000, 1_000_000):
        with TemporaryDirectory() as folder:
            parts = prepared(Path(folder), small(), rows, count)
            found = score(Path(folder), Trial("actors", 2), "small", parts, memory=True)
            yield {"rows": count, **found}


@dataclass(frozen=True)
class Workload:
    """Inputs of a kind, and who scores them.

    Attributes:
        model: name of the function here that returns the classifier.
        inputs: function that writes the first inputs of a number into a path.
        count: number of inputs.
        suffix: suffix of the path.
    """

    model: str
    inputs: Callable[[Path, int], object]
    count: int
    suffix: str = ".npy"


def digit_net() -> nn.Module:
    """The shipped DigitNet."""
    return pretrained("mnist").model


def digits(path: Path, count: int) -> None:
    """Digits of the training images, several times over."""
    images = (load("mnist", "train")[0] * 255).round().byte().numpy()
    np.save(path, np.resize(images, (count, *images.shape[1:])))


def pictures(path: Path, count: int) -> None:
    """Digits of the training images, several times over, as a folder of PNG files."""
    images = (load("mnist", "train")[0][:, 0] * 255).round().byte().numpy()
    path.mkdir()
    for number in range(count):
        Image.fromarray(images[number % len(images)]).save(path / f"{number:06d}.png")


def soft_shapes(path: Path, count: int) -> None:
    """Images of 64 x 64 pixels, several times over."""
    torch.manual_seed(1)
    images = (waves(16_000) * 255).round().byte().numpy()
    np.save(path, np.resize(images, (count, *images.shape[1:])))


WORKLOADS: Mapping[str, Workload] = {
    "digits in one file": Workload("digit_net", digits, 360_000),
    "digits, a PNG file each": Workload("digit_net", pictures, 280_000, ""),
    "ResNet-18, 64 x 64 pixels": Workload("resnet", soft_shapes, 96_000),
}
"""What is predicted and measured: about three minutes each on two processors."""


def sizing(rounds: int) -> Iterator[Row]:
    """Seconds for a 32nd, a quarter and all of the inputs, in turn.

    The 32nd is at least four parts for each of two processes, as the guide advises.
    """
    for name, work in WORKLOADS.items():
        with TemporaryDirectory() as folder:
            place = Path(folder)
            guard(place, work.model)
            inputs = f"inputs{work.suffix}"
            work.inputs(place / inputs, work.count)
            for turn in range(rounds):
                small = timed(place, inputs, work.model, "--shard", "1/32")
                large = timed(place, inputs, work.model, "--shard", "2/4")
                # Finished parts would be skipped, or refused.
                shutil.rmtree(place / "scores.parquet.parts")
                whole = timed(place, inputs, work.model)
                yield {
                    "inputs": name,
                    "round": turn,
                    "small count": small.rows,
                    "small seconds": small.seconds,
                    "large count": large.rows,
                    "large seconds": large.seconds,
                    "count": whole.rows,
                    "seconds": whole.seconds,
                    "bytes": (place / "scores.parquet").stat().st_size,
                }


def guard(place: Path, model: str) -> None:
    """Write a detector without an auxiliary network into a folder."""
    made = getattr(importlib.import_module("cluster"), model)()
    if model == "digit_net":
        images, labels = load("mnist", "train")
        names = [name for name in RECOMMENDED_METRICS if name != "auxiliary_agreement"]
        found = Detector(made, metrics=names).fit(images[:6000], labels[:6000])
        found.calibrate(load("mnist", "test")[0][:2000], fpr=0.01).save(place / "guard.leery")
        return
    torch.manual_seed(1)
    prepared(place, made, (waves(1500) * 255).round().byte().numpy(), 1)


@dataclass(frozen=True)
class Timed:
    """How many inputs a run scored, and in how many seconds."""

    rows: int
    seconds: float


def timed(place: Path, inputs: str, model: str, *more: str) -> Timed:
    """Score inputs with a process for each processor."""
    words = ["guard.leery", inputs, "--out", "scores.parquet", "--model", f"cluster:{model}"]
    start = time.monotonic()
    ended = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-m", "leery", "score", *words, "--json", *more],
        cwd=place,
        env=environment("/nowhere"),
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds = time.monotonic() - start
    return Timed(json.loads(ended.stdout)["rows"], seconds)


class Wide(nn.Module):
    """A ResNet-18 whose last layer has 2,048 features, as that of a ResNet-50 has."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = ResNet18(classes=FEATURES)
        self.dropout, self.last = nn.Dropout(0.5), nn.Linear(FEATURES, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.dropout(self.body(images).relu()))  # type: ignore[no-any-return]


FEATURES, POINTS, LARGE = 2048, 1280, 224
"""Features of a reference point, points of each class as in ImageNet, and pixels of a side."""


def few() -> nn.Module:
    """A wide classifier of 40 classes, drawn at seed 0."""
    return spread(40)


def many() -> nn.Module:
    """A wide classifier of 160 classes, drawn at seed 0."""
    return spread(160)


def spread(classes: int) -> nn.Module:
    """A wide classifier that predicts each class now and then, as a trained one does."""
    torch.manual_seed(0)
    model = Wide(classes).eval()
    with torch.no_grad():
        logits = model(waves(64, LARGE))
        width = logits.std(0)
        model.last.bias.copy_((model.last.bias - logits.mean(0)) / width)
        model.last.weight.copy_(model.last.weight / width.unsqueeze(1))
    return model


def scale(rounds: int) -> Iterator[Row]:
    """What single things cost, from which the guide estimates a very large task."""
    kinds = {"few": 40, "many": 160}
    with TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in kinds}
        for name, place in places.items():
            place.mkdir()
            large_guard(place, name, kinds[name])
            sizes = [jpegs(place / f"{count}.parquet", count) for count in (64, 320)]
        turns: dict[str, list[tuple[Spent, Spent]]] = {name: [] for name in kinds}
        for _turn in range(rounds):
            for name, place in places.items():
                fewer, more = (spent(place, f"{count}.parquet", name) for count in (64, 320))
                turns[name].append((fewer, more))
        for name, pairs in turns.items():
            each = [(more.seconds - fewer.seconds) / 256 for fewer, more in pairs]
            for what, value in (
                ("seconds for an image", np.median(each)),
                ("bytes of a process", np.median([more.bytes for _, more in pairs])),
                ("bytes of the detector's file", (places[name] / "guard.leery").stat().st_size),
            ):
                yield {"what": what, "points": kinds[name] * POINTS, "value": value}
    yield {"what": "bytes of a JPEG", "value": sizes[-1] / 320}
    yield from merging_costs()
    yield from listing_costs()


def merging_costs() -> Iterator[Row]:
    """What a row costs when parts are merged, and in the output."""
    with TemporaryDirectory() as folder:
        place, rows = Path(folder), np.random.default_rng(0).random((2_000_000, 8), np.float32)
        merging = {}
        for count in (400_000, 2_000_000):
            prepared(place, small(), rows, count)
            spent(place, "inputs.npy", "small", "--shard", "1/1")
            parts, kept = place / "scores.parquet.parts", place / "kept"
            parts.rename(kept)
            taken = []
            for _turn in range(3):
                shutil.copytree(kept, parts)
                taken.append(spent(place, "inputs.npy", "small", "--merge").seconds)
            shutil.rmtree(kept)
            merging[count] = np.median(taken)
        each = (merging[2_000_000] - merging[400_000]) / 1_600_000
        yield {"what": "seconds to merge a row", "value": each}
        size = (place / "scores.parquet").stat().st_size
        yield {"what": "bytes of a row", "value": size / 2_000_000}


def listing_costs() -> Iterator[Row]:
    """What a file costs when a folder is listed."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "many").mkdir()
        for number in range(LISTED):
            (place / "many" / f"{number:09d}.png").touch()
        start = time.monotonic()
        Cuts([place / "many"], Format(), (3, LARGE, LARGE))
        yield {"what": "seconds to list a file", "value": (time.monotonic() - start) / LISTED}
        tracemalloc.start()
        kept = Cuts([place / "many"], Format(), (3, LARGE, LARGE))
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del kept
        yield {"what": "bytes of a listed file", "value": size / LISTED}


LISTED = 100_000
"""Number of files in a folder that is listed."""


def large_guard(place: Path, name: str, classes: int) -> None:
    """Write a detector with many reference points of many features into a folder."""
    torch.manual_seed(1)
    model = getattr(importlib.import_module("cluster"), name)()
    nearest = NearestNeighbours(references=None)
    made = Detector(model, metrics=("energy", "predictive_entropy", nearest), passes=20)
    images = waves(2 * classes, LARGE)
    made.fit(images, torch.arange(2 * classes) % classes)
    # The time does not depend on what the points are.
    fitted = made.metrics_["nearest_neighbours"]
    fitted.points = torch.randn(classes * POINTS, FEATURES)
    fitted.counts = torch.full((classes,), POINTS)
    made.calibrate(waves(100, LARGE), fpr=0.05).save(place / "guard.leery")


def jpegs(path: Path, count: int) -> int:
    """Write images as a Parquet file of JPEGs, and return their bytes together."""
    torch.manual_seed(2)
    encoded = []
    for image in (waves(count, LARGE) * 255).round().byte().permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=90)
        encoded.append(stream.getvalue())
    pq.write_table(pa.table({"images": encoded}), path)
    return sum(map(len, encoded))


@dataclass(frozen=True)
class Spent:
    """Seconds, and the largest resident set size in bytes, of a process."""

    seconds: float
    bytes: int


def spent(place: Path, inputs: str, model: str, *more: str) -> Spent:
    """What it takes one process to score inputs."""
    words = ["guard.leery", inputs, "--out", "scores.parquet", "--model", f"cluster:{model}"]
    single = [] if "--merge" in more else ["--workers", "1"]
    start = time.monotonic()
    ended = subprocess.run(  # noqa: S603 - ours
        [sys.executable, "-c", LARGEST, "-m", "leery", "score", *words, *single, *more],
        cwd=place,
        env=environment("/nowhere"),
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds = time.monotonic() - start
    return Spent(seconds, 1024 * int(ended.stdout.split()[-1]))


LARGEST = """
import os, sys
child = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, *sys.argv[1:]])
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs Python and prints its largest resident set size in KiB.

It does so in a small process, because that size counts from before the new process has replaced a
copy of the one that started it.
"""


TABLES: Mapping[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "speed": lambda options: speed(options.images, options.rounds),
    "memory": lambda _options: memory(),
    "sizing": lambda options: sizing(options.rounds),
    "scale": lambda options: scale(options.rounds),
}


def write(table: str, rows: list[Row]) -> None:
    """Write a table and what it was measured with."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(RESULTS / f"{table}.csv", index=False, float_format="%.6g")
    path = RESULTS / "manifest.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[table] = {
        "again": shlex.join(["python", "benchmarks/cluster.py", *sys.argv[1:]]),
        "versions": {name: version(name) for name in ("leery", "torch", "numpy", "ray")},
        "processor": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
    }
    path.write_text(json.dumps(known, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for row in TABLES[options.table](options):
        print(row, flush=True)
        rows.append(row)
    write(options.table, rows)


if __name__ == "__main__":
    main()
