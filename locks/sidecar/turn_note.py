"""The note `<file>.turn`: who conducts a session, for people and for error messages. It decides nothing.

So it may be missing, old or another program's, it may be overwritten in place, and no failure to write it is an error:
a session must not stop because a name could not be written down.
"""

from __future__ import annotations

import os
import stat

from .. import _os, process
from .._events import described, log
from ..errors import TranscriptError
from .payload import Payload, Terms, encode, parse
from .seen import see

_WRITE = (
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _os.O_NOFOLLOW | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC
) | _os.O_BINARY

_failed = False


def path_of(session_path: str) -> str:
    """The note of a session."""
    return session_path + ".turn"


def write(session_path: str, terms: Terms) -> bool:
    """Write down the holder of the turn of a session; returns whether that worked. Never raises."""
    path = path_of(session_path)
    try:
        fd = _os.open(path, _WRITE, 0o600)
        try:
            if not stat.S_ISREG(_os.fstat(fd).st_mode):
                raise OSError(f"{path} is no regular file")
            data = encode(terms, process.wall())
            if (length := _os.write(fd, data)) != len(data):
                raise OSError(f"only {length} of {len(data)} bytes were written")
        finally:
            _os.close(fd)
    except OSError as error:
        _note_failed(path, error)
        return False
    return True


def remove(session_path: str) -> None:
    """Remove the note, of any writer: called before the turn is given back. Never raises."""
    path = path_of(session_path)
    try:
        _os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _note_failed(path, error)


def read(session_path: str) -> Payload | None:
    """The holder of the turn according to the note; `None` when it says nothing. Never raises."""
    try:
        seen = see(path_of(session_path))
    except (OSError, TranscriptError):
        return None
    return None if seen is None else parse(seen.data)


def _note_failed(path: str, error: OSError) -> None:
    global _failed  # noqa: PLW0603 -- once per process is the point
    if not _failed:
        _failed = True
        log("turn_note_failed", level="warning", path=path, error=described(error))
