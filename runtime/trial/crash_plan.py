"""What `[crash]` in a scenario says, and which messages may go with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from lanes import LaneSpec

from .traffic import Behaviour, Line

_BEHAVIOURS: tuple[Behaviour, ...] = ("ok", "raise", "ask")


class InvalidCrash(Exception):
    """The table contradicts itself or the rest of the scenario."""


class CrashTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """That the scenario is a service with an inbox, and that its process is killed with -9 again and again."""

    kills: int = 10
    """How often."""
    reports: tuple[int, int] = (1, 100)
    """How many reports of a process come before it is killed, drawn anew for each: `[least, most]`. It reports each
    step, so it is in the middle of something then, however fast the machine is."""
    person: float = 0.5
    """Seconds until a person answers a question."""


def check_messages(lines: Sequence[Line], *, crashes: bool) -> None:
    """See that messages go with a crash; or, where there is none, that none of them asks a person.

    Raises:
        InvalidCrash: one does not.
    """
    for line in lines:
        if not crashes:
            if line.behave == "ask":
                raise InvalidCrash("behave: 'ask' needs an inbox; allowed: with [crash]")
            continue
        if line.behave not in _BEHAVIOURS:
            allowed = ", ".join(map(repr, _BEHAVIOURS))
            raise InvalidCrash(f"behave: {line.behave!r} is not allowed with [crash]; allowed: {allowed}")
        if line.again or line.dedupe is not None or not line.turn or line.when_busy is not None:
            raise InvalidCrash(
                "again, dedupe, turn, when_busy: not with [crash]: there, each message is queued, and sent again under "
                "a key until it is acknowledged"
            )
        if line.conducted is None:
            raise InvalidCrash(f"session: is missing for a message to lane {line.lane!r:.80}; [crash] needs one")


def check_table(table: CrashTable, lanes: Sequence[LaneSpec]) -> None:
    """See that a table can be used with the lanes that the scenario sends to.

    Raises:
        InvalidCrash: it cannot.
    """
    if table.kills < 1:
        raise InvalidCrash(f"crash.kills: {table.kills!r} is not allowed; allowed: a number from 1")
    least, most = table.reports
    if not 1 <= least <= most:
        raise InvalidCrash(f"crash.reports: {[least, most]} is not allowed; allowed: [least, most], from 1")
    if not 0 <= table.person < math.inf:
        raise InvalidCrash(f"crash.person: {table.person!r} is not allowed; allowed: seconds from 0")
    for spec in lanes:
        if spec.when_busy != "queue" or spec.debounce or spec.retry is not None:
            raise InvalidCrash(
                f"lane {spec.pattern!r}, when_busy, debounce, retry: not with [crash]: a run answers one message there"
            )
