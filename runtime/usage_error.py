"""An error of the user: one line, raised before anything is started. `runtime.cli.main` makes exit code 2 of it."""

from __future__ import annotations

_LONGEST = 300


class UsageError(Exception):
    """The user's input cannot be used. The message is one printable line: the field, its value, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Any text as one line that is safe to print."""
    clean = "".join(c if c.isprintable() else " " if c in "\n\t" else ascii(c)[1:-1] for c in text[: longest * 2])
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"
