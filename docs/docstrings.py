"""Turns the docstrings' Sphinx roles and formulas into what the documentation site shows.

A griffe extension, named in mkdocs.yml: roles such as ``:class:`x``` become code, ``.. math::``
becomes MathML, which browsers draw without a script.
"""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:class|meth|func|data):`~?([^`]+)`")
_MATH = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *))*)", re.MULTILINE)


def _formula(found: re.Match[str]) -> str:
    margin, body = found.groups()
    tex = " ".join(textwrap.dedent(body).split())
    return f"{margin}{convert(tex, display='block')}\n"


def readable(text: str) -> str:
    """A docstring's text without Sphinx's markup."""
    return _MATH.sub(_formula, _ROLE.sub(r"`\1`", text))


class Readable(griffe.Extension):
    """Rewrites every docstring as it is collected."""

    def on_instance(self, *, obj: griffe.Object, **_kwargs: Any) -> None:  # noqa: ANN401
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = readable(obj.docstring.value)
