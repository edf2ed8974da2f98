"""Parts of a self-contained HTML page: style sheet, script and template environment."""

from importlib.resources import files

import jinja2

__all__ = ["page_environment", "page_resource"]


def page_environment() -> jinja2.Environment:
    """A Jinja environment that escapes values and raises on missing ones.

    Templates can import ``sheet`` and ``figure`` from ``macros.html.jinja``.
    """
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(page_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_resource(name: str) -> str:
    """A file of this package: ``page.css``, ``page.js`` or ``macros.html.jinja``."""
    return (files("leery.reporting") / name).read_text(encoding="utf-8")
