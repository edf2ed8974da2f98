"""Scores and fits on Ray: the same bytes, errors before anything starts, and kills."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import Batch

NET = """
from leery.classifiers import pretrained

def make():
    return pretrained("mnist").model
"""

SETTINGS = ("--metrics", "paper,mahalanobis", "--passes", "5", "--references", "100")

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, digits: Batch, training_digits: Batch) -> Path:
    """A folder with a classifier, data and a calibrated detector."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "net.py").write_text(NET)
    for name, (images, labels), count in (
        ("train", training_digits, 3000),
        ("held", digits, 600),
    ):
        pixels = (images[:count] * 255).round().byte().numpy()
        np.savez(folder / f"{name}.npz", images=pixels, labels=labels[:count].numpy())
    np.save(folder / "digits.npy", (digits[0][:5000] * 255).round().byte().numpy())
    run(folder, "fit", *data(), "--out", "guard.leery", "--workers", "1")
    run(folder, "score", *scored("one.parquet"), "--workers", "1")
    return folder


def data() -> tuple[str, ...]:
    return ("--train", "train.npz", "--clean", "held.npz", "--fpr", "0.05", *SETTINGS)


def scored(out: str, source: str = "digits.npy") -> tuple[str, ...]:
    return ("guard.leery", source, "--out", out)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "leery", *arguments]


def environment() -> dict[str, str]:
    # A socket's path may have at most 107 characters.
    short = f"/tmp/ray-{os.getpid()}"  # noqa: S108 - Ray makes folders of its own in it
    return {
        **os.environ,
        "LEERY_MODEL": "net:make",
        "RAY_TMPDIR": short,
        "PYTHONPATH": pythonpath(),
    }


def pythonpath() -> str:
    return os.pathsep.join(path for path in sys.path if path)


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code in (0, 3) else done.stderr


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_actors_give_the_bytes_of_one_process(place: Path) -> None:
    told = run(place, "score", *scored("ray.parquet"), "--ray", "local", "--actors", "2", "--json")
    assert json.loads(told)["rows"] == 5000
    assert sum_of(place / "ray.parquet") == sum_of(place / "one.parquet")
    assert not (place / "ray.parquet.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("actors", ["1", "2", "4", "1-2"])
def test_any_number_of_actors_gives_them(place: Path, actors: str) -> None:
    run(place, "score", *scored(f"{actors}.parquet"), "--ray", "local", "--actors", actors)
    assert sum_of(place / f"{actors}.parquet") == sum_of(place / "one.parquet")


@pytest.mark.slow
def test_a_fit_on_ray_gives_the_bytes_of_one_process(place: Path) -> None:
    run(place, "fit", *data(), "--out", "ray.leery", "--ray", "local", "--actors", "2")
    assert sum_of(place / "ray.leery") == sum_of(place / "guard.leery")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--actors", "0"), "expected a number of actors such as 4 or 2-8, got '0'"),
        (("--actors", "3-2"), "expected a number of actors such as 4 or 2-8, got '3-2'"),
        (("--workers", "2"), "expected --workers or --ray, got both"),
        (("--merge",), "expected --merge alone, got --ray too"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    place: Path, arguments: tuple[str, ...], error: str
) -> None:
    assert error in run(place, "score", *scored("no.csv"), "--ray", "local", *arguments, code=1)
    assert not list(place.glob("no.csv*"))


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Three nodes on this machine, each with one processor."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - imports Ray

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker", "node"])
def test_every_row_is_there_once_whoever_is_killed(place: Path, cluster: Any, victim: str) -> None:
    draw = random.Random(0)  # noqa: S311 - not for secrets
    out = place / f"{victim}.parquet"
    words = [*scored(out.name), "--ray", cluster.address, "--resume"]
    started = subprocess.Popen(
        command("score", *words), cwd=place, env=environment(), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    parts = place / f"{out.name}.parts"
    while started.poll() is None and not list(parts.glob("0*.parquet")):
        time.sleep(0.05)
    time.sleep(draw.random())
    stamps = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    if victim == "driver":
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        run(place, "score", *words)
    elif victim == "worker":
        os.kill(actor(), signal.SIGKILL)
    else:
        cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert victim == "driver" or started.wait() == 0
    assert stamps
    assert sum_of(out) == sum_of(place / "one.parquet")
    names = pq.read_table(out).column("name").to_pylist()
    assert len(set(names)) == len(names) == 5000


def actor() -> int:
    """The process of an actor that computes parts."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"MapWorker" in status.read_bytes():
                return int(status.parent.name)
        except OSError:
            continue
    message = "no actor runs"
    raise AssertionError(message)
