"""Scores and fits on Ray: the same bytes, errors before anything starts, and kills."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from leery.cluster import OnRay
from leery.data import load
from leery.errors import InputError
from tests.cluster.nodes import (
    Namespaces,
    Nodes,
    actors_among,
    processes_below,
    three_nodes,
)
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
        # By default they are so polite that they starve beside other tests.
        "RAY_worker_niceness": "0",
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
def test_the_function_gives_them_and_keeps_the_cluster_of_the_caller(place: Path) -> None:
    script = """
import ray
from pathlib import Path
from leery.cluster import score
from net import make
ray.init("local", num_cpus=2, include_dashboard=False)
done = score(Path("guard.leery"), make, [Path("digits.npy")], Path("api.parquet"), actors=(1, 2))
assert ray.is_initialized()
print(done.rows)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=place, env=environment(), check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    # Ray tells more after it.
    assert done.stdout.startswith("5000\n")
    assert sum_of(place / "api.parquet") == sum_of(place / "one.parquet")


@pytest.mark.slow
def test_a_fit_on_ray_gives_the_bytes_of_one_process(place: Path) -> None:
    run(place, "fit", *data(), "--out", "ray.leery", "--ray", "local", "--actors", "2")
    assert sum_of(place / "ray.leery") == sum_of(place / "guard.leery")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--actors", "0"), "expected a number of actors such as 4 or 2-8, got '0'"),
        (("--actors", "3-2"), "expected a number of actors such as 4 or 2-8, got '3-2'"),
        (("--gpus", "1.5"), "expected a fraction of a GPU or a whole number of GPUs, got 1.5"),
        (("--gpus", "inf"), "expected a fraction of a GPU or a whole number of GPUs, got inf"),
        (("--gpus", "nan"), "expected a fraction of a GPU or a whole number of GPUs, got nan"),
        (("--workers", "2"), "expected --workers or --ray, got both"),
        (("--merge",), "expected --merge alone, got --ray too"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    place: Path, arguments: tuple[str, ...], error: str
) -> None:
    assert error in run(place, "score", *scored("no.csv"), "--ray", "local", *arguments, code=1)
    assert not list(place.glob("no.csv*"))


