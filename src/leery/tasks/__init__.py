"""Long work in parts: worker processes, folders of finished parts, and what a part depends on.

A part leaves one file, whole or not at all, so that work that was cut off goes on where it stopped.
Nothing here knows what a part computes.
"""

from leery.tasks._identity import identity_of
from leery.tasks._parts import discard_parts, open_parts, part_name, parts_folder
from leery.tasks._pool import Task, Workers, default_workers, worker_pool

__all__ = [
    "Task",
    "Workers",
    "default_workers",
    "discard_parts",
    "identity_of",
    "open_parts",
    "part_name",
    "parts_folder",
    "worker_pool",
]
