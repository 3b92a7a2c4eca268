"""Messages that come by the clock, once for each instant, over restarts too.

Each instant's message is kept under a `dedupe` key made of the schedule's name and the instant, in the transaction that
notes the instant as served: a crash in between sends nothing twice and forgets nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import anyio
from msgspec.structs import replace

from lanes import Draining, InvalidLane, LaneError, LaneFull
from lanes.checks import choice, seconds, shown
from lanes.message import message_of
from lanes.spec_table import SpecTable
from locks import process
from locks._events import described, log

from .door import Door, as_json, new_row
from .errors import InboxDown

Missed = Literal["skip", "once", "all"]
_LOOK_S = 30.0
"""How often the wall clock is looked at at least: it may be set."""
_LATE_S = 60.0
"""A message that is later than that was missed: the machine has slept, say, or the supervisor has drained."""
_AGAIN_S = 1.0
"""How often a supervisor that drains, or a full lane, is looked at again."""
_WINDOWS_S = (3600.0, 86_400.0, 40 * 86_400.0, 3_700 * 86_400.0)
"""How far back missed instants are looked for, one after the other: a line of cron is only read forwards."""
MOST_MISSED = 1_000
"""Instants that `missed="all"` sends after one absence; older ones are skipped."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A message that comes by the clock.

    Args:
        lane: as for `Supervisor.accept`, like `message` and `session`.
        name: what it is called over restarts; by default lane and session. A schedule of another name is another one.
        every: seconds between two messages, counted from the epoch, so that a restart does not shift them.
        cron: instead, a line of cron: minute, hour, day of the month, month, day of the week. Needs the extra `cron`.
        timezone: of `cron`, such as `Europe/Berlin`.
        missed: what becomes of instants at which no process ran, or none could send for a minute (the machine slept):
            `skip` them; send `once` for all of them; send `all`, each when its lane has room.
        jitter: seconds; each message comes by up to so much later, each instant by an amount of its own.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    lane: str
    message: Any
    _: KW_ONLY
    every: float | timedelta | None = None
    cron: str | None = None
    timezone: str = "UTC"
    missed: Missed = "skip"
    jitter: float = 0.0
    session: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        where = f"schedule {shown(self.called)}, "
        if (self.every is None) == (self.cron is None):
            raise InvalidLane(f"{where}every, cron: {'both' if self.every else 'neither'} given; allowed: one of them")
        if self.every is not None:
            self._every_s(where)
        choice(where + "missed", self.missed, get_args(Missed))
        seconds(where + "jitter", self.jitter, zero=True)
        if self.cron is not None:
            next(self.after(process.wall()))

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or (self.lane if self.session is None else f"{self.lane} {self.session}")

    def after(self, instant: float) -> Iterator[float]:
        """The instants after one, in seconds of the wall clock.

        Raises:
            InvalidLane: `cron` is no line of cron, or never fires.
        """
        if self.every is not None:
            every_s = self._every_s("")
            first = math.floor(instant / every_s) + 1
            return (n * every_s for n in _count(first))
        return self._cron_after(instant)

    def fires_at(self, instant: float) -> float:
        """When the message of an instant comes: later by its share of the jitter, the same in each process."""
        if not self.jitter:
            return instant
        digest = hashlib.blake2b(f"{self.called} {instant:.3f}".encode(), digest_size=8).digest()
        return instant + self.jitter * int.from_bytes(digest, "big") / 2**64

    def _every_s(self, where: str) -> float:
        given = self.every.total_seconds() if isinstance(self.every, timedelta) else self.every
        return seconds(where + "every", given)

    def _cron_after(self, instant: float) -> Iterator[float]:
        where = f"schedule {shown(self.called)}, cron: {shown(self.cron)}"
        try:
            from cronsim import CronSim, CronSimError  # noqa: PLC0415 -- the extra `cron`
        except ImportError as error:
            raise InvalidLane(f"{where} needs the library cronsim: pip install session-lanes[cron]") from error
        began = datetime.fromtimestamp(instant, self._zone(where))
        try:
            found = CronSim(str(self.cron), began)
            first = next(found)
        except CronSimError as error:
            raise InvalidLane(
                f"{where} is no line of cron ({error}); allowed: five fields, such as `0 9 * * 1`"
            ) from error
        except StopIteration:
            raise InvalidLane(f"{where} never fires; allowed: a line that does") from None
        return _instants(first, found)

    def _zone(self, where: str) -> tzinfo:
        try:
            return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
            raise InvalidLane(
                f"{where}, timezone: {shown(self.timezone)} is unknown; allowed: a name such as 'Europe/Berlin'"
            ) from error


