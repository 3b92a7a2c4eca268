"""What a process has left behind, brought back: in order, in pages, and before new work of the same session.

    at the start      started messages become accepted again, or unknown; `on_unknown` runs are queued first
    then, in pages    accepted messages are queued by id, while fewer than `PAGE` wait in memory
    a full lane       is passed over; its messages come when a run of it has ended

A message that is accepted meanwhile stays on disk while an older one of its session is there (`Taken.behind`), its lane
is still to be told of unknown ones, or its session is still to be looked at for such, and comes with its page. No
message is brought back twice: `Door.in_memory` says which are there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from contextvars import copy_context
from typing import Any, cast

import anyio

from lanes import Draining, LaneError, LaneFull, Outcome, Run, RunContext, RunState
from lanes.core.needs import would_start
from lanes.core.request import Request
from lanes.core.scheduler import Scheduler
from lanes.spec import WhenBusy
from locks import LockError, process
from locks._events import described, log

from .answer import Answer
from .door import ALL_REPLAYED, Door, message_of_row
from .errors import InboxDown
from .journal import InboxJournal
from .rows import Census, InboxRow, MessageState
from .untold import Looks, Untold, by_session

PAGE = 1_000
"""Messages that wait in memory before more are brought back from disk."""
_MOST_UNKNOWN = 10_000
"""Messages that lanes are told of at one start, at most: the next one tells of the others."""
_REPLACED_WITHIN_S = 600.0
"""For how long processes of two program versions may share a store."""
_LOOK_S = 1.0
"""How often a full lane is looked at again: the end of a run without a message is reported to no inbox."""


class Replay:
    """Brings back messages that are on disk only. On the event loop's thread."""

    def __init__(self, scheduler: Scheduler, door: Door, journal: InboxJournal) -> None:
        self._scheduler, self._door, self._store, self._journal = scheduler, door, door.store, journal
        self._cursor = ALL_REPLAYED
        """What was on disk up to this id is in memory, but for full lanes."""
        self._not_here: set[int] = set()
        """Messages on a shared store that this process cannot queue."""
        self._full: dict[str, int] = {}
        """Lanes that were full, and the id up to which their messages are in memory."""
        self._untold: dict[str, deque[Untold]] = {}
        """By lane: these go before the messages on disk."""
        self._telling: dict[int, Run | None] = {}
        """Messages, and the run that tells a lane of them; without it, they were told of, and that is to be kept."""
        self._looks = Looks()
        self._look_at: dict[str, None] = {}
        """Full lanes in which a run has ended since."""
        self._more = anyio.Event()
        self._returning: list[InboxRow] = []
        """Messages that were cut off and may be repeated: they go before all that waits."""
        self._cut: list[int] = []
        """Messages to be put right before anything else."""
        self.replayed = 0
        """Messages that were brought back."""
        self.comes_first_here = False
        """Whether what is brought back was accepted by any process: no policy has been applied to it yet."""
        door.replayed, door.on_full, door.untold = self._replayed, self._no_room, self._tells_first
        door.behind = lambda: self.behind
        journal.on_end, journal.on_cut = self._run_ended, self._put_right_soon

    @property
    def behind(self) -> bool:
        """Whether messages are on disk only."""
        return self._cursor != ALL_REPLAYED or bool(self._full)

    def _replayed(self, lane: str) -> int:
        return self._full.get(lane, self._cursor)

    async def recover(self) -> Census:
        """Put right what the last process had started, before any work is taken; returns what there is then."""
        again, unknown = await self._store.recover()
        answer = Answer[Census]()
        self._store.census(answer)
        census = await answer.wait()
        waiting = census.messages.get(MessageState.ACCEPTED, 0)
        await self._look_for_untold()
        if waiting:
            self._cursor = 0
        if waiting or unknown:
            log("inbox_recovered", path=self._store.path, waiting=waiting, repeated=again, unknown=unknown)
        return census

    def begin(self) -> None:
        """Work is taken from now on: first of all, lanes are told of messages whose end is unknown."""
        for lane in list(self._untold):
            self._tell_untold(lane)  # where it is full, the rest follows, and what the lane is given waits for that

    async def put_right(self, cut: list[int]) -> None:
        """Put right messages whose runs were cut off by a restart in the process. A checkpoint."""
        if not cut:
            return
        again, unknown = await self._store.recover(cut)
        log("inbox_recovered", path=self._store.path, waiting=again, repeated=again, unknown=unknown)
        await self._door.look_again(cut)
        if unknown:
            await self._look_for_untold()
        if again:
            self._returning += await self._store.accepted_among(cut)

    def resume(self, cut: list[int]) -> None:
        """Go on: work is taken again, and none is started yet.

        Args:
            cut: messages whose runs were cut off, and that were not put right, since the restart was taken back.
        """
        self._cut += cut
        returning, self._returning = self._returning, []
        for row in reversed(returning):
            self._bring_back([row], first=True)
        for untold in self._untold.values():
            for one in reversed(untold):
                self._tell(one, first=True)
        self._untold.clear()
        self._more.set()

    def _put_right_soon(self, cut: list[int]) -> None:
        self._cut += cut
        self._more.set()

    def look_for_untold(self, sessions: Iterable[str] = ()) -> None:
        """There may be messages whose end is unknown, in sessions that have just come: before all else of these."""
        self._looks.ask(sessions)
        self._more.set()

    def _tells_first(self, lane: str, session: str | None, message: int) -> bool:
        """Whether a lane is to be told of something, or its session may have to be, before it is given a message."""
        return self._looks.holds(session, message) or (lane in self._untold and message > self._replayed(lane))

    def look_again(self) -> None:
        """Messages may be on disk only, whatever their ids: another process has put them there."""
        self._cursor = 0
        self._full = dict.fromkeys(self._full, 0)
        self._more.set()

    async def _look_for_untold(self, fresh: Collection[str | None] = ()) -> None:
        """Have lanes be told of messages whose end is unknown, before they are given what waits on disk.

        Args:
            fresh: sessions that have just come: where telling has failed, it is tried again in these only.
        """
        known = {one.id for untold in self._untold.values() for group in untold for one in group.messages}
        known |= {
            one
            for one, run in self._telling.items()
            if run is None or run.outcome is None or (self._has_failed(run.outcome) and run.session not in fresh)
        }
        found: list[InboxRow] = []
        after, left = 0, True
        while left and len(found) < _MOST_UNKNOWN:  # those of lanes that are not told stay for ever
            page = await self._store.untold(after, PAGE)
            found += [row for row in page if self._is_told(row.lane)]
            left = len(page) == PAGE
            after = page[-1].id if left else 0
        for one in by_session(found):
            if known.isdisjoint(m.id for m in one.messages):
                self._untold.setdefault(one.lane, deque()).append(one)
                self._full.setdefault(one.lane, self._cursor if self._cursor != ALL_REPLAYED else 0)
                self._look_at[one.lane] = None

    def _has_failed(self, outcome: Outcome) -> bool:
        """Whether a run that was to tell a lane has come to its own end, and was not cut off."""
        cut = outcome.state in (RunState.CANCELLED, RunState.SUPERSEDED)
        return not cut and not isinstance(outcome.error, (InboxDown, *self._journal.cut_by))

    def _is_told(self, lane: str) -> bool:
        try:
            return self._scheduler.board.specs.find(lane).on_unknown is not None
        except LaneError:
            return False  # no lane is called so any more: `lanes inbox` shows them

    async def serve(self) -> None:
        """Bring back page after page, until cancelled or nothing is left that can be brought back."""
        while True:
            more = self._more = anyio.Event()
            try:
                progress = await self._step()
            except Draining:
                progress = False  # what is on disk stays there, for the next process
            if not progress:
                with anyio.move_on_after(_LOOK_S if self._full else None):
                    await more.wait()
                self._look_at.update(dict.fromkeys(self._full))

    def _no_room(self, lane: str, message: int) -> None:
        """A message was kept for a lane that is full: bring it back as what was left behind."""
        self._full.setdefault(lane, message - 1)
        self._more.set()

    def _run_ended(self, lane: str) -> None:
        if lane in self._full:
            self._look_at[lane] = None
            self._more.set()
        elif self._cursor != ALL_REPLAYED and len(self._door.in_memory) < PAGE // 2:
            self._more.set()

    async def _step(self) -> bool:
        """Bring back one page; returns whether there was anything to do. A checkpoint."""
        if not self._scheduler.board.accepting:
            return False
        if self._cut:
            cut, self._cut = self._cut, []
            await self.put_right(cut)
            self.resume([])
            return True
        progress = self._looks.due or bool(self._look_at)
        if self._looks.due:  # no more than once before a page: sessions may come without pause
            look, fresh = self._looks.begin()
            await self._look_for_untold(fresh)
            self._read_again(self._looks.end(look))
        lanes, self._look_at = [lane for lane in self._look_at if lane in self._full], {}
        for lane in list(filter(self._tell_untold, lanes)):  # all are told before any is given a page
            await self._page(lane)
        if self._cursor == ALL_REPLAYED or len(self._door.in_memory) >= PAGE:
            return progress
        await self._page(None)
        return True

    def _read_again(self, after: int) -> None:
        """What is behind this id was held back, in part."""
        self._cursor = min(self._cursor, after)
        self._full = {lane: min(upto, after) for lane, upto in self._full.items()}

    async def _page(self, lane: str | None) -> None:
        """Bring back the next page, of one lane that was full or of all others. A checkpoint.

        Its messages are queued by the store's report, and not by the task that waits for it: what is accepted after
        the page was read is reported after it, and finds its place behind it.
        """
        room = max(1, PAGE - len(self._door.in_memory))
        answer = Answer[None]()

        def came(rows: list[InboxRow] | None, error: BaseException | None) -> None:
            try:
                if rows is not None and self._scheduler.board.accepting:
                    self._page_came(lane, rows, len(rows) == room)
            except Exception as fault:  # the task that waits for the page reports it
                error = fault
            answer(None, error)

        after = self._cursor if lane is None else self._full[lane]
        self._store.waiting(lane, after, room, came)
        await answer.wait()

    def _page_came(self, lane: str | None, rows: list[InboxRow], more: bool) -> None:
        upto = rows[-1].id if more else ALL_REPLAYED
        rows = [row for row in rows if not self._looks.holds(row.session, row.id)]  # they come again
        if lane is None:
            self._bring_back(rows)
            self._cursor = upto
        else:
            del self._full[lane]
            if self._bring_back(rows) and more:
                self._full[lane] = upto
                self._look_at[lane] = None

    def _tell_untold(self, lane: str) -> bool:
        """Queue what tells a lane of messages whose end is unknown; returns `False` when it is full before all are."""
        untold = self._untold.get(lane)
        while untold:
            if not self._tell(untold[0]):
                return False
            untold.popleft()
        self._untold.pop(lane, None)
        return True

    def _bring_back(self, rows: list[InboxRow], *, first: bool = False) -> bool:
        """Queue messages; returns `False` when a lane was full, which is noted.

        Args:
            first: before all that waits, and on full lanes, too: they were cut off, and had slots.
        """
        fits = True
        for row in rows:
            if (row.lane in self._full and not first) or row.id in self._door.in_memory:
                continue
            try:
                request, policy = self._request(row)
            except (LaneError, LockError, ValueError) as error:
                if self._may_fit_elsewhere(row, error):
                    continue
                # Its lane is there no more, say. It is not lost: an operator decides.
                self._store.end([row.id], MessageState.PARKED, f"cannot be queued: {error}", None, None)
                continue
            request.beyond_limit = first
            if not first and self._is_full(request):
                self._full[row.lane] = row.id - 1
                fits = False
                continue
            try:
                self._door.admit(request, policy, row, row.id, copy_context(), first=first)
            except LaneFull:
                self._full[row.lane] = row.id - 1
                fits = False
            else:
                self.replayed += 1
                self.unpark(row.id)
        return fits

    def _may_fit_elsewhere(self, row: InboxRow, error: Exception) -> bool:
        """Whether a message stays for other processes: while a newer program replaces an older one, only they know its
        lane, say. This process hands it on when it stops, and parks it when that has not come for long."""
        if not self.comes_first_here or process.wall() - row.accepted_at > _REPLACED_WITHIN_S:
            return False
        if row.id not in self._not_here:
            self._not_here.add(row.id)
            log("message_not_queued", level="warning", message=row.id, lane=row.lane, error=described(error))
        return True

    def unpark(self, message: int) -> None:
        """A message is parked no longer, since an operator has decided: it is not to be submitted as well."""
        parked = self._journal.parked
        if (run_id := parked.pop(message, None)) is not None:
            kept, others = self._scheduler.parking.requeued(run_id, message)
            parked.update(dict.fromkeys(others, kept))

    def _request(self, row: InboxRow) -> tuple[Request, WhenBusy]:
        request, _ = self._scheduler.intake.message_request(
            row.lane, message_of_row(row, row.id), session=row.session, timeout=row.timeout, priority=row.priority
        )
        if not row.attempt:  # else its wait ended in time when it began
            request.waited_s = max(0.0, process.wall() - row.accepted_at)
        request.attempt = row.attempt + 1
        asked = cast("WhenBusy", row.when_busy or request.spec.when_busy)
        if asked == "collect" or (self.comes_first_here and not row.attempt and asked != "reject"):
            return request, asked
        # Messages that waited may be answered together. What the other policies do to a message, they did when it came;
        # and to refuse one is too late once it is kept.
        return request, "queue"

    def _is_full(self, request: Request) -> bool:
        board, limit = self._scheduler.board, request.spec.queue_limit
        lane = board.lanes.get(request.lane.name, request.lane)
        return (
            limit is not None
            and lane.waiting >= limit
            and not would_start(board, lane, request.file, request.urgency, held=False)
        )

    def _tell(self, untold: Untold, *, first: bool = False) -> bool:
        """Queue the run that tells of messages whose end is unknown; returns `False` when the lane is full.

        Args:
            first: as for `_bring_back`.
        """
        spec = self._scheduler.board.specs.find(untold.lane)
        tell, ids = spec.on_unknown, [one.id for one in untold.messages]
        assert tell is not None

        def kept(_result: object, _error: BaseException | None) -> None:
            for one in ids:
                self._telling.pop(one, None)

        async def body(ctx: RunContext) -> Any:
            value = await tell(ctx, list(untold.messages))
            self._store.told(ids)
            self._telling.update(dict.fromkeys(ids))
            self._store.settle(kept)
            return value

        try:
            request = self._scheduler.intake.checked(untold.lane, body, untold.session)
            request.goes_next = request.beyond_limit = first
            self._telling.update(dict.fromkeys(ids, self._scheduler.intake.admit(request, "queue")))
        except LaneFull:
            return False
        except Draining:
            raise
        except LaneError as error:
            log("unknown_not_told", level="error", messages=ids, lane=untold.lane, error=described(error))
        return True
