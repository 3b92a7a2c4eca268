"""What stands in a lock file: JSON, two blanks deep, in the order in which foreign gateways write their part of it.

Encoding happens with every write lease. So the lines that are the same for the life of a process are prepared once, and
so is the second of `createdAt`; the rest is put in between. A general encoder with an indent takes ten times as long.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec

from ..checks import LARGEST_IDENTITY
from ..process import Identity, me, shifts

MAX_HOLD_MS = 30 * 60 * 1000
"""Past this age a lock file is taken for a left-over by all, whatever it says itself."""

_LONGEST_LANE = 3000  # bytes with escapes: readers take no more than 4096 for the whole
_CUT_LANE = 480  # characters, of 6 bytes each at worst
_LONGEST_RUN_ID = 400  # as above
_CUT_RUN_ID = 60
_LARGEST_PID = (1 << 31) - 1

_encoder = msgspec.json.Encoder()
_prepared: tuple[Identity, str, str] | None = None


class Terms(NamedTuple):
    """What a lock file says besides the identity of the process."""

    lane: str | None
    run_id: int | str | None
    epoch: int
    max_hold_ms: int
    """How long it may be held at most, grace included; written as at least 1 and at most `MAX_HOLD_MS`."""


@dataclass(frozen=True, slots=True)
class Payload:
    """What a lock file says. A field is `None` when it is missing, or is not what it should be."""

    pid: int | None = None
    """1 to 2³¹ - 1."""
    created_at: float | None = None
    """Seconds of the writer's wall clock."""
    max_hold_ms: int | None = None
    """1 and more."""
    starttime: int | None = None
    host: str | None = None
    boot_id: str | None = None
    instance: str | None = None
    """Written by lanes only: foreign gateways have no such thing."""
    lane: str | None = None
    run_id: int | str | None = None
    epoch: int | None = None


def encode(terms: Terms, created_at: float) -> bytes:
    """The content of a lock file of this process; 4096 bytes at most, so names of excessive length are cut.

    Args:
        created_at: now, in seconds of the wall clock; written in milliseconds, rounded down.
    """
    lane, run_id, epoch, max_hold_ms = terms
    before, between = _lines_of(me())
    run = f"{run_id:d}" if isinstance(run_id, int) else _quoted(run_id, _LONGEST_RUN_ID, _CUT_RUN_ID)
    seconds, ms = divmod(int(created_at * 1000), 1000)
    return (
        f"{before}{_in_utc(seconds)}.{ms:03d}Z"
        f'",\n  "maxHoldMs": {min(max(max_hold_ms, 1), MAX_HOLD_MS)}{between}{_quoted(lane)}'
        f',\n  "runId": {run},\n  "epoch": {epoch}\n}}\n'
    ).encode()


def parse(data: bytes) -> Payload | None:
    """What a lock file says; `None` when it is empty or no JSON object. Never raises, whatever is in it."""
    # The standard library's parser, because it takes whatever JavaScript writes, halves of surrogate pairs included:
    # a live owner must not pass for unreadable. Imported here, because most processes never find a lock file.
    import json  # noqa: PLC0415 -- see above

    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    pid = _integer(fields.get("pid"), 1)
    return Payload(
        pid=None if pid is None or pid > _LARGEST_PID else pid,
        created_at=_instant(fields.get("createdAt")),
        max_hold_ms=_integer(fields.get("maxHoldMs"), 1),
        starttime=_integer(fields.get("starttime"), 0),
        host=_text(fields.get("host")),
        boot_id=_text(fields.get("bootId")),
        instance=_text(fields.get("instance")),
        lane=_text(fields.get("lane")),
        run_id=_identity(fields.get("runId")),
        epoch=_integer(fields.get("epoch")),
    )


def _lines_of(process: Identity) -> tuple[str, str]:
    """The text before `createdAt`, and that between `maxHoldMs` and the lane."""
    global _prepared  # noqa: PLW0603 -- once per process is the point
    # Compared by identity: a forked child has another one, and must not write its parent's name.
    if _prepared is None or _prepared[0] is not process:
        # In a time namespace of its own it is not what readers elsewhere find, and they would take this for a dead
        # process.
        told = process.starttime is not None and not shifts().boottime
        starttime = f',\n  "starttime": {process.starttime}' if told else ""
        between = (
            f'{starttime},\n  "host": {_quoted(process.host)},\n  "bootId": {_quoted(process.boot_id)}'
            f',\n  "instance": {_quoted(process.instance)},\n  "lane": '
        )
        _prepared = process, f'{{\n  "pid": {process.pid},\n  "createdAt": "', between
    return _prepared[1:]


@lru_cache(1)  # most lock files of a second are written by the same process
def _in_utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _quoted(text: str | None, longest: int = _LONGEST_LANE, cut: int = _CUT_LANE) -> str:
    if text is None:
        return "null"
    try:
        quoted = _encoder.encode(str.__str__(text)).decode()  # the encoder takes no subclasses
    except UnicodeEncodeError:  # half of a surrogate pair
        return _quoted(text.encode(errors="replace").decode(), longest, cut)
    if len(quoted) > longest // 4 and len(quoted.encode()) > longest:
        return _quoted(text[:cut], longest, cut)
    return quoted


def _integer(value: object, least: int | None = None) -> int | None:
    # Exactly an integer: `true` is one to Python, and 4711.0 is none to foreign readers.
    if type(value) is not int or (least is not None and value < least):
        return None
    return value


def _identity(value: object) -> int | str | None:
    number = _integer(value)
    return _text(value) if number is None or abs(number) > LARGEST_IDENTITY else number


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _instant(value: object) -> float | None:
    from datetime import UTC, datetime  # noqa: PLC0415 -- as above

    if not isinstance(value, str):
        return None
    try:
        instant = datetime.fromisoformat(value)
        if instant.tzinfo is None:
            instant = instant.replace(tzinfo=UTC)
        return (instant - datetime.fromtimestamp(0, UTC)).total_seconds()
    except ValueError:
        return None