class Schedules:
    """Sends what schedules say. On the event loop's thread."""

    def __init__(self, specs: SpecTable, door: Door, schedules: Sequence[Schedule]) -> None:
        self._door, self._store, self._schedules = door, door.store, schedules
        seen = set[str]()
        for schedule in schedules:
            if schedule.called in seen:
                raise InvalidLane(
                    f"schedules: {schedule.called!r} is given twice; allowed: a `name` of its own for each"
                )
            seen.add(schedule.called)
            message = message_of(schedule.message)
            _ = as_json("message", message.body), as_json("route", message.route)
            if specs.find(schedule.lane).handler is None:
                raise InvalidLane(f"schedule {schedule.called!r}: lane {schedule.lane!r} has no handler")

    async def serve(self) -> None:
        """Send each message at its instant, until cancelled."""
        if not self._schedules:
            return
        served = await self._begin()
        while True:
            soonest = math.inf
            for schedule in self._schedules:
                try:
                    soonest = min(soonest, await self._send_due(schedule, served))
                except Draining:  # for a restart in the process, after which it comes, or for good
                    soonest = process.wall() + _AGAIN_S
            await anyio.sleep(min(_LOOK_S, max(0.0, soonest - process.wall())))

    async def _begin(self) -> dict[str, float]:
        """Up to which instant each schedule is served; from now on, where that is not known, or where it skips."""
        now, found = process.wall(), dict[str, float]()
        for schedule in self._schedules:
            kept = await self._store.served(schedule.called)
            if kept is None:
                self._store.serve(schedule.called, now)
            found[schedule.called] = now if kept is None else _after_gap(schedule, kept, now)
        return found

    async def _send_due(self, schedule: Schedule, served: dict[str, float]) -> float:
        """Send what is due, and note up to which instant that is; returns when the next message is.

        Raises:
            Draining: the supervisor takes no work now; what was not sent is due still.
        """
        name, now = schedule.called, process.wall()
        if schedule.fires_at(next(schedule.after(served[name]))) < now - _LATE_S:
            served[name] = _after_gap(schedule, served[name], now)
        for instant in schedule.after(served[name]):
            if (at := schedule.fires_at(instant)) > process.wall():
                return at
            try:
                await self._send(schedule, instant)
            except (Draining, InboxDown):
                raise
            except LaneError as error:
                if schedule.missed == "all" and isinstance(error, LaneFull):
                    return process.wall() + _AGAIN_S  # no instant may be left out: it comes when there is room
                # This instant is lost, and the next one will come.
                log("schedule_not_sent", level="warning", schedule=name, error=described(error))
            served[name] = instant
        return math.inf

    async def _send(self, schedule: Schedule, instant: float) -> None:
        request, policy = self._door.request_for(schedule.lane, schedule.session, schedule.message)
        new = replace(new_row(request, when_busy=policy), dedupe=f"schedule:{schedule.called}:{instant:.3f}")
        self._door.refuse(request, policy)  # rather than to write down, and drop, each instant of a lane that is full
        served = partial(self._store.accept_served, schedule.called, instant)
        await self._door.keep(request, policy, new, served, waits=schedule.missed == "all")


def _instants(first: datetime, later: Iterator[datetime]) -> Iterator[float]:
    yield first.timestamp()
    for one in later:
        yield one.timestamp()


def _count(n: int) -> Iterator[int]:
    while True:
        yield n
        n += 1


def _after_gap(schedule: Schedule, served: float, now: float) -> float:
    """Up to which instant a schedule counts as served, when nothing could be sent for some time."""
    if served >= now:
        return served
    # Not those that are yet to come, by their share of the jitter.
    missed = [instant for instant in _missed(schedule, served, now) if schedule.fires_at(instant) <= now]
    if not missed:
        return served
    sent = missed if schedule.missed == "all" else missed[-1:] if schedule.missed == "once" else []
    return math.nextafter(sent[0], -math.inf) if sent else missed[-1]


def _missed(schedule: Schedule, after: float, now: float) -> list[float]:
    """The instants that were missed, but the oldest of more than `MOST_MISSED`."""
    found = deque[float](maxlen=MOST_MISSED)
    for window_s in _WINDOWS_S:
        since = max(after, now - window_s)
        found.clear()
        count = 0
        for instant in schedule.after(since):
            if instant > now:
                break
            found.append(instant)
            count += 1
        if since == after or count >= MOST_MISSED:
            break
    return list(found)
