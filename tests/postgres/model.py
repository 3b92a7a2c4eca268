"""What the functions of the database mean, in dictionaries: nodes, places, messages, questions. No SQL, no time.

Each method is named as a function is, takes what it needs of its arguments, and returns what it answers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from runtime.inbox.rows import MessageState
from tests.inbox_model import MAY_END_AS

_S = MessageState
BEGINS = (_S.ACCEPTED, _S.STARTED, _S.PARKED)
REQUEUED = (_S.PARKED, _S.DROPPED, _S.UNKNOWN)


@dataclass
class Place:
    """A session, or the place of a message without one."""

    owner: int | None = None
    fence: int = 0
    nonce: int | None = None
    calls: int = 0
    incarnation: int = 0
    lines: int = 0
    wanted: bool = False
    since: int = 0

    def own(self, node: int | None) -> None:
        self.owner, self.nonce = node, None
        self.fence += 1


@dataclass
class Kept:
    """A message."""

    place: str
    session: str | None
    key: str | None
    repeat: int
    state: MessageState = _S.ACCEPTED
    attempt: int = 0
    told: bool = False
    asked: str | None = None


@dataclass(frozen=True)
class Run:
    """What a run is known by that conducts a session."""

    place: str
    node: int
    fence: int
    nonce: int


def is_alone(place: str) -> bool:
    """Whether it is the place of a message without a session."""
    return place.startswith("m:")


@dataclass
class Model:
    nodes: dict[int, bool] = field(default_factory=dict)
    """Those that have a life, each with whether it is silent."""
    places: dict[str, Place] = field(default_factory=dict)
    messages: dict[int, Kept] = field(default_factory=dict)
    asks: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    """By id, session and state."""
    wants: list[tuple[str, int]] = field(default_factory=list)

    def pending(self, place: str) -> int:
        return sum(one.place == place and one.state.open for one in self.messages.values())

    def _at(self, place: str) -> Place:
        return self.places.setdefault(place, Place())

    def _owner(self, message: Kept) -> int | None:
        place = self.places.get(message.place)
        return None if place is None else place.owner

    def _owned(self, nodes: Collection[int]) -> list[str]:
        return [name for name, place in self.places.items() if place.owner in nodes]

    def _forget_if_nothing_is_left(self, place: str) -> None:
        if is_alone(place) and not self.pending(place):
            del self.places[place]

    # Messages

    def known(self, session: str | None, key: str | None) -> int | None:
        found = (number for number, one in self.messages.items() if (one.session, one.key) == (session, key))
        return None if key is None else next(found, None)

    def accept(self, number: int, node: int, new: Kept, *, claims: bool) -> tuple[int, bool, str, int | None, set[int]]:
        place = self._at(new.place)
        if (known := self.known(new.session, new.key)) is not None:
            state = self.messages[known].state
            self._forget_if_nothing_is_left(new.place)
            return known, False, state, None, set()
        if not self.pending(new.place):
            place.since = number
        if place.owner is None and claims and node in self.nodes:
            place.own(node)
        older = {one for one, row in self.messages.items() if (row.place, row.state) == (new.place, _S.ACCEPTED)}
        self.messages[number] = new
        return number, True, "accepted", place.owner, older | ({0} if place.wanted else set())

    def started(self, node: int, place: str | None, nonce: int, ids: list[int]) -> int | None:
        rows = [self.messages[one] for one in ids]
        if any(row.state is _S.PARKED and is_alone(row.place) for row in rows):
            for row in rows:
                at = self._at(row.place)
                if is_alone(row.place) and at.owner is None and node in self.nodes:
                    at.own(node)
        if not all(row.state in BEGINS and self._owner(row) == node for row in rows):
            return -1
        fence = 0
        if place is not None:
            at_ = self.places.get(place)
            if at_ is None or at_.owner != node:
                return None
            at_.own(node)
            at_.nonce, at_.calls, fence = nonce, 0, at_.fence
        for row in rows:
            row.state, row.attempt = _S.STARTED, row.attempt + 1
        return fence

    def waits_again(self, node: int, ids: Iterable[int]) -> None:
        for row in map(self.messages.__getitem__, ids):
            if row.state is _S.STARTED and self._owner(row) == node:
                row.state = _S.ACCEPTED

    def ended(self, node: int, ids: Iterable[int], state: MessageState) -> int:
        rows = [self.messages[one] for one in ids]
        may = [row for row in rows if row.state in MAY_END_AS[state]]
        ended = [row for row in may if not row.state.open or self._owner(row) == node]
        for row in ended:
            row.state = state
        return len(ended)

    def refused(self, node: int, message: int) -> bool:
        self.ended(node, [message], _S.DROPPED)
        row = self.messages[message]
        if row.state is _S.DROPPED:
            row.key = None
        return row.state is _S.DROPPED

    def again(self, message: int) -> bool:
        row = self.messages[message]
        place, pending = self._at(row.place), self.pending(row.place)
        if row.state not in REQUEUED:
            return False
        row.state, row.attempt = _S.ACCEPTED, 0
        place.since = min(place.since, message) if pending else message
        return True

    def cancelled(self, node: int, session: str | None) -> set[int]:
        found = {
            number
            for number, row in self.messages.items()
            if row.state is _S.ACCEPTED and session in (None, row.session) and self._owner(row) in (None, node)
        }
        for one in found:
            self.messages[one].state = _S.CANCELLED
        return found

    def recovered(self, node: int, places: Collection[str], ids: Collection[int] = ()) -> tuple[int, int]:
        again = unknown = 0
        for number, row in self.messages.items():
            of_these = row.place in places or number in ids
            if row.state is not _S.STARTED or not of_these or self._owner(row) != node:
                continue
            if row.attempt < row.repeat:
                row.state, again = _S.ACCEPTED, again + 1
            else:
                row.state, row.told, unknown = _S.UNKNOWN, False, unknown + 1
        return again, unknown

    # Questions

    def waits_for(self, node: int, ids: list[int], ask: str) -> int:
        for row in map(self.messages.__getitem__, ids):
            if self._owner(row) == node:
                row.asked = ask
        return self.ended(node, ids, _S.WAITING if self.asks[ask][1] == "open" else _S.DONE)

    def _no_longer_wait(self, asks: Collection[str], state: MessageState) -> None:
        for row in self.messages.values():
            if row.state is _S.WAITING and row.asked in asks:
                row.state = state

    def withdrawn(self, session: str) -> None:
        closed = [name for name, ask in self.asks.items() if ask == (session, "open")]
        self.asks.update(dict.fromkeys(closed, (session, "withdrawn")))
        self._no_longer_wait(closed, _S.CANCELLED)

    def answered(self, ask: str, number: int, node: int, new: Kept, *, claims: bool) -> int | None:
        session, state = self.asks[ask]
        self._at(new.place)
        if state != "open":
            self._forget_if_nothing_is_left(new.place)
            return None
        self.asks[ask] = (session, "answered")
        self.accept(number, node, new, claims=claims)
        self._no_longer_wait([ask], _S.DONE)
        return number

    # Transcripts

    def _may_write(self, run: Run) -> Place | None:
        place = self.places.get(run.place)
        found = place and (place.owner, place.fence, place.nonce) == (run.node, run.fence, run.nonce)
        return place if found else None

    def append(self, run: Run, call: int, lines: int) -> str:
        if (place := self._may_write(run)) is None:
            return "lost"
        if call == place.calls:
            return "ok"
        if call != place.calls + 1:
            return "gap"
        place.calls, place.lines = call, place.lines + lines
        return "ok"

    def finish(self, run: Run, call: int, lines: int, ids: list[int]) -> str:
        code = self.append(run, call, lines)
        if code == "ok":
            self.ended(run.node, ids, _S.DONE)
        return code

    def note(self, place: str, node: int, lines: int) -> str:
        at = self._at(place)
        if node not in self.nodes:
            return "lost"
        at.lines += lines
        return "ok"

    def put_away(self, run: Run) -> str:
        if (place := self._may_write(run)) is None:
            return "lost"
        if place.lines:
            place.incarnation, place.lines = place.incarnation + 1, 0
        return "ok"

    # Who conducts

    def claimed(self, node: int, at_most: int) -> set[str]:
        free = [name for name, one in self.places.items() if one.owner is None and self.pending(name)]
        found = sorted(free, key=lambda name: self.places[name].since)[:at_most] if node in self.nodes else []
        for name in found:
            self.places[name].own(node)
        return set(found)

    def claimed_untold(self, node: int) -> set[tuple[str, int]]:
        untold = {number: row.place for number, row in self.messages.items() if row.state is _S.UNKNOWN}
        untold = {number: place for number, place in untold.items() if not self.messages[number].told}
        free = {place for place in untold.values() if self._at(place).owner is None}
        if node not in self.nodes:
            return set()
        for place in free:
            self.places[place].own(node)
        return {(place, number) for number, place in untold.items() if place in free}

    def wanted(self, node: int, place: str) -> bool | None:
        at = self._at(place)
        if node not in self.nodes:
            return None
        if at.owner is None:
            at.own(node)
        if at.owner == node:
            return True
        at.wanted = True
        if (place, node) not in self.wants:
            self.wants.append((place, node))
        return False

    def left_alone(self, node: int, places: Collection[str], *, even_pending: bool) -> set[str]:
        for name in [one for one in places if one in self.places and self.places[one].owner == node]:
            place, heir = self.places[name], None
            if place.wanted:
                mine = [one for one in self.wants if one[0] == name]
                heir = next((one for _, one in mine if one != node and one in self.nodes), None)
                self.wants = [one for one in self.wants if one not in ((name, heir), (name, node))]
                place.wanted = any(one[0] == name for one in self.wants)
            if heir is None and self.pending(name) and not even_pending:
                continue
            self.recovered(node, [name])
            if heir is None and is_alone(name) and not self.pending(name):
                del self.places[name]
            else:
                place.own(heir)
        return {one for one in places if one not in self.places or self.places[one].owner != node}

    def gone(self, node: int) -> int:
        owned = self._owned([node])
        self.recovered(node, owned)
        self.left_alone(node, owned, even_pending=True)
        self._forget([node])
        return len(owned)

    def reaped(self, node: int) -> dict[str, int]:
        dead = [one for one, silent in self.nodes.items() if silent and one != node]
        if node not in self.nodes or not dead:
            return {}
        self._forget(dead)
        places = self._owned(dead)
        for name in places:
            self.places[name].own(node)
        self.recovered(node, places)
        return {name: self.pending(name) for name in places}

    def _forget(self, nodes: Collection[int]) -> None:
        self.wants = [one for one in self.wants if one[1] not in nodes]
        for node in nodes:
            self.nodes.pop(node, None)
