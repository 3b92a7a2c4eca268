"""Which sessions there are in a directory, and in those below it.

Symbolic links to directories are reported and not gone through, and a directory that is reached twice, as by a bind
mount, is looked into once: so every walk ends, and no session is looked at twice. What cannot be listed is reported,
too; other file systems that are mounted below are looked into, and reported where locks exclude no other host there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from .. import _os
from .._os import FileId
from ..network import network_file_system
from .findings import Inspection, Kind
from .inspection import session_of

_FOR_A_HINT = 1000
"""Directories that are looked into only in order to say that there is something further down."""


@dataclass(frozen=True, slots=True)
class Place:
    """A session, or a directory that there is something to say about."""

    name: str
    """Relative to the directory that is searched."""
    told: Inspection | None = None
    """What there is to say, of a directory."""


def search(directory: str, *, recursive: bool, most: float = math.inf) -> Iterator[Place]:
    """All sessions of a directory, and those of which only something else is left; in order.

    Args:
        recursive: look into the directories below it, too.
        most: look into so many directories at most.

    Raises:
        OSError: it is no directory, or cannot be listed.
    """
    seen: set[FileId] = set()
    left = [""]
    while left and len(seen) < most:
        name = left.pop()
        path = os.path.join(directory, name) if name else directory
        try:
            there = _os.stat(path)
            if (there.st_dev, there.st_ino) in seen:
                continue
            seen.add((there.st_dev, there.st_ino))
            sessions, below, links = _listed(path)
        except OSError as error:
            if not name:
                raise
            if not isinstance(error, FileNotFoundError):  # else it has gone meanwhile
                yield _about(directory, name, Kind.UNREADABLE, f"it cannot be read: {error.strerror or error}", True)
            continue
        yield from (Place(os.path.join(name, session)) for session in sessions)
        if not recursive:
            return
        if name and (kind := network_file_system(path, there.st_dev)) is not None:
            yield _about(directory, name, Kind.NETWORK_FS, f"on {kind}, where locks exclude no other host", True)
        for link in links:
            text = "it is a symbolic link to a directory, and not gone through"
            yield _about(directory, os.path.join(name, link), Kind.SYMLINK, text, False)
        left += (os.path.join(name, one) for one in reversed(below))


def one_below(directory: str) -> str | None:
    """The name of a session that is not in a directory but further down; `None` if none is found soon."""
    try:
        places = search(directory, recursive=True, most=_FOR_A_HINT)
        return next((place.name for place in places if place.told is None and os.path.dirname(place.name)), None)
    except OSError:
        return None


def _listed(path: str) -> tuple[list[str], list[str], list[str]]:
    """The sessions, the directories, and the symbolic links to directories of a directory, each in order."""
    sessions: set[str] = set()
    below: list[str] = []
    links: list[str] = []
    with _os.scandir(path) as entries:
        for entry in entries:
            if (session := session_of(entry.name)) is not None:
                sessions.add(session)
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif entry.is_symlink() and session is None and _leads_to_directory(entry):
                links.append(entry.name)
    return sorted(sessions), sorted(below), sorted(links)


def _leads_to_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a loop, or nowhere


def _about(directory: str, name: str, kind: Kind, text: str, wrong: bool) -> Place:
    told = Inspection(os.path.join(directory, name), exists=False)
    told.say(kind, text, wrong=wrong)
    return Place(name, told)
