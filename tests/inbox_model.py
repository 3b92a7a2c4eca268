"""An inbox store that keeps everything in dictionaries: what `InboxStore` means, without a disk and without SQL.

It is one of the stores of the conformance suite, and the model that the file is compared with. Data outlive the store:
the next one made of the same `Data` is the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from locks import process
from locks._loop import poster
from runtime.inbox.errors import InboxDown, ask_closed
from runtime.inbox.rows import Ask, AskedFor, Census, InboxRow, MessageState, NewRow, Taken, Traffic
from runtime.inbox.store import Report

_S = MessageState
MAY_END_AS: dict[MessageState, set[MessageState]] = {
    _S.DONE: {_S.STARTED, _S.WAITING},
    _S.WAITING: {_S.STARTED},
    _S.FAILED: {_S.ACCEPTED, _S.STARTED},
    _S.PARKED: {_S.ACCEPTED, _S.STARTED},
    _S.SUPERSEDED: {_S.ACCEPTED, _S.STARTED},
    _S.DROPPED: {_S.ACCEPTED},
    _S.CANCELLED: {_S.ACCEPTED, _S.STARTED, _S.WAITING, _S.PARKED, _S.UNKNOWN},
}
"""How a message may end, and from which states. Stated once more, so that a slip in the product's table is seen."""
STAYS = (_S.PARKED, _S.UNKNOWN, _S.WAITING)
"""Ended, and kept until a person decides."""


@dataclass
class Data:
    """What survives a process."""

    messages: dict[int, InboxRow] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    told: set[int] = field(default_factory=set)
    asks: dict[str, Ask] = field(default_factory=dict)
    asks_ended: dict[str, float] = field(default_factory=dict)
    served: dict[str, float] = field(default_factory=dict)
    last: int = 0


