"""The one error that needs scikit-learn, which takes a second to import."""

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

from leery.errors import LeeryError

__all__ = ["NotFittedError"]


class NotFittedError(LeeryError, _SklearnNotFittedError):  # type: ignore[misc]  # untyped
    """Something was used before it was fitted or calibrated."""


NotFittedError.__module__ = "leery.errors"
