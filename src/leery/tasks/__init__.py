"""Long computations in parts: worker processes, storage of finished parts and their identity.

A part writes one file, completely or not at all, so that interrupted work resumes where it stopped.
This package does not depend on what a part computes.
"""

from leery.tasks._engines import (
    Advance,
    Engine,
    Processes,
    Progress,
    Work,
    compute_missing,
    compute_part,
    no_progress,
)
from leery.tasks._identity import code_of, identity_of
from leery.tasks._parts import Parts, Shard, open_parts, parts_folder
from leery.tasks._pool import Task, Workers, default_workers, single_threaded, worker_pool
from leery.tasks._stages import (
    Clock,
    FileTask,
    missing_tasks,
    read_seconds,
    run_record,
    run_shard,
    run_stages,
    worker_count,
    write_seconds,
)

__all__ = [
    "Advance",
    "Clock",
    "Engine",
    "FileTask",
    "Parts",
    "Processes",
    "Progress",
    "Shard",
    "Task",
    "Work",
    "Workers",
    "code_of",
    "compute_missing",
    "compute_part",
    "default_workers",
    "identity_of",
    "missing_tasks",
    "no_progress",
    "open_parts",
    "parts_folder",
    "read_seconds",
    "run_record",
    "run_shard",
    "run_stages",
    "single_threaded",
    "worker_count",
    "worker_pool",
    "write_seconds",
]
