"""Parts of a self-contained HTML page: style sheet, script and template environment."""

from importlib.resources import files

import jinja2

__all__ = ["page_environment", "page_resource"]


def page_environment() -> jinja2.Environment:
    """A Jinja environment that escapes values and raises on missing ones."""
    return jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def page_resource(name: str) -> str:
    """The style sheet ``page.css`` or the script ``page.js`` that every page embeds."""
    return (files("leery.reporting") / name).read_text(encoding="utf-8")
