"""Exceptions and warnings that leery raises on purpose.

Every message says in one sentence what was expected, what was given and what to do. The tree::

    LeeryError
    ├── InputError (ValueError)            an argument of a call
    │   ├── NoDropoutError                 a model that has no dropout to sample
    │   ├── UnknownLayerError              a layer name the model does not have
    │   └── WrongModelError                a model that a detector was not fitted on
    ├── NotFittedError (sklearn's)         used before it was fitted or calibrated
    ├── UnsupportedModelError              a model that leery cannot run
    ├── DetectorFileError (ValueError)     a detector file that cannot be read
    ├── StudyFileError (ValueError)        a study's file that is missing or damaged
    ├── MachineError (RuntimeError)        too little memory, no more files, a failed GPU ...
    ├── DataError (OSError)                a dataset that cannot be obtained
    │   └── CorruptDataError               ... or whose bytes are not the published ones
    └── OutputError (OSError)              a folder or file that cannot be written

A LeeryWarning (UserWarning) reports a request that is carried out but is likely to be a mistake.

Each also subclasses the usual Python (or scikit-learn) type, so that code that does not know leery
can catch it.
"""

import errno
import re
import sys
import textwrap
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from leery._not_fitted import NotFittedError

__all__ = [
    "CorruptDataError",
    "DataError",
    "DetectorFileError",
    "InputError",
    "LeeryError",
    "LeeryWarning",
    "MachineError",
    "NoDropoutError",
    "NotFittedError",
    "OutputError",
    "StudyFileError",
    "UnknownLayerError",
    "UnsupportedModelError",
    "WrongModelError",
]


def __getattr__(name: str) -> type[Exception]:
    """Import :class:`NotFittedError`, which needs scikit-learn, at its first use."""
    if name == "NotFittedError":
        from leery._not_fitted import NotFittedError  # noqa: PLC0415 - that takes a second

        return NotFittedError
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    """All public names, including those that are not imported yet."""
    return sorted({*globals(), *__all__})


class LeeryError(Exception):
    """Root of every exception that leery raises on purpose."""


class LeeryWarning(UserWarning):
    """A request is carried out but is likely to be a mistake."""


def warn(message: str) -> None:
    """Give a :class:`LeeryWarning` that points at the caller's line outside leery."""
    level, frame = 1, sys._getframe()  # noqa: SLF001 - warnings finds frames in the same way
    while frame.f_back is not None and f"{frame.f_globals.get('__name__')}.".startswith("leery."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, LeeryWarning, stacklevel=level)


class InputError(LeeryError, ValueError):
    """An argument has the wrong type, shape, range or value."""


class NoDropoutError(InputError):
    """Monte-Carlo dropout was requested for a model without an active dropout layer."""


class UnknownLayerError(InputError):
    """A layer was named that the model does not have."""


class WrongModelError(InputError):
    """The classifier is not the one that the detector was fitted on."""


class UnsupportedModelError(LeeryError, RuntimeError):
    """The model does not return logits, or does something that leery cannot run."""


class DetectorFileError(LeeryError, ValueError):
    """A detector file is missing, damaged, of another format version or not a detector file."""


class StudyFileError(LeeryError, ValueError):
    """A file of a study is missing, damaged or not the one that the study wrote."""


class MachineError(LeeryError, RuntimeError):
    """The machine, not what it was given, keeps a computation from going on."""


class DataError(LeeryError, OSError):
    """No source provides the data set."""


class CorruptDataError(DataError):
    """A data file's bytes are not the published ones."""


class OutputError(LeeryError, OSError):
    """An output file or folder cannot be written."""


def raise_machine_fault(error: Exception) -> None:
    """Raise if an error of the user's code comes from the machine, not from what it was given.

    Such an error may be temporary, so it must not decide how, or whether, an input is scored.

    Raises:
        MachineError: when it does.
        MemoryError, torch.OutOfMemoryError: the error itself, if memory ran out.
    """
    fault = machine_fault(error)
    if fault is not None:
        if fault is error or _is_out_of_memory(error):
            raise error
        raise fault from error


def machine_fault(error: BaseException) -> MachineError | None:
    """What to tell the user if an error comes from the machine, else None.

    An OSError counts if it has an errno, or if its ``reason`` is an OSError, as in urllib's error
    for a failed download. Others come from libraries and do not count, except ConnectionError and
    TimeoutError.
    """
    if isinstance(error, MachineError):
        return error
    system = isinstance(error, (ConnectionError, TimeoutError)) or (
        isinstance(error, OSError)
        and (error.errno is not None or isinstance(getattr(error, "reason", None), OSError))
    )
    resource = isinstance(error, RuntimeError) and _RESOURCES.search(str(error))
    return machine_error(brief(error)) if system or resource or _is_out_of_memory(error) else None


def machine_error(
    got: str, expected: str = "this machine to carry out the computation"
) -> MachineError:
    """The error for a computation that the machine keeps from going on."""
    return MachineError(
        f"expected {expected}, got {got}; mend that, then run the command again, with --resume if "
        "it has that option"
    )


def names_a_wrong_file(error: BaseException) -> bool:
    """True if an error recurs whenever the same path is used, such as that for a missing file."""
    return isinstance(error, OSError) and error.errno in _OF_THE_FILE


_OF_THE_FILE = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
    }
)
"""Errors that recur whenever the same path is used; others, such as a lost network, may pass."""


def _is_out_of_memory(error: BaseException) -> bool:
    # torch's error by its name, since importing torch takes a second.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


_RESOURCES = re.compile(
    r"\bCU(BLAS|DNN|FFT|SOLVER|SPARSE)_|(?i:\b(CUDA|HIP|cuDNN|NCCL) (driver )?error|"
    r"\bout of memory|allocate memory|bad_alloc|start new thread|no CUDA GPUs are available|"
    r"unable to find a valid cuDNN|too many open files|resource temporarily unavailable|"
    r"no space left on device)"
)
"""Texts of errors that mean that the machine lacks something, or that its GPU has failed."""


def brief(error: BaseException) -> str:
    """An exception's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {textwrap.shorten(lines[0], 200, placeholder=' ...')}"


def listed(names: Iterable[str]) -> str:
    """Names from an untrusted file as one printable line."""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names)
    return textwrap.shorten(shown, 200, placeholder=" ...") or "none"
