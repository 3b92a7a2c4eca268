"""From what a page shows to its text: Jinja2 templates, always escaped.

Each page is made of parts that can be sent alone: blocks whose names begin with `part_`, in elements with these ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..status import words
from .visible import visible

PART = "part_"
_BASE = "layout.html"
STATIC = {"lanes.css": "text/css; charset=utf-8", "lanes.js": "text/javascript; charset=utf-8"}


def page(template: str, values: Mapping[str, Any]) -> str:
    """A whole page. Not on the event loop's thread: it reads files, the first time."""
    return _environment().get_template(template).render(values)


def parts(template: str, values: Mapping[str, Any]) -> dict[str, str]:
    """The parts of a page, by id; those of the layout too. Not on the event loop's thread."""
    found: dict[str, str] = {}
    for name in (_BASE, template):
        one = _environment().get_template(name)
        context = one.new_context(dict(values))
        found |= {key: "".join(block(context)) for key, block in one.blocks.items() if key.startswith(PART)}
    return found


@cache
def static(name: str) -> bytes:
    """A file that pages use. Not on the event loop's thread.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in STATIC:
        raise KeyError(name)
    return resources.files(__package__).joinpath("static", name).read_bytes()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "lines": _lines,
        "quoted": partial(quote, safe=""),
        "lasting": words.lasting,
    }
    made.globals["words"] = words
    made.globals["version"] = {name: hashlib.sha256(static(name)).hexdigest()[:8] for name in STATIC}
    made.globals["m"] = made.get_template("macros.html").module
    return made


def _lines(text: str) -> Markup:
    """A text whose line ends are kept."""
    return Markup.escape(visible(text, lines=True))


def _clean(value: Any) -> Any:
    """What a template prints of a value. Escaping comes after it."""
    if isinstance(value, Markup):
        return value
    return visible(value) if isinstance(value, str) else value
