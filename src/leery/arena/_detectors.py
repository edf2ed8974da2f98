"""The detectors of an arena, each a class or function that takes the classifier, by its path."""

import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from leery.baselines import BASELINES
from leery.errors import InputError
from leery.models import loaded_object
from leery.names import SENTINELS
from leery.observation import FittableScorer

__all__ = ["DETECTORS", "Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """A detector of an arena.

    Attributes:
        name: name in tables.
        factory: ``module:function``; the function takes the classifier and returns a detector.
        settings: keyword arguments of the function.
        dataset: the only dataset on which it takes part; empty for all.
    """

    name: str
    factory: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""

    @property
    def module(self) -> str:
        """The name of the module of the function."""
        return self.factory.partition(":")[0]

    @property
    def function(self) -> Callable[..., Any]:
        """The class or function that takes the classifier.

        Raises:
            InputError: when it cannot be found.
        """
        found: Callable[..., Any] = loaded_object(self.factory, "detector")
        return found

    @property
    def source(self) -> str:
        """SHA-256 of the named module and of the file that defines the function.

        They count even in an installed package.
        """
        names = (self.module, getattr(inspect.unwrap(_unbound(self.function)), "__module__", None))
        paths = (getattr(sys.modules.get(name or ""), "__file__", None) for name in names)
        read = [Path(path).read_bytes() for path in paths if path]
        return hashlib.sha256(b"\0".join(read)).hexdigest()

    @property
    def supervised(self) -> bool:
        """True if the function has an attribute ``learns_from_attacks`` that is true."""
        inner = getattr(_unbound(self.function), "learns_from_attacks", False)
        return bool(getattr(self.function, "learns_from_attacks", inner))

    def make(self, model: nn.Module) -> FittableScorer:
        """The detector of a classifier, before its fit.

        Raises:
            InputError: when the function cannot be found.
        """
        made: FittableScorer = self.function(model, **self.settings)
        return made


def _unbound(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function or class to which ``functools.partial`` gives some arguments."""
    return function.func if isinstance(function, partial) else function


def _baseline(name: str) -> Entry:
    """A baseline, by its own module, so that its stored scores depend on no other baseline."""
    made = BASELINES[name]
    settings = made.keywords if isinstance(made, partial) else {}
    function = _unbound(made)
    return Entry(name, f"{function.__module__}:{function.__name__}", settings)


def _sentinel(dataset: str) -> Entry:
    """The sentinel that ships for a dataset."""
    factory = "leery.arena._default:SentinelDetector"
    return Entry("sentinel", factory, {"dataset": dataset}, dataset)


DETECTORS: Sequence[Entry] = (
    Entry("leery", "leery.arena._default:DefaultDetector"),
    *map(_sentinel, SENTINELS),
    *map(_baseline, BASELINES),
)
"""leery's default, the sentinels and the baselines."""


def entries(
    dataset: str, given: Sequence[str] = (), only: Collection[str] | None = None
) -> list[Entry]:
    """The detectors of an arena.

    Args:
        dataset: its dataset.
        given: detectors of the user, as ``module:function``.
        only: names of those of :data:`DETECTORS` that take part; None for all.

    Raises:
        InputError: when a detector cannot be found, two have the same name, or there is none.
    """
    known = {entry.name: entry for entry in DETECTORS if entry.dataset in ("", dataset)}
    names = list(known) if only is None else list(dict.fromkeys(only))
    for name in names:
        if name not in known:
            message = f"expected detectors from {', '.join(known)}, got {name!r}; choose from these"
            raise InputError(message)
    own = [Entry(name.partition(":")[2] or name, name) for name in given]
    for entry in own:
        if [*known, *(other.name for other in own)].count(entry.name) > 1:
            message = (
                f"expected detectors of different names, got {entry.name!r} more than once; rename "
                "the function"
            )
            raise InputError(message)
        _ = entry.function
    if not names and not own:
        message = "expected at least one detector, got none; name one"
        raise InputError(message)
    return [*(known[name] for name in names), *own]
