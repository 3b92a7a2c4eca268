"""Which sessions this node conducts: it claims them, keeps them while it has something of theirs, and gives them back.

    nobody's ──claim, or a message accepted here──► owned ──nothing left, or another node wants it──► given back
                                                      └── the node is lost: all of them, at once

A session is owned from its first unanswered message until nothing is left of it, and for a moment longer, since the
next message often follows. Meanwhile its messages, wherever they are accepted, come to this node, and all policies work
as on one machine. Only work that is
no message (`submit(session=…)`) waits between nodes: its node notes that it wants the session; the owner then takes
nothing newer, and hands over when it has nothing left.

What the database answers is taken note of within its report, so in the order in which the database has done it.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from lanes import LaneError
from lanes.core.scheduler import Scheduler
from lanes.message import ids_of
from locks import Fence, _clock, _effects
from locks._events import described, log

from ..inbox.answer import Answer
from .errors import NodeLost
from .life import Inherited
from .link import Link
from .message_steps import HAND_ON, UnderWay
from .shares import AFTER_S, Shares
from .step import Rows, Step

LINGER_S = 1.0
"""How long a session without work stays with its node."""
_LOOK_S = 0.5
_LOOK_SOON_S = 0.05
_ASK_AGAIN_S = 5.0
"""The same while another node waits for a session that has work here: nothing else says when that has ended."""
_COMPARE_S = 2.0
"""How often it looks whether the database says what it believes."""
MOST_AT_ONCE = 100
"""Sessions that are claimed at once."""


class RunPermit:
    """What the database knows a run by that conducts a session."""

    __slots__ = ("calls", "fence", "node", "nonce", "place")

    def __init__(self, place: str, node: int, fence: int, nonce: int) -> None:
        self.place, self.node, self.fence, self.nonce = place, node, fence, nonce
        self.calls = 0
        """Its appends so far: the database does none of them twice."""


class Ownership:
    """The sessions of this node. On the program's loop. Implements `lanes.core.ownership.Ownership`.

    Invariant: a place is in `_owned` only while the database says so, or this node is lost and has not noticed.
    """

    def __init__(self, scheduler: Scheduler, link: Link, root: str) -> None:
        self._scheduler, self._link, self._root = scheduler, link, root
        self._owned: dict[str, float] = {}
        """Places, each with the instant since which nothing of it is here."""
        self._leaving: set[str] = set()
        self._wanted: dict[str, anyio.Event] = {}
        """Places that runs of this node wait for."""
        self._more = anyio.Event()
        self.on_more: Callable[[], None] = lambda: None
        """Called when there may be messages that are to be brought into memory."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called before the runs of a lost node are ended."""
        self.on_untold: Callable[[list[str]], None] = lambda _sessions: None
        """Called when there may be messages whose end is unknown: in these sessions, before anything else of them."""
        self.on_handed_on: Callable[[list[int]], None] = lambda _ids: None
        """Called with messages that wait in memory, and that other nodes go on with, since this process drains."""
        self.claimed = self.given_back = 0
        self._tried: set[int] = set()
        """Messages that this process was to tell their lanes of: once is enough, where telling fails."""
        self._looks = True
        """Whether there may be something new, and not only room."""
        self._others_wait = False
        """Whether there may have been more sessions to claim than there was room for."""
        self._asked_for = False
        """Whether another node waits for a session that has work here."""
        self._compare_at = 0.0
        self._shares = Shares()

    @property
    def count(self) -> int:
        """How many sessions it conducts."""
        return len(self._owned)

    def _place_of(self, path: str) -> str:
        return f"s:{path[len(self._root) + 1 :]}"

    def owns(self, path: str) -> bool:
        """Whether this node conducts a session."""
        place = self._place_of(path)
        return place in self._owned and place not in self._leaving

    def take(self, place: str) -> None:
        """The database says that this node conducts a session."""
        if place not in self._owned and place.startswith("s:") and self._tells():
            self._look_for_untold([place])  # what a node that is gone had begun in it
        self._owned[place] = _clock.clock.now()
        if (came := self._wanted.pop(place, None)) is not None:
            came.set()

    def _look_for_untold(self, places: Sequence[str]) -> None:
        self.on_untold([place[2:] for place in places if place.startswith("s:")])

    def _tells(self) -> bool:
        return any(spec.on_unknown is not None for spec in self._scheduler.board.specs.lanes.values())

    def look(self, _node: int = 0) -> None:
        """There may be something for this node."""
        self._looks = True
        self._more.set()
        self.on_more()

    def run_ended(self) -> None:
        """There is room again: it is for sessions that wait, if there were any when there was none."""
        if self._others_wait:
            self._more.set()

    def room(self) -> int:
        """How many more messages could begin now.

        Only as many sessions are claimed: what waits here for a slot could begin on another node. What waits for the
        turn of its session could not, and takes no room.
        """
        board = self._scheduler.board
        if not board.accepting or not board.starting or self._link.node == 0:
            return 0
        places, slots = Counter[str](), {name: group.spec.slots - group.running for name, group in board.groups.items()}
        for spec in board.specs.lanes.values():
            if spec.handler is not None:
                places[spec.group] += MOST_AT_ONCE if spec.wild else spec.capacity
        for lane in board.lanes.values():
            ready = min(len(lane.ready), len(lane.queued))
            slots[lane.spec.group] -= ready
            if lane.spec.handler is not None and not lane.spec.wild:
                places[lane.spec.group] -= ready + len(lane.running)
        return min(MOST_AT_ONCE, sum(max(0, min(slots[group], free)) for group, free in places.items()))

    def under_way(self) -> UnderWay:
        """Where runs of this node conduct sessions, and the lanes whose messages interrupt or steer them."""
        board = self._scheduler.board
        running = [one.file for one in board.live.values() if one.file is not None and not one.is_queued()]
        lanes = [name for name, lane in board.lanes.items() if lane.spec.when_busy in ("interrupt", "steer")]
        return UnderWay([self._place_of(path) for path in running], lanes)

    async def want(self, path: str) -> None:
        """Wait until this node conducts a session. A checkpoint; cancelled, the session may come all the same.

        Raises:
            StoreDown: the node is lost, or the database cannot be reached.
        """
        place = self._place_of(path)
        while not self.owns(path):
            came = self._wanted.setdefault(place, anyio.Event())

            def said(rows: Rows) -> None:
                if rows[0][0]:
                    self.take(place)
                    self.on_more()

            await self._do("select {s}.wanted(%s, %s)", (self._link.node, place), said, place)
            if not self.owns(path):
                with anyio.move_on_after(_ASK_AGAIN_S):  # each look asks for all that is wanted at once
                    await came.wait()

    async def begin(self, path: str | None, fence: Fence, ids: Sequence[int]) -> None:
        """A body is about to begin: keep that, and give its run a number that only it may write under. A checkpoint.

        Raises:
            NodeLost: this node does not conduct the session any more. The body must not begin.
            StoreDown: the database cannot be reached.
        """
        node = self._link.node
        place, nonce = None if path is None else self._place_of(path), secrets.randbits(62) + 1
        text = "select {s}.started(%s, %s, %s::bigint, %s::bigint[], true)"

        def said(rows: Rows) -> None:
            if rows[0][0] is None and place is not None and place not in self._leaving:
                self._owned.pop(place, None)

        rows = await self._do(text, (node, place, nonce, list(ids)), said, place or "")
        number = rows[0][0]
        if number is None or number < 0:
            what = f"{path} is conducted" if number is None else "its message is answered, or was ended,"
            raise NodeLost(f"{fence.holder} does not begin: {what} by another node", path=path or "")
        if place is not None:
            fence.permit = RunPermit(place, node, number, nonce)

    # The node

    def inherited(self, sessions: list[Inherited]) -> None:
        """A node is gone, and this one has what it had."""
        for one in sessions:
            self.take(one.place)
        self._look_for_untold([one.place for one in sessions])
        self.look()

    @_effects.change
    def lost(self, error: NodeLost) -> None:
        """The node is lost: end what conducts a session or answers a kept message, and forget what was owned."""
        self._owned.clear()
        self._leaving.clear()
        self._tried.clear()
        for came in self._wanted.values():
            came.set()  # who waits asks again, under the next node
        self._wanted.clear()
        self.on_lost()
        for execution in sorted(self._scheduler.board.live.values(), reverse=True):
            conducts = execution.file is not None and not execution.is_queued()
            if conducts or ids_of(execution.messages or ()):
                execution.owner.turn_lost(execution, error)

    # Serving

    async def serve(self) -> None:
        """Claim, give back and hand over, until cancelled."""
        while True:
            more = self._more = anyio.Event()
            try:
                if self._link.node:
                    await self._step()
            except Exception as error:  # the link says what is wrong with the database, and tries again
                log("ownership_waits", level="warning", store=self._link.name, error=described(error))
            with anyio.move_on_after(_LOOK_SOON_S if self._asked_for else _LOOK_S) as waited:
                await more.wait()
            self._looks |= waited.cancelled_caught

    async def _step(self) -> None:
        looks, self._looks = self._looks or self._asked_for, False
        if looks:
            self._asked_for = False
            if self._owned:
                await (self._give_back() if self._scheduler.board.starting else self._hand_on())
        self._others_wait = True
        if room := self.room():
            text = "select {s}.claimed_fairly(%s, %s::bigint[], %s::float8[])"
            rows = await self._do(text, (self._link.node, self._shares.of(room), AFTER_S), self._claimed)
            self._others_wait = len(rows) == room
            if rows:  # their messages come before this: then it is known what room there is
                await self._do("select 1", (), None)
        if not looks:
            return
        if _clock.clock.now() >= self._compare_at:
            self._compare_at = _clock.clock.now() + _COMPARE_S
            await self._do("select place from {s}.session where owner = %s", (self._link.node,), self._compared)
            await self._claim_untold()
        if self._wanted:
            text = "select place from {s}.session where owner = %s and place = any(%s::text[])"
            await self._do(text, (self._link.node, list(self._wanted)), self._claimed)

    def _claimed(self, rows: Rows) -> None:
        for (place,) in rows:
            self.take(place)
        self.claimed += len(rows)
        if rows:
            self.on_more()

    async def _claim_untold(self) -> None:
        """Have sessions told what their last node did not come to tell them."""
        text = "select distinct lane from {s}.message where state = 'unknown' and not told"
        lanes = [lane for (lane,) in await self._do(text, (), None) if self._is_told(lane)]
        if not lanes or not self._scheduler.board.accepting:
            return
        text = "select * from {s}.claimed_untold(%s, %s::text[], %s::bigint[], %s)"
        await self._do(text, (self._link.node, lanes, list(self._tried), MOST_AT_ONCE), self._claimed_untold)

    def _claimed_untold(self, rows: Rows) -> None:
        self._claimed([row[:1] for row in rows])
        self._tried.update(message for _, message in rows)
        if rows:
            self._look_for_untold([place for place, _ in rows])

    def _is_told(self, lane: str) -> bool:
        try:
            return self._scheduler.board.specs.find(lane).on_unknown is not None
        except LaneError:
            return False

    def _compared(self, rows: Rows) -> None:
        """What it conducts, as the database says.

        Another node may have handed over what nobody here waits for now; or the answer was lost that said what this
        node has claimed or inherited.
        """
        if unknown := [place for (place,) in rows if place not in self._owned]:
            for place in unknown:
                self.take(place)
            self._look_for_untold(unknown)
            self.on_more()

    def knows(self, session: str) -> bool:
        """Whether it knows that it conducts a session; if not, it looks."""
        known = f"s:{session}" in self._owned
        if not known:
            self._compare_at = 0.0
            self._more.set()
        return known

    async def _give_back(self) -> None:
        """Give back what is idle, and what other nodes want if nothing of it is here."""
        node = self._link.node
        text = "select place from {s}.session where owner = %s and wanted"
        wanted = {row[0] for row in await self._do(text, (node,), None)}
        self._asked_for = any(self._is_busy(place) for place in wanted)
        now, leaving = _clock.clock.now(), list[str]()
        for place, since in self._owned.items():
            if self._is_busy(place):
                self._owned[place] = now
            elif now - since >= LINGER_S or place in wanted:
                leaving.append(place)
        if not leaving:
            return
        self._leaving.update(leaving)

        def said(rows: Rows) -> None:
            self._leaving.difference_update(leaving)
            gone = {row[0] for row in rows}
            for place in gone:
                self._owned.pop(place, None)
            self.given_back += len(gone)
            for place in leaving:
                if place not in gone and place in self._owned:  # it has messages that are not in memory
                    self.take(place)
                    self.on_more()

        try:
            await self._do("select {s}.left_alone(%s, %s::text[], false)", (node, leaving), said, places=leaving)
        finally:
            self._leaving.difference_update(leaving)

    async def _hand_on(self) -> None:
        """This process drains: give back all sessions that no run conducts, with their messages that wait.

        No run is left in memory that would answer them: after a restart in the process, it might begin as well.
        """
        conducted = {
            self._place_of(execution.file)
            for execution in self._scheduler.board.live.values()
            if execution.file is not None and not execution.is_queued()
        }
        places = [place for place in self._owned if place not in conducted]
        self._leaving.update(places)

        node, live = self._link.node, self._scheduler.board.live.values()
        here = [one for execution in live for one in ids_of(execution.messages or ())]
        try:
            await self._do(HAND_ON, (node, places, node, here), self._handed_on, places=places)
        finally:
            self._leaving.difference_update(places)

    @_effects.change
    def _handed_on(self, rows: Rows) -> None:
        """Sessions are for other nodes now: the runs that would have answered what waits of them end here."""
        for place, _ in rows:
            self._owned.pop(place, None)
        self.given_back += len({place for place, _ in rows})
        messages = {message for _, message in rows if message is not None}
        self.on_handed_on(list(messages))
        error = NodeLost(f"node {self._link.node} of {self._root} drains, and hands on what waits", path=self._root)
        for execution in sorted(self._scheduler.board.live.values(), reverse=True):
            if execution.is_queued() and not messages.isdisjoint(ids_of(execution.messages or ())):
                execution.owner.turn_lost(execution, error)

    def _is_busy(self, place: str) -> bool:
        kind, _, key = place.partition(":")
        return kind == "s" and self._scheduler.board.turns.front(f"{self._root}/{key}") is not None

    async def _do(
        self,
        text: str,
        values: Sequence[Any],
        then: Callable[[Rows], None] | None,
        place: str = "",
        places: Sequence[str] = (),
    ) -> Rows:
        """Have a statement committed; `then` is called with its rows within the report. A checkpoint."""
        answer = Answer[Rows]()

        def report(rows: Rows | None, error: BaseException | None) -> None:
            if rows is not None and then is not None:
                then(rows)
            answer(rows, error)

        self._link.do(Step(text, values, lambda rows: rows, place, places), report)
        return await answer.wait()
