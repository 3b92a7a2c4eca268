"""From a session's key to its file. No key leads out of the root."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from locks import InvalidSession
from locks.lowlevel import HEADER_KEY, encode_header, in_full

from .errors import InvalidLane

MAX_KEY_BYTES = 1024
_SESSION_PREFIX = "session:"
_REMEMBERED = 256
_UNREADABLE = re.compile(r"[^a-z0-9]+")
_OWN_NAME = re.compile(r"(?:[a-z0-9-]+-)?[0-9a-f]{16}\.jsonl")


def check_key(key: Any) -> str:
    """A session key: 1 byte to 1 KiB of UTF-8 without NUL, control characters or lone surrogates.

    Equal keys are equal code points: nothing is normalised.

    Raises:
        InvalidSession: before anything is opened or created.
    """
    allowed = "allowed: 1 byte to 1 KiB of UTF-8 without control characters"
    if not isinstance(key, str):
        raise InvalidSession(f"session: {type(key).__name__} is no text; {allowed}")
    if not 0 < len(key) <= MAX_KEY_BYTES:
        raise InvalidSession(f"session: {key[:40]!r} has {len(key)} characters; {allowed}")
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidSession(f"session: {key!r:.80} has a lone surrogate; {allowed}") from None
    if size > MAX_KEY_BYTES:
        raise InvalidSession(f"session: {key!r:.80} has {size} bytes; {allowed}")
    if any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in key):
        raise InvalidSession(f"session: {key!r:.80} has a control character; {allowed}")
    return key


class Layout(Protocol):
    """From a session's key to its place, on disk or in a store."""

    @property
    def root(self) -> str | os.PathLike[str]:
        """The directory, or the name of the store."""

    @property
    def is_own(self) -> bool:
        """Whether files have our own names and header, which no other program gives its sessions."""

    def file_of(self, key: str) -> str:
        """The place of a session's transcript."""

    def header_of(self, key: str) -> Mapping[str, Any] | None:
        """The first line of a new transcript."""

    def first_line_of(self, key: str, path: str) -> bytes | None:
        """The same, as it stands there."""


@dataclass(frozen=True, slots=True)
class SessionLayout:
    """Where sessions live.

    Args:
        root: the directory, as it is called when the layout is made; paths outside it are refused.
        path: from a key to a path below `root`; by default `<readable part>-<16 hex digits of SHA-256>.jsonl`.
        header: from a key to a file's first line, which is no record; by default one that names the key, and none
            where `path` is given. It also says what counts as the header of a file that others made: a first line that
            has all fields of this one, and the value of one of them. Any other first line is a record; if it may be
            another program's header, for it has a value in common with this one, or `"type": "session"`, it stays the
            first line of the file all the same when a lease replaces its records.
    """

    root: str | os.PathLike[str]
    path: Callable[[str], str | os.PathLike[str]] | None = None
    header: Callable[[str], Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        root: object = os.fspath(self.root)
        if not isinstance(root, str):
            raise InvalidSession(f"sessions: {root!r:.80} names no directory; allowed: a str or a PathLike of one")
        if root and not os.path.isabs(root):
            full = in_full("sessions", root)
            object.__setattr__(self, "root", Path(full) if isinstance(self.root, Path) else full)

    def file_of(self, key: str) -> str:
        """The transcript of a session, by the key alone: touches no disk but where `path` is given.

        Raises:
            InvalidSession: the key is not allowed, or leads outside the root.
        """
        root = os.fspath(self.root)
        if self.path is None:
            return _own_file(root, key if type(key) is str else str.__str__(check_key(key)))
        check_key(key)
        try:
            given = os.fspath(self.path(key))
            found = os.path.realpath(os.path.join(root, given))
        except (TypeError, ValueError) as error:
            raise InvalidSession(
                f"session: {key!r:.80} leads to no path ({error}); allowed: files below {root}"
            ) from error
        if not Path(found).is_relative_to(os.path.realpath(root)) or found == os.path.realpath(root):
            raise InvalidSession(f"session: {key!r:.80} leads to {given!r}; allowed: files below {root}")
        return found

    @property
    def is_own(self) -> bool:
        """Whether files have our own names and header, which no other program gives its sessions."""
        return self.path is None and self.header is None

    def header_of(self, key: str) -> Mapping[str, Any] | None:
        """The first line of a new file."""
        if self.header is not None:
            return self.header(key)
        return _default_header(key) if self.path is None else None

    def first_line_of(self, key: str, path: str) -> bytes | None:
        """The same as it stands in the file, which `path` names in errors.

        Raises:
            TranscriptError: what `header` returns cannot be written.
        """
        if self.header is None and self.path is None:
            return _default_line(key)
        header = self.header_of(key)
        return None if header is None else encode_header(header, path)


@functools.lru_cache(_REMEMBERED)  # each message of a session needs it
def _own_file(root: str, key: str) -> str:
    """The file of a session that has our own name."""
    import hashlib  # noqa: PLC0415 -- slow to import, and most programs that only import this name no file

    check_key(key)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    readable = _UNREADABLE.sub("-", key.lower()[:120]).strip("-")[:60].strip("-")
    return os.path.join(root, f"{readable}-{digest}.jsonl" if readable else f"{digest}.jsonl")


def is_own_name(name: str) -> bool:
    """Whether a file has a name that we give to sessions where no `path` is given."""
    return _OWN_NAME.fullmatch(name) is not None


def _default_header(key: str) -> Mapping[str, Any]:
    return {HEADER_KEY: key, "format": 1}


@functools.lru_cache(_REMEMBERED)  # each message of a session needs it
def _default_line(key: str) -> bytes:
    return encode_header(_default_header(key), key)


def session_of_lane(lane: str, session: str | None) -> str | None:
    """The session that a run conducts: the one it names; a `session:<key>` lane's runs conduct `<key>`.

    Raises:
        InvalidLane: a session lane's run names another session.
    """
    if not lane.startswith(_SESSION_PREFIX):
        return session
    key = lane[len(_SESSION_PREFIX) :]
    if session is not None and session != key:
        raise InvalidLane(
            f"session: {session!r:.80} is not the one of lane {lane!r:.80}; allowed: {key!r:.80}, or none"
        )
    return key
