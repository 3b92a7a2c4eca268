"""Checks what a program is started with: the command, the directory and the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any


def words(command: Any) -> tuple[str, ...]:
    """The program and its arguments, as text.

    Raises:
        ValueError: a word is no text, or there is no program.
    """
    if not isinstance(command, Sequence) or isinstance(command, (str, bytes, bytearray, memoryview)) or not command:
        raise _refused("command", repr(command), "the program and its arguments, such as ['git', 'status']")
    taken = tuple(text(f"command[{number}]", word) for number, word in enumerate(command))
    if not taken[0]:
        raise _refused("command[0]", "''", "the name or path of a program")
    return taken


def text(field: str, value: Any) -> str:
    """A text that the system takes.

    Raises:
        ValueError: it is none.
    """
    taken = _text(value)
    if taken is None:
        raise _refused(field, repr(value), "a str or PathLike of one, without NUL or lone surrogates")
    return taken


def environment(env: Any) -> dict[str, str]:
    """The variables of an environment.

    Raises:
        ValueError: a name or value cannot be that of a variable. No value is shown: environments hold secrets.
    """
    if not isinstance(env, Mapping):
        raise _refused("env", f"a {type(env).__name__}", "a mapping of str to str, or None")
    for name, value in env.items():
        if not isinstance(name, str) or not _text(name) or "=" in name:
            raise _refused("env", f"the name {name!r:.60}", "a non-empty str without '=', NUL or lone surrogates")
        if not isinstance(value, str) or _text(value) is None:
            raise _refused(f"env[{name!r:.60}]", f"that {type(value).__name__}", "a str without NUL or lone surrogates")
    return dict(env)


def check_options(given: Any, output_limit: Any, check: Any) -> None:
    """Check the other arguments of `run_process`.

    Raises:
        ValueError: an argument is not allowed.
    """
    if given is not None and not isinstance(given, bytes):
        raise _refused("input", f"a {type(given).__name__}", "bytes or None")
    if not isinstance(output_limit, int) or isinstance(output_limit, bool) or output_limit < 0:
        raise _refused("output_limit", repr(output_limit), "a whole number of bytes, 0 and more")
    if not isinstance(check, bool):
        raise _refused("check", repr(check), "True, False")


def _refused(field: str, shown: str, allowed: str) -> ValueError:
    return ValueError(f"{field}: {shown:.80} is not allowed; allowed: {allowed}")


def _text(value: Any) -> str | None:
    """What the system takes for a text, or `None`."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str) or "\0" in given:
        return None
    try:
        os.fsencode(given)
    except UnicodeEncodeError:
        return None  # a lone surrogate
    return given
