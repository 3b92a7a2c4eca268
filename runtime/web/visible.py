"""Text of others on a page: what cannot be seen, or changes how the text around it is read, is made visible."""

from __future__ import annotations

import unicodedata

_NAMED = {0x7F: "\u2421"} | {code: chr(0x2400 + code) for code in range(0x20)}
_KEPT = " \n\t"


def visible(text: str, *, lines: bool = False) -> str:
    """A text without control characters, formatting marks (such as those that turn the direction) and surrogates.

    Args:
        lines: whether line ends and tabs stay, for what is shown as a block.
    """
    if text.isprintable():
        return text
    return "".join(_shown(c, lines) for c in text)


def _shown(c: str, lines: bool) -> str:
    if c.isprintable() or (lines and c in _KEPT):
        return c
    if (named := _NAMED.get(ord(c))) is not None:
        return named
    if unicodedata.category(c) == "Zs":
        return " "
    return f"\\u{{{ord(c):x}}}"
