"""NotFittedError, in a module of its own because importing scikit-learn takes a second."""

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

from leery.errors import LeeryError

__all__ = ["NotFittedError"]


class NotFittedError(LeeryError, _SklearnNotFittedError):  # type: ignore[misc]  # untyped
    """An object was used before it was fitted or calibrated."""


NotFittedError.__module__ = "leery.errors"
