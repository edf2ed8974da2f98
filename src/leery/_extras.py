"""Imports of libraries that only some users install."""

import importlib
from types import ModuleType

from leery.errors import InputError

__all__ = ["imported"]

_PACKAGES = {"art": "adversarial-robustness-toolbox"}
"""Packages that are called otherwise than their module."""


def imported(module: str, extra: str) -> ModuleType:
    """Import a module of an extra.

    Raises:
        InputError: when it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        message = (
            f"expected {package}, which is not installed; run pip install '.[{extra}]' in a copy "
            "of leery's repository"
        )
        raise InputError(message) from error
