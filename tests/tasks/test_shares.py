"""Shares of stages of tasks, made by several runs."""

from pathlib import Path

import pytest

from leery._files import write_atomically
from leery.tasks import Clock, FileTask, Shard, missing_tasks, run_shard


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, list[FileTask]]:
    """Two stages of five and of two files."""
    return {
        name: [
            FileTask(file, write_atomically, (file, name), 1.0)
            for file in (tmp_path / f"{name}{number}" for number in range(count))
        ]
        for name, count in {"first": 5, "second": 2}.items()
    }


def share(stages: dict[str, list[FileTask]], text: str) -> str | None:
    return run_shard(stages, Shard.parse(text), Clock(), workers=1, progress=False)


def test_a_share_stops_where_those_of_others_are_missing_and_goes_on_later(
    stages: dict[str, list[FileTask]], tmp_path: Path
) -> None:
    assert missing_tasks(stages) == "first: 5 of 5"
    assert share(stages, "1/2") == "first: 2 of 5"
    assert share(stages, "1/2") == "first: 2 of 5"
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert sorted(path.name for path in stamps) == ["first0", "first2", "first4"]
    # Nothing needs what others have yet to make in the last stage.
    assert share(stages, "2/2") is None
    assert missing_tasks(stages) == "second: 1 of 2"
    assert share(stages, "1/2") is None
    assert missing_tasks(stages) is None
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(list(tmp_path.iterdir())) == 7


def test_a_reported_failure_does_not_hold_up_other_shards(tmp_path: Path) -> None:
    failed, after = tmp_path / "failed", tmp_path / "after"
    stages = {
        "first": [FileTask(tmp_path / "file", write_atomically, (failed, "why"), 1.0, failed)],
        "second": [FileTask(after, write_atomically, (after, "done"), 1.0)],
    }
    assert share(stages, "1/1") is None
    assert missing_tasks(stages) is None
    assert after.exists()


def test_more_shares_than_tasks_are_no_trouble(
    stages: dict[str, list[FileTask]], tmp_path: Path
) -> None:
    assert share(stages, "7/7") == "first: 5 of 5"
    assert not list(tmp_path.iterdir())
