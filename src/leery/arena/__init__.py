"""Every detector against every attack under one protocol, with tables and a page.

This package fits detectors, runs attacks and gathers verdicts; it computes no metrics itself. Other
people's detectors take part through the protocol :class:`leery.observation.FittableScorer`.
"""

from leery._extras import imported

for _library in ("jinja2", "matplotlib"):
    imported(_library, "study")

from leery.arena._config import ARENAS, ArenaConfig, Cell  # noqa: E402 - see above
from leery.arena._detectors import DETECTORS, Entry  # noqa: E402
from leery.arena._gather import summary  # noqa: E402
from leery.arena._page import PAGE  # noqa: E402
from leery.arena._run import run_arena, run_arena_shard  # noqa: E402

__all__ = [
    "ARENAS",
    "DETECTORS",
    "PAGE",
    "ArenaConfig",
    "Cell",
    "Entry",
    "run_arena",
    "run_arena_shard",
    "summary",
]