def test_ray_is_imported_only_where_it_is_asked_for(place: Path) -> None:
    script = """
import sys, leery.cluster
from leery.__main__ import main
try:
    main()
finally:
    print("imported:", sorted({name.partition(".")[0] for name in sys.modules} & {"ray"}))
"""
    for arguments in (scored("here.csv"), (*scored("no.csv"), "--ray", "nowhere:1")):
        done = subprocess.run(
            [sys.executable, "-c", script, "score", *arguments, "--json"], cwd=place,
            env=environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        asked = "--ray" in arguments
        assert done.returncode == int(asked), done.stderr
        assert done.stdout.endswith("imported: ['ray']\n" if asked else "imported: []\n")


def test_a_function_that_carries_weights_is_refused() -> None:
    made = partial(np.sum, np.zeros(20_000))
    with pytest.raises(InputError, match=r"for each node, got 160,\d+; let functions load"):
        OnRay(made)


@pytest.mark.slow
def test_ctrl_c_ends_the_job_and_another_run_resumes_it(place: Path) -> None:
    words = [*scored("stopped.parquet"), "--ray", "local", "--actors", "2"]
    started = subprocess.Popen(
        command("score", *words), cwd=place, env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for_parts(place / "stopped.parquet.parts", started, 1)
    actors = list(actors_among(processes_below(started.pid)))
    started.send_signal(signal.SIGINT)
    _, told = started.communicate()
    assert started.returncode == 130, told
    assert "run again with --resume to go on" in told
    assert "Traceback" not in told
    assert actors
    wait_for_the_end(actors)
    run(place, "score", *words, "--resume")
    assert sum_of(place / "stopped.parquet") == sum_of(place / "one.parquet")


GUIDE = Path(__file__).parents[2] / "docs" / "cluster.md"


def code_of_the_guide(place: Path) -> dict[str, str]:
    """The Python code of the guide by what it uses, with a folder in place of /shared."""
    found = re.findall(r"```python[^\n]*\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(found) == 3
    code = [block.replace("/shared", str(place)) for block in found]
    return dict(zip(("parquet", "ray", "spark"), code, strict=True))


@pytest.fixture(scope="module")
def table(place: Path) -> Path:
    """The first 600 digits as encoded pictures in a Parquet file, with a name for each."""
    folder = place / "parquet"
    folder.mkdir()
    encoded = []
    for image in np.load(place / "digits.npy")[:600, 0]:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        encoded.append(stream.getvalue())
    names = [f"{number:03d}" for number in range(600)]
    pq.write_table(pa.table({"id": names, "images": encoded}), folder / "600.parquet")
    return folder / "600.parquet"


def check_scores(place: Path, found: pa.Table) -> None:
    """The scores of the first 600 digits are those of the file of one process."""
    rows = found.sort_by("id")
    expected = pq.read_table(place / "one.parquet").slice(0, 600)
    assert rows["id"].to_pylist() == [f"{number:03d}" for number in range(600)]
    for name in ("predicted", "adversarial"):
        assert rows[name].to_pylist() == expected[name].to_pylist()
    # Other batches.
    assert rows["score"].to_pylist() == pytest.approx(expected["score"].to_pylist(), rel=1e-6)


@pytest.mark.slow
def test_the_guide_s_pipeline_of_ray_gives_the_rows_of_a_file(place: Path, table: Path) -> None:
    code = code_of_the_guide(place)["ray"]
    script = f"import ray\nray.init('local', num_cpus=2, include_dashboard=False)\n{code}"
    subprocess.run(
        [sys.executable, "-c", script], cwd=place, env=environment(), check=True,
        capture_output=True,
    )  # fmt: skip
    assert table.is_file()
    check_scores(place, pq.read_table(place / "scores"))


def test_the_guide_s_function_for_spark_gives_the_rows_of_a_file(
    place: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "net", raising=False)
    # Spark itself is not there.
    before, spark = code_of_the_guide(place)["spark"].split("\nframe = spark", 1)
    compile(f"frame = spark{spark}", "guide", "exec")
    names: dict[str, Any] = {}
    exec(before.replace("from pyspark", "# from pyspark"), names)  # noqa: S102 - our own page
    batches = pq.read_table(table).to_batches(max_chunksize=250)
    check_scores(place, pa.Table.from_batches(names["score"](batches)))


@pytest.mark.slow
def test_the_guide_s_parquet_files_are_scored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images" / "b").mkdir(parents=True)
    names = [f"images/{'b/' * (number % 2)}{number:03d}.JPG" for number in range(250)]
    for name, image in zip(names, np.load(place / "digits.npy")[:250, 0], strict=True):
        Image.fromarray(image).save(tmp_path / name, "JPEG")
    # Fewer pictures, and groups that do not fill a file.
    code = code_of_the_guide(place)["parquet"].replace("100_000", "200").replace("1000", "60")
    monkeypatch.setattr(sys, "argv", ["pack.py", "images/"])
    files = [tmp_path / "parquet" / f"images-0000{number}.parquet" for number in (0, 1)]
    with contextlib.chdir(tmp_path):
        exec(code, {})  # noqa: S102 - our own page
        files[1].rename(tmp_path / "parquet" / f".{files[1].name}")
        first = files[0].stat()
        exec(code, {})  # noqa: S102 - as after an interruption
    assert sorted((tmp_path / "parquet").iterdir()) == files
    assert files[0].stat() == first
    assert [pq.ParquetFile(file).metadata.num_row_groups for file in files] == [4, 1]
    assert pa.concat_tables(map(pq.read_table, files))["id"].to_pylist() == sorted(names)
    told = run(
        place, "score", "guard.leery", str(tmp_path / "parquet"), "--out", "pictures.csv", "--json"
    )
    assert json.loads(told)["rows"] == 250
    assert json.loads(told)["unreadable"] == 0


KILLS = int(os.environ.get("LEERY_KILLS", "2"))
"""How often each of driver, worker and node is killed."""


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """The parts of an undisturbed run on 60,000 digits."""
    np.save(place / "many.npy", (load("mnist", "train")[0] * 255).round().byte().numpy())
    run(place, "score", *scored("whole.parquet", "many.npy"), "--shard", "1/1")
    return place / "whole.parquet.parts"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Three nodes on this machine."""
    with three_nodes() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(KILLS))
@pytest.mark.parametrize("victim", ["driver", "worker", "node"])
def test_every_row_is_there_once_whoever_is_killed(
    place: Path, whole: Path, nodes: Nodes, victim: str, moment: int
) -> None:
    out = f"{victim}-{moment}.parquet"
    parts = place / f"{out}.parts"
    # A shard of one keeps its parts.
    words = [*scored(out, "many.npy"), "--ray", nodes.address, "--actors", "3", "--shard", "1/1"]
    driver = [*nodes.enter, *command("score", *words)]
    own = {**environment(), **nodes.environment}
    draw = random.Random(f"{victim} {moment}")  # noqa: S311 - not for secrets
    expected = len(list(whole.glob("0*.parquet")))
    with started_for_a_block(driver, place, own) as started:
        wait_for_parts(parts, started, draw.randrange(1, expected - 8))
        # Between the ends of two parts.
        time.sleep(0.3 * draw.random())
        with killed(victim, draw, started, nodes) as actors:
            # The run had not ended by itself.
            assert len(list(parts.glob("0*.parquet"))) < expected
            if victim == "node":
                wait_for_the_end(actors, some=True)
            code = started.wait()
    assert code == (-signal.SIGKILL if victim == "driver" else 0)
    if victim == "driver":
        subprocess.run(driver, cwd=place, env=own, check=True, stdout=subprocess.DEVNULL)
    assert bytes_of(parts) == bytes_of(whole)
    run(place, "score", *scored(out, "many.npy"), "--merge")
    names = pq.read_table(place / out).column("name").to_pylist()
    assert len(set(names)) == len(names) == 60_000


@contextmanager
def started_for_a_block(
    words: list[str], folder: Path, own: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own, which does not outlive the block."""
    process = subprocess.Popen(
        words, cwd=folder, env=own, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def killed(
    victim: str, draw: random.Random, started: subprocess.Popen[bytes], nodes: Nodes
) -> Iterator[list[int]]:
    """Kill the driver, a worker or a node; after the block, the node is there again.

    Yields:
        The actors that there were before.
    """
    actors = list(actors_among(nodes.processes()))
    if victim == "driver":
        os.killpg(started.pid, signal.SIGKILL)
    elif victim == "worker":
        os.kill(draw.choice(actors), signal.SIGKILL)
    else:
        nodes.kill_one()
    try:
        yield actors
    finally:
        if victim == "node":
            nodes.restore()


def bytes_of(parts: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in parts.glob("0*.parquet")}


def wait_for_the_end(processes: list[int], *, some: bool = False) -> None:
    """Wait until all processes have ended, or some of them."""
    there = len(processes)
    for _ in range(300):
        alive = sum(Path(f"/proc/{process}").exists() for process in processes)
        if alive < there if some else not alive:
            return
        time.sleep(0.1)
    pytest.fail(f"expected processes to end, got {alive} of {there} alive")


def wait_for_parts(parts: Path, process: subprocess.Popen[Any], count: int) -> None:
    """Wait until a process has finished a number of parts."""
    while len(list(parts.glob("0*.parquet"))) < count:
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)


def scored_on(nodes: Nodes, folder: Path, out: str) -> subprocess.CompletedProcess[str]:
    words = command("score", *scored(out), "--ray", nodes.address)
    return subprocess.run(
        [*nodes.enter, *words], cwd=folder, capture_output=True, text=True,
        env={**environment(), **nodes.environment}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_error_of_a_part_reaches_the_user(place: Path) -> None:
    images = np.load(place / "train.npz")
    pixels = images["images"].astype(np.float32) / 255
    pixels[2500] = np.nan
    np.savez(place / "broken.npz", images=pixels, labels=images["labels"])
    words = ["broken.npz" if word == "train.npz" else word for word in data()]
    told = run(place, "fit", *words, "--out", "no.leery", "--ray", "local", code=1)
    assert "broken.npz#2500" in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["other file", "other folder", "read-only folder"])
def test_a_node_that_sees_other_files_is_named_before_anything_starts(
    place: Path, nodes: Nodes, kind: str
) -> None:
    if not isinstance(nodes, Namespaces):
        pytest.skip("only root may mount")
    (place / "more").mkdir(exist_ok=True)
    mount, error = {
        "other file": (
            ("--bind", str(place / "other.leery"), str(place / "guard.leery")),
            "expected the same detector on every node as here, got a difference on 10.77.0.3",
        ),
        "other folder": (
            ("-t", "tmpfs", "none", str(place / "more")),
            "to be a folder that all machines share, got none on this one",
        ),
        "read-only folder": (
            ("--bind", "-o", "ro", str(place / "more"), str(place / "more")),
            "to be a writable folder, got: Read-only file system",
        ),
    }[kind]
    run(place, "fit", *data(), "--seed", "1", "--out", "other.leery", "--force")
    nodes.kill_one()
    nodes.restore(*mount)
    try:
        done = scored_on(nodes, place, "more/no.parquet")
        assert done.returncode == 1
        assert error in " ".join(done.stderr.split())
        assert "10.77.0.3" in done.stderr
        assert "Traceback" not in done.stderr
        assert not list((place / "more").iterdir())
    finally:
        nodes.kill_one()
        nodes.restore()


@pytest.mark.slow
def test_a_node_that_has_just_died_is_not_in_the_way(place: Path, nodes: Nodes) -> None:
    nodes.kill_one()
    try:
        done = scored_on(nodes, place, "two-nodes.parquet")
        assert done.returncode == 0, done.stderr
    finally:
        nodes.restore()


@pytest.mark.slow
def test_unreadable_inputs_are_reported_with_file_and_row(place: Path) -> None:
    (place / "pictures").mkdir()
    for number, image in enumerate(np.load(place / "digits.npy")[:300, 0]):
        Image.fromarray(image).save(place / "pictures" / f"{number:03d}.png")
    broken = [f"pictures/{number:03d}.png" for number in (0, 150, 299)]
    for name in broken:
        (place / name).write_bytes((place / name).read_bytes()[:60])
    words = scored("pictures.parquet", "pictures")
    told = run(place, "score", *words, "--ray", "local", "--json", code=3)
    assert json.loads(told)["unreadable"] == 3
    rows = pq.read_table(place / "pictures.parquet").to_pylist()
    assert len(rows) == 300
    assert [row["name"] for row in rows if row["error"]] == broken
    assert all("cannot be decoded" in row["error"] for row in rows if row["error"])
