"""Hash of everything that a computation depends on: inputs, code and libraries."""

import ast
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

__all__ = ["code_of", "identity_of"]

_COMPUTING = ("torch", "numpy", "scipy", "scikit-learn", "pillow")
"""Libraries whose versions are part of the hash."""


def identity_of(facts: object, modules: Iterable[str]) -> str:
    """The SHA-256 of facts, of the code that computes with them, and of the libraries' versions.

    The code is that of the modules and of everything they import, if it belongs to leery or the
    user; comments and docstrings are left out. Of an installed package, the version counts.

    Args:
        facts: JSON-serialisable values.
        modules: names of modules.

    Returns:
        64 hexadecimal digits.
    """
    modules = frozenset(modules)
    versions = {name: version(name) for name in {*_COMPUTING, *_distributions(modules)}}
    content = json.dumps([facts, _code(modules), versions], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


@cache
def _distributions(modules: frozenset[str]) -> frozenset[str]:
    """The installed distributions that hold modules, other than leery."""
    top = {name.partition(".")[0] for name in modules} - {"leery", "torch"}
    if not top - sys.stdlib_module_names:
        return frozenset()
    # Reads what every installed distribution says of itself.
    known = packages_distributions()
    return frozenset(name for package in top for name in known.get(package, ()))


@cache
def _code(modules: frozenset[str]) -> str:
    """The SHA-256 of the sources of modules and of what they import."""
    sources: dict[str, bytes] = {}
    # In a process that multiprocessing has started, the user's script has another name.
    waiting = ["__main__" if name == "__mp_main__" else name for name in modules]
    while waiting:
        name = waiting.pop()
        path = None if name in sources else _own_source(name)
        if path is not None:
            sources[name] = path.read_bytes()
            waiting += _imported(sources[name], name, package=path.name == "__init__.py")
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(f"{name}\0{code_of(source)}\0".encode())
    return digest.hexdigest()


def code_of(source: str | bytes) -> str:
    """What a source does: its syntax tree, without comments, layout and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [part for part in node.body if not _is_text(part)]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    """True for a docstring, or another string that stands alone."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _own_source(name: str) -> Path | None:
    """The source file of a module of leery or the user; None for any other module.

    No module is imported for this.
    """
    if name == "leery" or name.startswith("leery."):
        return _source_in(Path(__file__).parent.parent.parent, name)
    loaded = getattr(sys.modules.get(name), "__file__", None)
    # A module that a function imports may not be loaded yet.
    places = (_source_in(Path(place), name) for place in sys.path)
    path = Path(loaded) if loaded else next(filter(None, places), None)
    if path is None or path.suffix != ".py":
        return None
    path = path.resolve()
    return None if any(path.is_relative_to(place) for place in _installed()) else path


def _source_in(folder: Path, name: str) -> Path | None:
    """The source file of a module below a folder of the module search path."""
    place = folder.joinpath(*name.split("."))
    found = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in found if path.is_file()), None)


@cache
def _installed() -> tuple[Path, ...]:
    """The folders of installed packages and of the standard library."""
    paths = sysconfig.get_paths()
    return tuple(Path(paths[name]).resolve() for name in ("stdlib", "purelib", "platlib"))


def _imported(source: bytes, name: str, *, package: bool) -> Iterator[str]:
    """Names of the modules that a source imports, and names that may be their submodules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: None if package and node.level == 1 else -1]
                above = above[: len(above) - max(0, node.level - 1 - int(package))]
                base = ".".join([*above, *([base] if base else [])])
            parts = [f"{base}.{alias.name}" for alias in node.names]
            # The package itself imports everything, but only when a name of its own is used.
            if base != "leery" or not all(map(_own_source, parts)):
                yield base
            yield from parts