class MemoryInbox:
    """Keeps accepted messages in memory. See `InboxStore`."""

    def __init__(
        self, data: Data, post: Callable[[Callable[[], Any]], Any] | None = None, *, leaves_gaps: bool = False
    ) -> None:
        self.path, self._data, self._post = "memory", data, post
        self._leaves_gaps = leaves_gaps
        """Whether a message whose key is known uses an id up, as it does in SQLite."""
        self._changes = 0

    failure: BaseException | None = None

    @property
    def traffic(self) -> Traffic:
        return Traffic(commits=self._changes, changes=self._changes)

    async def open(self) -> None:
        self._post = poster()

    async def close(self) -> None:
        self._post = None

    def let_go(self) -> None:
        self._post = None

    def _tell(self, report: Report | None, result: Any, error: BaseException | None = None) -> None:
        if self._post is None:
            result, error = None, InboxDown("closed", path=self.path)
        if report is not None:
            told = report
            (self._post or (lambda call: call()))(lambda: told(result, error))

    def _set(self, message: int, **changes: Any) -> None:
        self._data.messages[message] = replace(self._data.messages[message], **changes)

    # Changes

    def accept(self, new: NewRow, replayed: int, report: Report) -> None:
        self._tell(report, None if self._post is None else self._accept(new, replayed))

    def _accept(self, new: NewRow, replayed: int) -> Taken:
        data = self._data
        if new.dedupe is not None:
            for row in data.messages.values():
                if (row.lane, row.session, row.dedupe) == (new.lane, new.session, new.dedupe):
                    data.last += self._leaves_gaps
                    return Taken(row.id, False, data.digests[row.id] == new.digest, False, row.state)
        data.last += 1
        behind = any(
            (row.state, row.session) == (_S.ACCEPTED, new.session)
            and (row.lane == new.lane or new.session is not None)
            and row.id > replayed
            for row in data.messages.values()
        )
        now = process.wall()
        state = _S.STARTED if new.started else _S.ACCEPTED
        data.digests[data.last] = new.digest
        data.messages[data.last] = InboxRow(
            id=data.last,
            lane=new.lane,
            session=new.session,
            priority=new.priority,
            timeout=new.timeout,
            when_busy=new.when_busy,
            body=new.body,
            route=new.route,
            dedupe=new.dedupe,
            repeat=new.repeat,
            first=new.first,
            ask=new.ask,
            state=state,
            attempt=int(new.started),
            accepted_at=now,
            started_at=now if new.started else None,
            ended_at=None,
            reason="",
            result=None,
            asked=None,
        )
        return Taken(data.last, True, True, behind, state)

    def _among(self, ids: Sequence[int], *states: MessageState) -> list[int]:
        rows = self._data.messages
        return [one for one in ids if one in rows and rows[one].state in states]

    def begin(self, ids: Sequence[int], report: Report | None) -> None:
        which = self._among(ids, _S.ACCEPTED, _S.STARTED, _S.PARKED)
        for one in which:
            attempt = self._data.messages[one].attempt + 1
            self._set(one, state=_S.STARTED, attempt=attempt, started_at=process.wall(), ended_at=None, reason="")
        self._tell(report, len(which))

    def wait_again(self, ids: Sequence[int]) -> None:
        for one in self._among(ids, _S.STARTED):
            self._set(one, state=_S.ACCEPTED, started_at=None)

    def take_back(self, ids: Sequence[int]) -> None:
        for one in self._among(ids, _S.STARTED):
            attempt = self._data.messages[one].attempt - 1
            self._set(one, state=_S.ACCEPTED, attempt=attempt, started_at=None)

    def end(
        self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None, report: Report | None
    ) -> None:
        self._tell(report, self._end(ids, state, reason, result))

    def _end(self, ids: Sequence[int], state: MessageState, reason: str, result: bytes | None = None) -> int:
        which = self._among(ids, *MAY_END_AS[state])
        for one in which:
            self._set(one, state=state, ended_at=process.wall(), reason=reason, result=result)
        return len(which)

    def refuse(self, message: int, reason: str, report: Report) -> None:
        self._end([message], _S.DROPPED, reason)
        for one in self._among([message], _S.DROPPED):
            self._set(one, dedupe=None)
        self._tell(report, None)

    def requeue(self, message: int, report: Report) -> None:
        which = self._among([message], _S.PARKED, _S.DROPPED, _S.UNKNOWN)
        for one in which:
            now = process.wall()
            self._set(one, state=_S.ACCEPTED, attempt=0, accepted_at=now, ended_at=None, reason="", started_at=None)
        self._tell(report, bool(which))

    def cancel_waiting(
        self,
        lane: str | None,
        session: str | None,
        reason: str,
        report: Report,
        *,
        message: int | None = None,
        upto: int | None = None,
    ) -> None:
        which = [
            row.id
            for row in self._rows(_S.ACCEPTED)
            if lane in (None, row.lane)
            and session in (None, row.session)
            and message in (None, row.id)
            and (upto is None or row.id <= upto)
        ]
        self._end(which, _S.CANCELLED, reason)
        self._tell(report, which)

    def told(self, ids: Sequence[int]) -> None:
        self._data.told.update(ids)

    def settle(self, report: Report) -> None:
        self._tell(report, None)

    # Questions to persons

    def _open_ask(self, lane: str, session: str | None, key: str | None) -> Ask | None:
        found = [one for one in self._data.asks.values() if one.state == "open" and key is not None]
        return next((one for one in found if (one.lane, one.session, one.key) == (lane, session, key)), None)

    def ask(self, ask: Ask, report: Report) -> None:
        kept = self._data.asks.get(ask.id) or self._open_ask(ask.lane, ask.session, ask.key)
        if kept is None:
            kept = self._data.asks[ask.id] = ask
        self._tell(report, kept)

    def close_ask(self, how: AskedFor, new: NewRow, replayed: int, report: Report) -> None:
        ask = self._data.asks.get(how.ask)
        if ask is None or ask.state != "open":
            self._tell(report, None, ask_closed(how.ask, ask))
            return
        self._data.asks[how.ask] = replace(ask, state=how.state, value=how.value, by=how.by)
        self._data.asks_ended[how.ask] = process.wall()
        taken = self._accept(new, replayed)
        for row in list(self._data.messages.values()):
            if row.asked == how.ask and row.state is _S.WAITING:
                reason = f"{how.state} by message {taken.id}"
                self._set(row.id, state=_S.DONE, ended_at=process.wall(), reason=reason)
        self._tell(report, taken)

    def wait_for(self, ids: Sequence[int], ask: str, report: Report | None) -> None:
        for one in ids:
            if one in self._data.messages:
                self._set(one, asked=ask)
        stands = self._data.asks.get(ask)
        if stands is None or stands.state != "open":
            ended = self._end(ids, _S.DONE, f"asked, and {'answered' if stands is None else stands.state} meanwhile")
        else:
            ended = self._end(ids, _S.WAITING, f"asked a person: {ask}")
        self._tell(report, ended)

    def withdraw(self, session: str, reason: str) -> None:
        data = self._data
        for ask in [one for one in data.asks.values() if (one.session, one.state) == (session, "open")]:
            data.asks[ask.id] = replace(ask, state="withdrawn")
            data.asks_ended[ask.id] = process.wall()
            waiting = [row.id for row in data.messages.values() if row.asked == ask.id and row.state is _S.WAITING]
            self._end(waiting, _S.CANCELLED, reason)

    async def find_ask(self, ask: str) -> Ask | None:
        return self._data.asks.get(ask)

    async def open_asks(self, lane: str | None, session: str | None, at_most: int) -> list[Ask]:
        found = [
            one
            for one in self._data.asks.values()
            if one.state == "open" and lane in (None, one.lane) and session in (None, one.session)
        ]
        return sorted(found, key=lambda one: one.asked_at)[:at_most]

    async def due_asks(self, now: float, at_most: int) -> list[Ask]:
        found = [one for one in self._data.asks.values() if one.state == "open" and (one.expires_at or now + 1) <= now]
        return sorted(found, key=lambda one: one.expires_at or 0.0)[:at_most]

    async def next_expiry(self) -> float | None:
        found = [one.expires_at for one in self._data.asks.values() if one.state == "open" and one.expires_at]
        return min(found, default=None)

    # Schedules

    def accept_served(self, schedule: str, instant: float, new: NewRow, replayed: int, report: Report) -> None:
        self.serve(schedule, instant)
        self.accept(new, replayed, report)

    def serve(self, schedule: str, instant: float) -> None:
        self._data.served[schedule] = max(instant, self._data.served.get(schedule, instant))

    async def served(self, schedule: str) -> float | None:
        return self._data.served.get(schedule)

    # Questions to the store

    async def recover(self, ids: Sequence[int] | None = None) -> tuple[int, int]:
        again = unknown = 0
        for row in list(self._data.messages.values()):
            if row.state is not _S.STARTED or (ids is not None and row.id not in ids):
                continue
            if row.attempt < row.repeat:
                again += 1
                self._set(row.id, state=_S.ACCEPTED, started_at=None)
            else:
                unknown += 1
                self._data.told.discard(row.id)
                reason = "the process ended while it was being answered"
                self._set(row.id, state=_S.UNKNOWN, ended_at=process.wall(), reason=reason)
        return again, unknown

    def _rows(self, state: MessageState) -> list[InboxRow]:
        return [row for _, row in sorted(self._data.messages.items()) if row.state is state]

    def waiting(self, lane: str | None, after: int, at_most: int, report: Report) -> None:
        found = [row for row in self._rows(_S.ACCEPTED) if row.id > after and lane in (None, row.lane)]
        self._tell(report, found[:at_most])

    async def said(self, lane: str, session: str | None, key: str, digest: bytes) -> tuple[int, bool] | None:
        for row in self._data.messages.values():
            if (row.lane, row.session, row.dedupe) == (lane, session, key):
                return row.id, self._data.digests[row.id] == digest
        return None

    async def accepted_among(self, ids: Sequence[int]) -> list[InboxRow]:
        return [row for row in self._rows(_S.ACCEPTED) if row.id in ids]

    async def untold(self, after: int, at_most: int) -> list[InboxRow]:
        return [row for row in self._rows(_S.UNKNOWN) if row.id > after and row.id not in self._data.told][:at_most]

    async def find(self, message: int) -> InboxRow | None:
        return self._data.messages.get(message)

    async def in_state(self, state: MessageState, at_most: int) -> list[InboxRow]:
        return self._rows(state)[:at_most]

    async def last_id(self) -> int:
        return self._data.last

    def census(self, report: Report) -> None:
        still = (_S.ACCEPTED, _S.STARTED, *STAYS)
        counts = {state: len(self._rows(state)) for state in still}
        accepted = self._rows(_S.ACCEPTED)
        found = Census(
            messages={state: count for state, count in counts.items() if count or state in still[:2]},
            questions=sum(one.state == "open" for one in self._data.asks.values()),
            oldest_accepted_at=accepted[0].accepted_at if accepted else None,
        )
        self._tell(report, found)

    async def changes(self) -> int:
        return 0

    async def comes_back(self) -> bool:
        """It never fails."""
        return False

    async def ended_among(self, ids: Sequence[int]) -> list[int]:
        """Those of some messages for which nothing is to be done any more, forgotten ones with them."""
        messages = self._data.messages
        return [one for one in ids if one not in messages or not messages[one].state.open]

    async def purge(self, before: float, at_most: int) -> int:
        data = self._data
        ended = sorted(
            (row.ended_at, row.id)
            for row in data.messages.values()
            if row.ended_at is not None and row.ended_at < before and row.state not in STAYS
        )[:at_most]
        for _, one in ended:
            del data.messages[one]
        asks = sorted((at, one) for one, at in data.asks_ended.items() if at < before)[:at_most]
        for _, ask in asks:
            del data.asks[ask], data.asks_ended[ask]
        return len(ended) + len(asks)
