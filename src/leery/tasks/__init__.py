"""Long work as a list of tasks: worker processes that share them out, and resume after a stop.

A task leaves one file, so work that was cut off continues where it stopped. Nothing here knows what
a task computes.
"""

from leery.tasks._pool import Task, Workers, default_workers, worker_pool

__all__ = ["Task", "Workers", "default_workers", "worker_pool"]
