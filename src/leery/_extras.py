"""Import of optional dependencies."""

import importlib
from types import ModuleType

from leery.errors import InputError

__all__ = ["imported"]

_PACKAGES = {"art": "adversarial-robustness-toolbox"}
"""Package name of each module whose package has a different name."""


def imported(module: str, extra: str) -> ModuleType:
    """Import a module that an optional extra installs.

    Raises:
        InputError: when the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        message = (
            f"expected {package} to be installed, got no such package; run pip install "
            f"'.[{extra}]' in a clone of leery's repository"
        )
        raise InputError(message) from error
