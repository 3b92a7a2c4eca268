"""The inbox of one supervisor: its parts put together, and when each is opened, resumed and closed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import anyio

from lanes import InvalidLane, LaneError, Message
from lanes.core.scheduler import Scheduler
from lanes.message import ids_of
from locks import LockError, _clock, process
from locks._events import described, log

from ..background import Background
from ..statistics import InboxStatistics
from .accepted import Accepted
from .answer import Answer
from .asks import Asks
from .door import Door, message_of_row
from .errors import InboxDown
from .journal import InboxJournal
from .replay import Replay
from .rows import Census, InboxRow, MessageState
from .schedules import Schedules
from .settings import Inbox
from .store import InboxStore
from .watch import Watch

RAMP_S = 2.0
"""Within so many seconds what was left behind comes up to full speed."""
MOST_PARKED = 1_000
_LOOK_S = 0.5
"""How often changes of other processes are looked for, and what the statistics say is counted."""
_COUNT_PAUSE = 20
"""After a count, no other for so many times as long as it took."""
_COUNTED = (
    MessageState.ACCEPTED,
    MessageState.STARTED,
    MessageState.WAITING,
    MessageState.PARKED,
    MessageState.UNKNOWN,
)
_PURGE_EVERY_S = 60.0
_PURGE_AT_ONCE = 1_000


class InboxService:
    """Keeps the messages of one supervisor. On the event loop's thread."""

    def __init__(self, scheduler: Scheduler, store: InboxStore, settings: Inbox) -> None:
        self._scheduler, self.store = scheduler, store
        self.keep_s = settings.keep.total_seconds()
        """For how long what has ended is kept."""
        self.door = Door(scheduler, store)
        self.asks = Asks(scheduler, self.door)
        self.journal = InboxJournal(self.door, self.asks)
        self.replay = Replay(scheduler, self.door, self.journal)
        self.schedules = Schedules(scheduler.board.specs, self.door, settings.schedules)
        self.watch = Watch(self.door)
        self.tasks: list[Callable[[], Awaitable[None]]] = [
            self.restore_parked,
            self.replay.serve,
            self.asks.serve,
            self.schedules.serve,
            self.watch.serve,
            self._look_for_changes,
            self._purge,
        ]
        """What is done while work is taken, each until it is cancelled."""
        self._tasks: anyio.CancelScope | None = None
        self._background: Background | None = None
        self._census = Census(messages={}, questions=0, oldest_accepted_at=None)
        self._counted_at = _clock.clock.now()
        self._counted_commits = -1
        """How many commits the count has seen; -1 when another process may have changed something since."""
        self._count_again_at = 0.0
        self._on_disk_only = 0

    async def open(self) -> None:
        """Open the store, and put right what the last process has left. Before any work is taken. A checkpoint.

        Raises:
            InboxDown, InboxInvalid: it cannot be used.
        """
        await self.store.open()
        self._note(await self.replay.recover())
        if self._census.messages.get(MessageState.ACCEPTED):
            self._scheduler.board.throttle.ramp(_clock.clock.now(), RAMP_S)
        self._scheduler.board.journal = self.journal

    def begin(self) -> None:
        """Work is taken: bring back what waits."""
        self.replay.begin()
        self._background = Background()
        self._tasks = anyio.CancelScope()
        self._background.start(self._serve, f"inbox {self.store.path}")

    async def restore_parked(self) -> None:
        """Have `parked` show what earlier processes have parked. When work is taken. A checkpoint."""
        for row in await self.store.in_state(MessageState.PARKED, MOST_PARKED):
            message = message_of_row(row, row.id)
            try:
                request, _ = self._scheduler.intake.message_request(
                    row.lane, message, session=row.session, timeout=row.timeout, priority=row.priority
                )
            except (LaneError, LockError) as error:
                log("parked_not_restored", level="warning", message=row.id, lane=row.lane, error=described(error))
            else:
                run = self._scheduler.parking.restore(request, row.reason, row.attempt)
                self.journal.parked[row.id] = run.id

    async def requeue(self, message: int) -> Accepted:
        """Have a message wait again; see `Supervisor.requeue`."""
        accepted = await self.door.find(message)
        answer = Answer[bool]()
        self.store.requeue(message, answer)
        if not await answer.wait():
            raise InvalidLane(f"message {message} is {accepted.state}; allowed: one that is parked, dropped or unknown")
        self.door.fates.pop(message, None)
        self.replay.look_again()
        return Accepted(message, self.door.fate(message, MessageState.ACCEPTED), new=False)

    async def unknown(self) -> list[InboxRow]:
        """Messages whose end is unknown."""
        return await self.store.in_state(MessageState.UNKNOWN, MOST_PARKED)

    async def in_state(self, state: str, at_most: int) -> list[InboxRow]:
        """The oldest messages in a state."""
        if state not in list(MessageState):
            raise InvalidLane(f"state: {state!r:.80} is not allowed; allowed: {', '.join(MessageState)}")
        return await self.store.in_state(MessageState(state), at_most)

    async def drop(self, message: int) -> None:
        """Have a message wait no longer; see `Supervisor.drop`."""
        accepted = await self.door.find(message)
        if accepted.state not in (MessageState.PARKED, MessageState.UNKNOWN, MessageState.WAITING):
            raise InvalidLane(f"message {message} is {accepted.state}; allowed: one that is parked, unknown or waiting")
        answer = Answer[object]()
        self.store.end([message], MessageState.CANCELLED, "discarded by an operator", None, answer)
        await answer.wait()
        self.door.fates.pop(message, None)
        self.replay.unpark(message)

    def discard(self, messages: Sequence[Message]) -> None:
        """Messages that were parked are discarded."""
        if ids := ids_of(messages):
            self.store.end(ids, MessageState.CANCELLED, "discarded", None, None)

    async def put_right(self) -> None:
        """Put right what a restart in the process has cut off, before work is taken again. A checkpoint."""
        cut, self.journal.cut = list(self.journal.cut), {}
        try:
            await self.replay.put_right(cut)
        except LaneError as error:
            log("inbox_not_put_right", level="error", messages=cut, error=described(error))

    def resume(self) -> None:
        """Work is taken again, and none is started yet: queue what a restart has cut off, before all that waits."""
        cut, self.journal.cut = list(self.journal.cut), {}
        self.replay.resume(cut)
        self.asks.look_again()
        if self._background is None:  # a drain was asked for while the supervisor started
            self.begin()

    def statistics(self) -> InboxStatistics:
        """What an operator sees. Nothing is read from disk."""
        census, traffic, failure = self._census, self.store.traffic, self.store.failure
        oldest = census.oldest_accepted_at
        return InboxStatistics(
            messages={state.value: census.messages.get(state, 0) for state in _COUNTED},
            questions=census.questions,
            oldest_wait_s=0.0 if oldest is None else max(0.0, process.wall() - oldest),
            counted_s_ago=_clock.clock.now() - self._counted_at,
            in_memory=len(self.door.in_memory),
            on_disk_only=self._on_disk_only if self.replay.behind else 0,
            replayed=self.replay.replayed,
            commits=traffic.commits,
            changes=traffic.changes,
            uncommitted=traffic.uncommitted,
            error="" if failure is None else described(failure),
        )

    async def close(self) -> None:
        """Commit all that was noted, and close. A checkpoint that is not interrupted. Calling it again does nothing."""
        if self._tasks is not None:
            self._tasks.cancel()
        if self._background is not None and self._background.started:
            with anyio.CancelScope(shield=True):
                await self._background.over.wait()
        self._background = None
        self.store.census(self._closed)
        await self.store.close()
        self.door.close()
        self._scheduler.board.journal = None

    def _closed(self, census: Census | None, _error: BaseException | None) -> None:
        """The last thing that the store reports: what it keeps for the next process."""
        if census is None:
            return  # nothing could be read any more, or it was closed before
        self._note(census)
        waiting, started = (census.messages.get(one, 0) for one in (MessageState.ACCEPTED, MessageState.STARTED))
        if waiting or started or census.questions:
            log("inbox_keeps", path=self.store.path, waiting=waiting, started=started, questions=census.questions)

    async def _serve(self) -> None:
        assert self._tasks is not None
        try:
            await self._serve_all(self._tasks)
        except Exception as error:  # a fault of our own: what was accepted would stay on disk without a word
            log("inbox_failed", level="error", path=self.store.path, error=described(error))
            self._scheduler.board.on_failure(error, False)

    async def _serve_all(self, tasks: anyio.CancelScope) -> None:
        with tasks:
            async with anyio.create_task_group() as group:
                for serve in self.tasks:
                    group.start_soon(_until_down, serve, self.store)

    async def _look_for_changes(self) -> None:
        """Take up what another process has changed: `lanes inbox requeue`, `discard`, `lanes answer`."""
        seen = await self.store.changes()
        while True:
            await anyio.sleep(_LOOK_S)
            now = await self.store.changes()
            if now != seen:
                seen, self._counted_commits = now, -1
                self.replay.look_again()
                await self._unpark()
            await self._count()

    async def _unpark(self) -> None:
        """Forget the parked messages that an operator has discarded by hand."""
        known = list(self.journal.parked)
        still = {row.id for row in await self.store.in_state(MessageState.PARKED, MOST_PARKED)} if known else set()
        if len(still) < MOST_PARKED:  # else there are others
            for one in known:
                if one not in still:
                    self.replay.unpark(one)

    async def _count(self) -> None:
        """Count for `statistics`, if something has changed, and not so often that commits would wait for it."""
        now = _clock.clock.now()
        if self._counted_commits == self.store.traffic.commits:
            self._counted_at = now
        elif now >= self._count_again_at:
            commits = self.store.traffic.commits
            answer = Answer[Census]()
            self.store.census(answer)
            self._note(await answer.wait())
            self._counted_commits = commits
            self._count_again_at = self._counted_at + _COUNT_PAUSE * (self._counted_at - now)

    def _note(self, census: Census) -> None:
        """A count has come."""
        self._census, self._counted_at = census, _clock.clock.now()
        open_ = sum(number for state, number in census.messages.items() if state.open)
        self._on_disk_only = max(0, open_ - len(self.door.in_memory))

    async def _purge(self) -> None:
        """Forget what ended long ago, a little at a time."""
        while True:
            while await self.store.purge(process.wall() - self.keep_s, _PURGE_AT_ONCE) >= _PURGE_AT_ONCE:
                await anyio.sleep(0.1)  # others commit in between
            await anyio.sleep(_PURGE_EVERY_S)


async def _until_down(serve: Callable[[], Awaitable[None]], store: InboxStore) -> None:
    """Serve until the inbox cannot be written any more, for good: that is logged, and `accept` says so."""
    while True:
        with suppress(InboxDown):
            await serve()
            return
        if not await store.comes_back():
            return
