"""Scores into files: what a cut, a change or a second run may do to the rows, and bad inputs."""

import fcntl
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from leery import PAPER_METRICS, Detector, _files
from leery.cluster import Scorer
from leery.detector import SavedDetector
from leery.errors import (
    InputError,
    LeeryError,
    LeeryWarning,
    NotFittedError,
    OutputError,
    WrongModelError,
)
from leery.inputs import Format, _cuts
from leery.scoring import Scoring, Summary, _rows, _scoring, score_to_file, scoring_of
from leery.tasks import Shard, _engines, _parts, compute_part


class Net(nn.Module):
    """A few numbers in, two classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, rows: Tensor) -> Tensor:
        out: Tensor = self.body(10 * rows)
        return out


@pytest.fixture(scope="module")
def detector() -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, rows = Net().eval(), torch.rand(200, 6)
    found = Detector(model, metrics=PAPER_METRICS, passes=3).fit(rows[:100], torch.arange(100) % 2)
    return found.fit_combiner(rows[100:150]).calibrate(rows[150:])


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten rows, in parts of four."""
    monkeypatch.setattr(_cuts, "_ROWS", (4, 4))
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).random((10, 6), np.float32))
    return path


def score(detector: Detector, source: Path, *, resume: bool = False) -> Summary:
    out = source.parent / "out.parquet"
    return score_to_file(detector, "me", [source], Format(), out, resume=resume)


def rows_of(folder: Path) -> list[int]:
    names = pq.read_table(folder / "out.parquet").column("name").to_pylist()
    return [int(name.rpartition("#")[2]) for name in names]


def cut_off(detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> Path:
    """A run that stops when it has that many parts."""

    class CutError(Exception):
        pass

    whole = _rows.rows_of
    done: list[int] = []

    def cutting(*arguments: object) -> object:
        if len(done) == after:
            raise CutError
        done.append(1)
        return whole(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(_scoring, "rows_of", cutting)
        with pytest.raises(CutError):
            score(detector, source)
    return source.parent / "out.parquet.parts"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_cut_run_goes_on_behind_its_last_whole_part(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    parts = cut_off(detector, source, monkeypatch, after)
    stamps = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(stamps) == after
    seen: list[tuple[int, int]] = []
    out = source.parent / "out.parquet"
    score_to_file(
        detector, "me", [source], Format(), out, resume=True, progress=lambda *now: seen.append(now)
    )
    assert rows_of(source.parent) == list(range(10))
    assert seen == [(done, 10) for done in (0, 4, 8, 10)[after:]]
    assert not parts.exists()


def test_parts_hold_more_of_small_images(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, many = tmp_path / "rows.npy", 1500
    np.save(source, np.random.default_rng(0).random((many, 6), np.float32))
    told: list[int] = []
    out = tmp_path / "out.parquet"

    def tell(done: int, _total: int) -> None:
        told.append(done)

    score_to_file(detector, "me", [source], Format(), out, progress=tell)
    assert told == [0, 1024, 1500]
    assert rows_of(tmp_path) == list(range(many))
    monkeypatch.setattr(_cuts, "_ELEMENTS", 6 * 600)
    told.clear()
    score_to_file(detector, "me", [source], Format(), out, progress=tell)
    assert told == [0, 600, 1200, 1500]


def test_many_inputs_make_larger_parts_with_the_same_rows(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(detector, source)
    before = pq.read_table(source.parent / "out.parquet")
    monkeypatch.setattr(_cuts, "_MAX_PARTS", 2)
    told: list[int] = []

    def tell(done: int, _total: int) -> None:
        told.append(done)

    score_to_file(detector, "me", [source], Format(), source.parent / "out.parquet", progress=tell)
    assert told == [0, 8, 10]
    assert pq.read_table(source.parent / "out.parquet").equals(before)


def test_a_table_without_rows_gives_one_without_rows(detector: Detector, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"images": pa.array([], pa.binary())}), source)
    assert score(detector, source) == Summary(rows=0, unreadable=0, flagged=0)
    assert rows_of(tmp_path) == []


def test_a_table_without_the_column_is_refused_before_anything_is_scored(
    detector: Detector, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        column = {"a": "images", "b": "image"}[name]
        pq.write_table(pa.table({column: [b"", b""]}), tmp_path / f"{name}.parquet")
    sources = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(InputError, match="expected a column 'images' in .*b.parquet, got image"):
        score_to_file(detector, "me", sources, Format(), tmp_path / "out.parquet")
    assert sorted(tmp_path.iterdir()) == sources


def test_a_missing_part_alone_is_scored_again(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = cut_off(detector, source, monkeypatch, 2)
    min(parts.glob("*.parquet")).unlink()
    seen: list[tuple[int, int]] = []
    out = source.parent / "out.parquet"
    score_to_file(
        detector, "me", [source], Format(), out, resume=True, progress=lambda *now: seen.append(now)
    )
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert rows_of(source.parent) == list(range(10))


def test_a_short_part_is_scored_again(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = cut_off(detector, source, monkeypatch, 2)
    last = max(parts.glob("*.parquet"))
    pq.write_table(pq.read_table(last).slice(0, 2), last)
    score(detector, source, resume=True)
    assert rows_of(source.parent) == list(range(10))


def test_a_changed_file_in_a_folder_is_noticed(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(detector, source, monkeypatch, 1)
    np.save(source, np.zeros((10, 6), np.float32))
    with pytest.raises(
        InputError, match="with which .* was written, got different ones, or a file has changed"
    ):
        score(detector, source, resume=True)
    assert score(detector, source).rows == 10


def test_another_listing_of_a_folder_is_noticed(detector: Detector, tmp_path: Path) -> None:
    folder, out = tmp_path / "rows", tmp_path / "out.parquet"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.npy").write_bytes(b"not an array, but listed")

    def listing() -> str:
        return Scoring(detector, "me", [folder], Format(), out).facts["inputs"]

    seen = [listing()]
    os.utime(folder / "b.npy", ns=(1, 1))
    seen.append(listing())
    (folder / "c.npy").rename(folder / "d.npy")
    seen.append(listing())
    (folder / "b.npy").unlink()
    seen.append(listing())
    (folder / "e.npy").touch()
    seen.append(listing())
    assert len(set(seen)) == len(seen)
    assert listing() == seen[-1]


def test_a_file_that_vanishes_while_a_folder_is_listed_is_said(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    (tmp_path / "rows" / "a.png").touch()
    before = os.scandir

    def removing(path: object) -> object:
        if isinstance(path, Path) and path.name == "deep":
            path.rmdir()
        return before(path)  # type: ignore[call-overload]

    monkeypatch.setattr("leery.inputs._read.os.scandir", removing)
    with pytest.raises(InputError, match="rows/deep to be there until the end, got no such file;"):
        Scoring(detector, "me", [tmp_path / "rows"], Format(), tmp_path / "out.parquet")


@pytest.mark.parametrize(
    "fault",
    [
        OSError(24, "Too many open files"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("can't start new thread"),
    ],
)
def test_a_fault_of_the_machine_becomes_no_row(source: Path, fault: Exception) -> None:
    last = torch.from_numpy(np.load(source)[-1])

    class Busy(Net):
        broken = False

        def forward(self, rows: Tensor) -> Tensor:
            # A condition on values, so that no graph of the classifier can be captured.
            if bool((rows == last).all(1).any()) and self.broken:
                raise fault
            return super().forward(rows)

    model, rows = Busy().eval(), torch.rand(200, 6)
    found = Detector(model, metrics=PAPER_METRICS, passes=3).fit(rows[:100], torch.arange(100) % 2)
    found.fit_combiner(rows[100:150]).calibrate(rows[150:])
    whole = score(found, source)
    expected = (source.parent / "out.parquet").read_bytes()
    (source.parent / "out.parquet").unlink()
    Busy.broken = True
    with pytest.raises(LeeryError, match="expected this machine to carry out the computation"):
        score(found, source)
    assert not (source.parent / "out.parquet").exists()
    assert len(list((source.parent / "out.parquet.parts").glob("0*.parquet"))) == 2
    Busy.broken = False
    assert score(found, source, resume=True) == whole
    assert (source.parent / "out.parquet").read_bytes() == expected


def test_a_run_goes_on_with_its_own_detector_and_form_only(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = source.parent / "out.parquet"
    cut_off(detector, source, monkeypatch, 1)
    for identity, form in (("you", Format()), ("me", Format(images_key="x"))):
        with pytest.raises(InputError, match="expected the inputs, settings, device and versions"):
            score_to_file(detector, identity, [source], form, out, resume=True)
    assert score(detector, source, resume=True).rows == 10


def test_a_run_that_ends_in_between_is_not_a_lock(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making the folder and locking it another run may end, and take it away."""
    removals: list[Path] = []
    make = _files.make_folder

    def made_and_gone(path: Path) -> Path:
        make(path)
        if path.name.endswith(".parts") and not removals:
            removals.append(path)
            path.rmdir()
        return path

    monkeypatch.setattr(_parts, "make_folder", made_and_gone)
    assert score(detector, source).rows == 10
    assert removals


def test_inputs_that_change_meanwhile_are_refused(detector: Detector, source: Path) -> None:
    def touch(_done: int, _total: int) -> None:
        np.save(source, np.ones((10, 6), np.float32))

    out = source.parent / "out.parquet"
    with pytest.raises(InputError, match="stay unchanged during the run, got changed ones; remove"):
        score_to_file(detector, "me", [source], Format(), out, progress=touch)
    assert not out.exists()


def score_part(detector: Detector, source: Path, shard: str, out: str = "out.parquet") -> Summary:
    own = source.parent / out
    return Scoring(detector, "me", [source], Format(), own).run_shard(Shard.parse(shard))


def merge(detector: Detector, source: Path, out: str = "out.parquet", *others: Path) -> Summary:
    return Scoring(detector, "me", [source], Format(), source.parent / out).merge(others)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_shards_in_any_order_give_the_bytes_of_one_run(
    detector: Detector, source: Path, kind: str, count: int
) -> None:
    rows = np.load(source)
    rows[7] = np.nan
    np.save(source, rows)
    one, other = f"one.{kind}", f"other.{kind}"
    whole = score_to_file(detector, "me", [source], Format(), source.parent / one)
    found = [
        score_part(detector, source, f"{number}/{count}", other) for number in range(count, 0, -1)
    ]
    assert sum(part.rows for part in found) == 10
    assert sum(part.unreadable for part in found) == 1
    assert merge(detector, source, other) == whole
    assert (source.parent / other).read_bytes() == (source.parent / one).read_bytes()
    assert sorted(path.name for path in source.parent.iterdir()) == sorted([
        one, other, source.name,
    ])  # fmt: skip


def test_shards_in_folders_of_their_own_are_merged(detector: Detector, source: Path) -> None:
    score(detector, source)
    for number in (1, 2, 3):
        score_part(detector, source, f"{number}/3", f"{number}.parquet")
    others = [source.parent / f"{number}.parquet.parts" for number in (1, 2)]
    with pytest.raises(InputError, match="expected parts 1-3 in .*, got no file for 1-2; "):
        merge(detector, source, "3.parquet")
    merge(detector, source, "3.parquet", *others)
    assert (source.parent / "3.parquet").read_bytes() == (
        source.parent / "out.parquet"
    ).read_bytes()
    assert all(folder.is_dir() for folder in others)


def test_an_interrupted_shard_is_run_again_or_completed_by_one_process(
    detector: Detector, source: Path
) -> None:
    score_part(detector, source, "2/2")
    stamps = {
        path: path.stat().st_mtime_ns
        for path in (source.parent / "out.parquet.parts").glob("*.parquet")
    }
    with pytest.raises(InputError, match="got no file for 1; run the shards again"):
        merge(detector, source)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not (source.parent / "out.parquet").exists()
    assert score(detector, source, resume=True).rows == 10
    assert rows_of(source.parent) == list(range(10))


def test_a_shard_of_other_inputs_is_refused(detector: Detector, source: Path) -> None:
    score_part(detector, source, "1/2")
    np.save(source, np.ones((10, 6), np.float32))
    for again in (partial(score_part, shard="2/2"), merge):
        with pytest.raises(
            InputError, match="settings, device and versions with which .* got different ones"
        ):
            again(detector, source)
    with pytest.raises(InputError, match="expected the parts of a run in .*, got none; name the"):
        merge(detector, source, "out.parquet", source.parent / "nowhere")
    assert len(list((source.parent / "out.parquet.parts").glob("*.parquet"))) == 1


def test_shards_run_at_the_same_time_but_beside_no_whole_run(
    detector: Detector, source: Path
) -> None:
    folder = source.parent / "out.parquet.parts"
    folder.mkdir()
    with (folder / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        for number in (1, 2):
            score_part(detector, source, f"{number}/2")
        for whole in (score, merge):
            with pytest.raises(OutputError, match="got another run that is using it; wait"):
                whole(detector, source)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="got another run that is using it; wait"):
            score_part(detector, source, "1/2")
    assert merge(detector, source).rows == 10


def test_the_parts_of_shards_are_not_discarded_without_a_word(
    detector: Detector, source: Path
) -> None:
    score_part(detector, source, "1/2")
    with pytest.raises(InputError, match="expected --merge or --resume.* got neither; pass one"):
        score(detector, source)
    assert len(list((source.parent / "out.parquet.parts").glob("*.parquet"))) == 1
    assert score(detector, source, resume=True).rows == 10
    assert not (source.parent / "out.parquet.parts").exists()


def test_another_scale_is_said_once(detector: Detector, tmp_path: Path) -> None:
    images = torch.rand(3000, 6, generator=torch.Generator().manual_seed(0)) / 100
    np.save(tmp_path / "small.npy", images.numpy())
    with pytest.warns(LeeryWarning, match="the inputs may be on another scale") as told:
        score(detector, tmp_path / "small.npy")
    assert len(told) == 1


def test_a_refused_shard_takes_its_empty_folder_away_unless_another_uses_it(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_arguments: object, **_options: object) -> None:
        raise InputError

    monkeypatch.setattr("leery.inputs._cuts.Sources.items", damaged)
    folder = source.parent / "out.parquet.parts"
    with pytest.raises(InputError):
        score_part(detector, source, "1/2")
    assert not folder.exists()
    folder.mkdir()
    with (folder / "lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(InputError):
            score_part(detector, source, "1/2")
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "run.json"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/3", ""])
def test_a_shard_is_a_number_and_a_count(text: str) -> None:
    with pytest.raises(InputError, match=f"expected a shard I/N .* got {text!r}; correct it"):
        Shard.parse(text)


def test_shards_share_all_parts() -> None:
    for count in (1, 2, 3, 7, 50):
        own = [Shard(number, count).own(20) for number in range(1, count + 1)]
        assert [part for share in own for part in share] == list(range(20))
        assert max(map(len, own)) - min(map(len, own)) <= 1


def test_one_run_at_a_time_works_in_the_folder(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = cut_off(detector, source, monkeypatch, 1)
    with (parts / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            OutputError, match="to be unused, got another run that is using it; wait"
        ):
            score(detector, source, resume=True)
    assert len(list(parts.glob("*.parquet"))) == 1


def test_a_folder_of_somebody_else_is_left_alone(detector: Detector, source: Path) -> None:
    own = source.parent / "out.parquet.parts"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    with pytest.raises(
        InputError, match=r"only parts of a run in .*, got thesis.tex; move these away"
    ):
        score(detector, source)
    assert (own / "thesis.tex").read_text() == "years of work"


def test_an_input_that_cannot_be_measured_does_not_spoil_the_others(
    detector: Detector, source: Path
) -> None:
    rows = np.load(source)
    expected = score(detector, source), rows_of(source.parent)
    before = pq.read_table(source.parent / "out.parquet").to_pylist()
    rows[[0, 5]] = 3e38
    rows[7] = np.nan
    np.save(source, rows)
    summary = score(detector, source)
    assert (summary.rows, summary.unreadable) == (10, 3)
    after = pq.read_table(source.parent / "out.parquet").to_pylist()
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        if number in (0, 5):
            assert other["error"].startswith("cannot be measured: ")
            assert other["score"] is None
        elif number == 7:
            assert other["error"] == "NaN or infinity"
        else:
            assert other["score"] == pytest.approx(one["score"], abs=1e-5)
    assert expected[1] == list(range(10))


def test_all_unreadable_is_still_a_verdict_on_none(detector: Detector, source: Path) -> None:
    np.save(source, np.full((3, 6), np.nan))
    summary = score(detector, source)
    assert summary == Summary(rows=3, unreadable=3, flagged=0, reason="NaN or infinity")


def test_a_run_refused_at_its_first_part_leaves_nothing(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_arguments: object, **_options: object) -> None:
        raise InputError

    monkeypatch.setattr("leery.inputs._cuts.Sources.items", damaged)
    with pytest.raises(InputError):
        score(detector, source)
    assert [path.name for path in source.parent.iterdir()] == [source.name]


def test_inputs_take_the_type_of_the_fit(source: Path) -> None:
    model, rows = Net().double().eval(), torch.rand(100, 6, dtype=torch.float64)
    found = Detector(model, metrics=PAPER_METRICS, passes=2, combiner="conformal").fit(
        rows, torch.arange(100) % 2
    )
    found.fit_combiner(torch.rand(50, 6, dtype=torch.float64))
    assert score(found, source).unreadable == 0
    assert json.dumps(rows_of(source.parent)) == json.dumps(list(range(10)))


def test_a_detector_without_combiner_leaves_nothing(detector: Detector, source: Path) -> None:
    bare = Detector(detector.model, metrics=PAPER_METRICS, passes=2).fit(
        torch.rand(20, 6), torch.arange(20) % 2
    )
    with pytest.raises(NotFittedError, match="got one without; calibrate it first"):
        score(bare, source)
    assert [path.name for path in source.parent.iterdir()] == ["rows.npy"]


def saved(detector: Detector, folder: Path) -> SavedDetector:
    """The detector in a file, with a classifier that other processes can load."""
    detector.save(folder / "guard.leery")
    return SavedDetector(folder / "guard.leery", lambda: detector.model)


def test_a_process_with_another_detector_file_is_refused(detector: Detector, source: Path) -> None:
    make = partial(
        scoring_of, saved(detector, source.parent), [source], Format(), source.parent / "out.csv"
    )
    scoring = make()
    with scoring.open(resume=False) as parts:
        compute_part(make, parts, [0])
        assert parts.missing() == [1, 2]
        # Another process makes the work anew, from the file as it is then.
        _engines._MADE.clear()
        detector.with_masks(5).save(source.parent / "guard.leery")
        with pytest.raises(InputError, match="expected the same files, code and libraries in"):
            compute_part(make, parts, [1])
        assert parts.missing() == [1, 2]


@pytest.mark.parametrize("kind", ["arrays", "table", "record batch"])
def test_a_scorer_gives_the_rows_of_a_file(detector: Detector, source: Path, kind: str) -> None:
    score(detector, source)
    expected = pq.read_table(source.parent / "out.parquet").drop_columns("name")
    own = saved(detector, source.parent)
    scorer = Scorer(own.file, own.model, images="row", keep=["id"])
    rows = list(np.load(source))
    rows[3] = np.full(6, np.nan, np.float32)
    batch: Any = {"id": np.arange(10), "row": np.stack(rows)}
    if kind != "arrays":
        columns = {"id": batch["id"], "row": pa.array([row.tolist() for row in rows])}
        batch = pa.table(columns) if kind == "table" else pa.record_batch(columns)
    found = scorer(batch)
    assert isinstance(found, pa.RecordBatch if kind == "record batch" else pa.Table)
    assert found.schema.names == ["id", *scorer.schema.names]
    assert found.column("id").to_pylist() == list(range(10))
    assert found.column("error").to_pylist() == [
        "NaN or infinity" if row == 3 else None for row in range(10)
    ]
    scores = found.column("score").to_pylist()
    for row, score_then in enumerate(expected.column("score").to_pylist()):
        assert scores[row] == (None if row == 3 else pytest.approx(score_then, abs=1e-5))


def test_a_scorer_keeps_the_images_themselves(detector: Detector, source: Path) -> None:
    own = saved(detector, source.parent)
    rows = np.load(source)
    found = Scorer(own.file, own.model, keep=["image"])({"image": rows})
    kept = found.column("image").combine_chunks().to_numpy_ndarray()
    assert np.array_equal(kept, rows)
    none = Scorer(own.file, own.model, keep=["image"])({"image": rows[:0]})
    assert none.schema == found.schema
    assert len(none) == 0


def test_a_scorer_names_the_column_that_is_missing(detector: Detector, source: Path) -> None:
    own = saved(detector, source.parent)
    with pytest.raises(InputError, match="expected a column 'image', got id, pixels; rename your"):
        Scorer(own.file, own.model)({"id": np.arange(2), "pixels": np.zeros((2, 6), np.float32)})


def test_a_scorer_refuses_to_keep_a_column_of_the_name_of_its_own(
    detector: Detector, source: Path
) -> None:
    own = saved(detector, source.parent)
    with pytest.raises(InputError, match="names the result does not use, got 'score'; rename"):
        Scorer(own.file, own.model, keep=["id", "score"])


@pytest.mark.parametrize("kind", ["lists", "tensors"])
def test_a_scorer_reads_bytes_of_arrow_as_pixels(
    detector: Detector, source: Path, kind: str
) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    own = saved(detector, source.parent)
    scorer = Scorer(own.file, own.model)
    columns = (
        pa.array(pixels.tolist(), pa.list_(pa.uint8()))
        if kind == "lists"
        else pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    )
    found = scorer(pa.table({"image": columns}))
    assert found.equals(scorer({"image": pixels}))
    assert found.column("error").null_count == 4


def test_a_bad_value_of_arrow_is_the_error_of_its_row(detector: Detector, source: Path) -> None:
    own = saved(detector, source.parent)
    rows: list[Any] = [[1] * 6, [1, None, 1, 1, 1, 1], None, [1] * 5]
    table = pa.table({"image": pa.array(rows, pa.list_(pa.uint8()))})
    found = Scorer(own.file, own.model)(table)
    assert [error is None for error in found.column("error").to_pylist()] == [
        True, False, False, False,
    ]  # fmt: skip


def test_the_names_of_metrics_are_part_of_a_detector_s_identity(
    detector: Detector, source: Path
) -> None:
    plain = saved(detector, source.parent)
    named = [
        replace(plain, metrics=(f"leery.metrics:{name}",)).load()[1]
        for name in ("NearestNeighbours", "NearestNeighbours", "Mahalanobis")
    ]
    assert named[0] == named[1]
    assert len({plain.load()[1], *named}) == 3


def test_a_classifier_that_changes_meanwhile_gives_no_rows(source: Path) -> None:
    model, rows = Net().eval(), torch.rand(200, 6)
    found = Detector(model, metrics=PAPER_METRICS, passes=3).fit(rows[:100], torch.arange(100) % 2)
    found.fit_combiner(rows[100:150]).calibrate(rows[150:])
    scoring = Scoring(found, "me", [source], Format(), source.parent / "out.parquet")
    with torch.no_grad():
        model.body[0].weight.add_(1)  # type: ignore[operator]
    with pytest.raises(WrongModelError):
        scoring.run()
    assert not list(source.parent.glob("out*"))


def test_a_folder_that_was_not_wholly_removed_is_neither_resumed_nor_in_the_way(
    detector: Detector, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score(detector, source)
    parts = source.parent / "out.parquet.parts"
    removed = Path.unlink
    left = iter(range(2))

    def killed(path: Path, **settings: bool) -> None:
        if path in parts.glob("0*.parquet") and next(left, None) is None:
            raise KeyboardInterrupt
        removed(path, **settings)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        score(detector, source)
    monkeypatch.undo()
    monkeypatch.setattr(_cuts, "_ROWS", (4, 4))
    assert len(list(parts.glob("0*.parquet"))) == 1
    with pytest.raises(InputError, match="the rest of one whose output is complete; use that"):
        score(detector, source, resume=True)
    assert score(detector, source) == whole
    assert not parts.exists()


def test_parts_without_a_manifest_are_not_discarded_either(
    detector: Detector, source: Path
) -> None:
    score_part(detector, source, "1/2")
    parts = source.parent / "out.parquet.parts"
    (parts / "run.json").unlink()
    scoring = Scoring(detector, "me", [source], Format(), source.parent / "out.parquet")
    for _turn in ("without a manifest", "with the one of the merging"):
        with pytest.raises(InputError, match="because shards left parts"):
            scoring.run()
        with pytest.raises(InputError, match="got no file for"):
            scoring.merge()
    assert len(list(parts.glob("0*.parquet"))) == 1
