"""The supervisor: one process's lanes, locks and services, from start to stop."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, get_args

from lanes import GroupSpec, InvalidLane, LaneSpec, Parked, PoolSpec, Question, Run, SessionLayout
from lanes.checks import callback, choice, seconds, shown, whole
from lanes.core.board import Board
from lanes.core.hooks import Hook, Hooks
from lanes.core.scheduler import Scheduler
from lanes.run import Body
from lanes.spec import WhenBusy
from lanes.spec_table import SpecTable
from locks import LockRegistry, _clock

from .calls import Calls
from .drain import DrainReport, refuse_inside
from .everywhere import Everywhere
from .life import Life
from .neighbours import Neighbours
from .phase import STATES, Standing, State
from .postgres.settings import PostgresStore, StoreLayout
from .process.bindings import Bindings
from .services import ServiceFactory, Services
from .statistics import AbandonedBody, Statistics, take
from .watch.limits import Keeper, Limits
from .watch.selfcheck import SelfCheck
from .watch.watchdog import Watchdog
from .zombies import Exits, OnZombie

if TYPE_CHECKING:
    from .inbox.accepted import Accepted
    from .inbox.rows import InboxRow
    from .inbox.service import InboxService
    from .inbox.settings import Inbox
    from .postgres.node import Node


class Supervisor:
    """Owns everything in one process: its task group's children are lanes, whose children are runs.

    Use it as an async context manager, or call `start` and `stop`, from different tasks if need be. To be used on the
    event loop's thread, but for `submit_threadsafe` and `post_threadsafe`.

    Args:
        sessions: the directory of the transcripts, created when missing, or a `SessionLayout` for an existing one; or a
            `PostgresStore`, whose sessions any number of processes on any machines share, always with an inbox.
        lanes: specifications that add to the default lanes or override them by pattern.
        groups: the same for groups.
        pools: limits that runs of all lanes share and wait for (`RunContext.pool`); by default there are none.
        services: name to factory of an async context manager; entered in order before work is accepted, left in
            reverse order, and handed to bodies as `ctx.services`. Each generation makes its own.
        registry: the lock registry; by default one of its own.
        exclusive: whether no other supervisor may have the directory at the same time.
        exclusive_wait: seconds to wait for another one to leave; by default it fails at once.
        node: what this process is called among others on the same store; by default after its host.
        signals: whether the process belongs to this supervisor: SIGINT, SIGTERM and SIGHUP stop it, SIGUSR1 restarts
            it, and the `async with` block is cancelled when it is to stop. Main thread only.
        inbox: whether messages can be accepted durably (`accept`): `True` for a file in the directory of the sessions,
            or an `Inbox`. It has one owner, so it makes the supervisor `exclusive`.
        status_socket: where `lanes status` and its like can ask: a path, or `True` for the place where they look.
        notify: whether to report to the service manager that the environment names (systemd's `NOTIFY_SOCKET`).
        on_zombie: what `stop` and `restart` do about bodies that ignore their cancellation: `"raise"`, or `"exit"` the
            process (70, and 75 from `restart`); with `"exit"`, a loop that is blocked for `limits.dead_s` seconds, and
            a stop or restart that overruns its bounds, end the process too.
        limits: what the process may use, and what happens then.
        drain_timeout: seconds that running runs get to finish when the context manager is left without an exception,
            and before a restart.
        services_timeout: seconds that entering all services may take, and leaving them.
        keep_outcomes: how many finished runs `find` still knows.
        on_run_start: called with each run when it starts, and again for each further attempt.
        on_run_end: called with each run when it has its outcome, and its place and turn have been passed on.
        on_wait: called with each run that does not start when it is submitted. The three are plain functions, called on
            the event loop when the change that they report is complete, in order: each may submit, post, cancel, reset
            and revoke. An exception in one is logged and harms nothing.

    Raises:
        InvalidLane: a specification is not allowed, or contradicts another.
    """

    def __init__(
        self,
        sessions: str | os.PathLike[str] | SessionLayout | PostgresStore,
        *,
        lanes: Iterable[LaneSpec] = (),
        groups: Iterable[GroupSpec] = (),
        pools: Iterable[PoolSpec] = (),
        services: Mapping[str, ServiceFactory] | None = None,
        registry: LockRegistry | None = None,
        exclusive: bool = False,
        exclusive_wait: float = 0.0,
        inbox: Inbox | bool = False,
        node: str | None = None,
        signals: bool = False,
        status_socket: str | os.PathLike[str] | bool | None = None,
        notify: bool = False,
        on_zombie: OnZombie = "raise",
        limits: Limits | None = None,
        drain_timeout: float = 30.0,
        services_timeout: float = 60.0,
        keep_outcomes: int = 1000,
        on_run_start: Hook | None = None,
        on_run_end: Hook | None = None,
        on_wait: Hook | None = None,
    ) -> None:
        self.layout = _layout_of(sessions)
        self.registry = registry if registry is not None else LockRegistry()
        self.drain_timeout = seconds("drain_timeout", drain_timeout, zero=True)
        self._standing = Standing(Services(dict(services or {})), seconds("services_timeout", services_timeout))
        choice("on_zombie", on_zombie, get_args(OnZombie))
        self._scheduler = Scheduler(
            Board(
                SpecTable(lanes, groups, pools),
                self.registry,
                self.layout,
                keep_outcomes=whole("keep_outcomes", keep_outcomes, 0),
                hooks=_hooks(on_run_start=on_run_start, on_run_end=on_run_end, on_wait=on_wait),
            )
        )
        self._limits = limits or Limits()
        exits = on_zombie == "exit"
        self.watchdog = Watchdog(
            Keeper(self._limits, self._scheduler.board.throttle, self.request_restart),
            look=SelfCheck(self._scheduler).look,
            abandoned=lambda: len(self._scheduler.board.abandoned),
            dead_s=self._limits.dead_s if exits else None,
        )
        self._scheduler.board.lateness = self.watchdog
        local = not isinstance(self.layout, StoreLayout)
        self._node = shared = (
            _shared(sessions, inbox, self._scheduler, node, exclusive=exclusive)
            if isinstance(sessions, PostgresStore)
            else None
        )
        root = os.fspath(self.layout.root)
        self._inbox = _inbox_of(inbox, self._scheduler, root) if shared is None else shared.service
        self._calls = Calls(self._scheduler, self._standing)
        alone = exclusive or self._inbox is not None
        self.everywhere = Everywhere(
            self._scheduler,
            self._inbox,
            None if shared is None else shared.commands,
            node or socket.gethostname(),
            Neighbours(self.layout) if local and not alone else None,
        )
        """The calls that reach all processes with the same sessions."""
        if shared is not None:
            from .fleet.answering import Answering  # noqa: PLC0415 -- most programs have no store

            Answering(self, shared)
        self._bindings = Bindings(
            self,
            self.watchdog,
            exclusive=exclusive or (local and self._inbox is not None),
            exclusive_wait=seconds("exclusive_wait", exclusive_wait, zero=True),
            signals=signals,
            status_socket=status_socket,
            notify=notify,
        )
        self._life = Life(
            os.fspath(self.layout.root),
            local,
            self._standing,
            self._scheduler,
            self.watchdog,
            self._bindings,
            Exits(self.watchdog, exits),
            self._inbox,
        )

    def __repr__(self) -> str:
        now = self._scheduler.board
        queued = sum(len(lane.queued) for lane in now.lanes.values())
        return f"<Supervisor of {self.layout.root}, {self.state}: {len(now.running())} running, {queued} queued>"

    @property
    def state(self) -> State:
        """Where it stands: it moves down the list, but from a drain or a restart it may run again."""
        return STATES[self._standing.phase]

    @property
    def generation(self) -> int:
        """Counts the restarts in this process, from 1 for the first start."""
        return self._standing.generation

    @property
    def services_timeout(self) -> float:
        """Seconds that entering all services may take, and leaving them."""
        return self._standing.services_timeout

    @services_timeout.setter
    def services_timeout(self, given: float) -> None:
        self._standing.services_timeout = seconds("services_timeout", given)

    # Life

    async def start(self) -> None:
        """Enter the services and open admission. A checkpoint; cancelled or failed, nothing is left running.

        Raises:
            InvalidSession: the sessions directory cannot be used; the message says why.
            SessionsOwned: `exclusive`, and another supervisor has the directory; the message names it.
            StatusSocketError: the status socket cannot be had.
            ServicesStuck: the services did not start in time.
            Exception: what a service raised on entering.
            SystemExit: `signals`, and one came that stops it before it was started; the code is 128 + its number.
        """
        await self._life.start()

    async def stop(self, *, drain_timeout: float | None = None) -> DrainReport:
        """Refuse new work, let running runs finish for `drain_timeout` seconds, cancel the rest, leave the services.

        Bounded: it ends after the drain, the longest grace, and the services' own leaving. Cancelled while it drains,
        it goes on to cancel the runs at once, and raises the cancellation afterwards. A restart that is under way is
        given up. Calling it again does nothing.

        Raises:
            AbandonedBodies: some bodies ignored their cancellation; everything else is stopped. With `on_zombie="exit"`
                the process ends instead.
            Exception: a service failed in a restart, so everything has stopped already; raised once.
        """
        return await self._life.stop(self._drain_s(drain_timeout))

    async def stop_requested(self) -> None:
        """Wait until a signal asks to stop (`signals=True`), between calls of `start` and `stop`. A checkpoint."""
        await self._standing.stop_asked.wait()

    async def drain(self, timeout: float) -> DrainReport:
        """Refuse new work and start none, let running runs finish for `timeout` seconds, then cancel them.

        Children of running runs are still taken and started: their parents wait for them.
        Lasts until `stop` or `restart`; a restart that is under way is given up. Cancelled, it cancels the runs at
        once, waits for their grace, and raises afterwards.
        """
        timeout = seconds("timeout", timeout, zero=True)
        refuse_inside(self._scheduler, "drain")
        return await self._life.drain(timeout)

    async def restart(self, *, drain_timeout: float | None = None) -> DrainReport:
        """Replace this generation by the next one, in this process: see `restart.py` for the steps. A checkpoint.

        Queued work is kept, and started on a ramp. Cancelled while running runs finish, admission is open again and
        they go on undisturbed; later it is not interrupted.

        Raises:
            AbandonedBodies: bodies ignored their cancellation, so only a new process helps; admission is open again.
                With `on_zombie="exit"` the process exits (75) instead.
            Draining: another restart, or a stop, is under way, or the supervisor does not run; nothing has changed.
            DeadlockError: called in a run that it would wait for; `request_restart` is for that.
            Exception: a service did not leave or enter; the supervisor has stopped. With `on_zombie="exit"` the process
                exits (75) instead.
        """
        refuse_inside(self._scheduler, "restart")
        return await self._life.restarts.restart(self._drain_s(drain_timeout))

    def request_restart(self, reason: str = "requested") -> None:
        """Begin a restart, from anywhere on the event loop's thread, also inside a run. Returns at once.

        What comes of it is logged; while a restart or a stop is under way, nothing does.
        """
        self._life.restarts.request(reason, self.drain_timeout)

    def signalled(self, count: int) -> None:
        """Do as when a signal to stop has come, the first or a further one: the second one ends the drain."""
        self._life.signalled(count)

    def _drain_s(self, given: float | None) -> float:
        return self.drain_timeout if given is None else seconds("drain_timeout", given, zero=True)

    async def __aenter__(self) -> Self:
        await self.start()
        self._life.enter_block()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._life.leave_block(kind, error, traceback, self.drain_timeout)

    def configure(
        self,
        *,
        lanes: Iterable[LaneSpec] = (),
        groups: Iterable[GroupSpec] = (),
        pools: Iterable[PoolSpec] = (),
    ) -> tuple[str, ...]:
        """Change limits while it runs: all that is given, or nothing. What is not given stays as it is.

        A specification takes the place of that of the same pattern or name, whole: `dataclasses.replace(spec, ...)`
        changes a field. Capacities, slots and pools count at once; a run that has started is never ended by it.
        Timeouts and policies count for what is submitted from then on. A pool that the provider had lowered is whole
        again; a pause that it has asked for goes on. Processes that share a store are configured each.

        With less room a run may wait for what can no longer come, such as a child that is queued on a lane where only
        its parent may run now, or a second grant of a pool that has one slot now. That is neither refused nor reported:
        the deadline of the run ends it.

        Returns:
            What has changed, in words; it is logged as well (`configured`), and stands in `lanes status`.

        Raises:
            InvalidLane: a specification contradicts another one, or would strand work that waits: another group for a
                lane that is not idle, a handler taken away, fewer tokens than a call waits for. Nothing has changed.
            WrongThread: on another thread than the event loop's. Nothing has changed.
        """
        return self._scheduler.configuring.configure(lanes, groups, pools)

    # Giving work

    def submit(
        self,
        lane: str,
        fn: Body,
        *args: Any,
        session: str | None = None,
        turn: bool = True,
        timeout: float | None = None,
        priority: str | None = None,
    ) -> Run:
        """Queue `fn(ctx, *args)` on a lane. Never blocks.

        Called inside a run, the new one remembers it as its parent, and goes on by itself; `ctx.submit` makes a child
        that ends with its parent.

        Args:
            lane: made on first use after the specification that matches its name.
            fn: an async function; its first argument is the `RunContext`.
            session: the session it conducts; a `session:<key>` lane's runs conduct `<key>`.
            turn: `False` to append to that session without conducting it.
            timeout: seconds it may run, instead of the lane's.
            priority: `"foreground"`, `"normal"` or `"background"`, instead of the lane's.

        Raises:
            Draining, InvalidLane, InvalidSession, LaneBusy, LaneFull, WrongThread: no run exists.
            RecursionError: called from a hook that was called for what a hook did, 100 times over; no run exists.
        """
        return self._scheduler.intake.submit(
            lane, fn, args, session=session, turn=turn, timeout=timeout, priority=priority
        )

    def post(
        self,
        lane: str,
        message: Any,
        *,
        session: str | None = None,
        timeout: float | None = None,
        priority: str | None = None,
        when_busy: WhenBusy | None = None,
        dedupe: str | None = None,
    ) -> Run:
        """Queue a message for the lane's handler, called as `handler(ctx, [message])`. Never blocks.

        Args:
            message: a `Message`; anything else becomes the body of one. At most 16 MiB of text.
            session: as for `submit`, like `timeout` and `priority`.
            when_busy: what to do when the session is busy, instead of the lane's policy (see `LaneSpec`).
            dedupe: a name for this message: posted again to the same lane and session, it gives the same run while
                that one waits, runs, or is done and its outcome is kept. After any other end it gives a new run
                (`LaneSpec(dedupe_keeps="ended")`: the same one still). Bodies are compared as JSON; of a body that has
                no JSON, only the type counts.

        Returns:
            The run that will answer. With `collect` or `debounce` others may share it; with `steer` it shares the
            outcome of the run that reads the message, or runs by itself when none does.

        Raises:
            DedupeConflict: the name is that of a message with another body. Nothing was taken.
            Draining, InvalidLane, InvalidSession, LaneBusy, LaneFull, WrongThread: nothing was taken.
            RecursionError: called from a hook that was called for what a hook did, 100 times over; nothing was taken.
        """
        return self._scheduler.intake.post(
            lane,
            message,
            session=session,
            timeout=timeout,
            priority=priority,
            when_busy=when_busy,
            dedupe=dedupe,
        )

    async def accept(
        self,
        lane: str,
        message: Any,
        *,
        session: str | None = None,
        dedupe: str | None = None,
        priority: str | None = None,
        timeout: float | None = None,
        when_busy: WhenBusy | None = None,
    ) -> Accepted:
        """As `post`, durably: returns when the message is kept on disk, and will be answered in this process or a later
        one. A checkpoint; cancelled, it may have been accepted or not: ask again with the same `dedupe`.

        Args:
            message: body and route must be what JSON has; the handler gets what JSON makes of them.
            session: as for `post`, like `timeout`, `priority` and `when_busy`.
            dedupe: a name for this message: accepted again for the same lane and session, it is the same message, for
                as long as the inbox keeps it, whatever has become of it.

        Raises:
            DedupeConflict: the name is that of a message with another body. Nothing was taken.
            InboxDown: nothing can be kept. Nothing was taken.
            Draining, InvalidLane, InvalidSession, LaneBusy, LaneFull, WrongThread: nothing was taken; `InvalidLane` too
                where there is no inbox.
        """
        return await self._inbox_for("accept").door.accept(
            lane,
            message,
            session=session,
            dedupe=dedupe,
            priority=priority,
            timeout=timeout,
            when_busy=when_busy,
        )

    async def find_message(self, message_id: int) -> Accepted | None:
        """An accepted message as it is now, whatever process has accepted it. A checkpoint.

        Returns:
            `None` if the inbox does not keep it: it was never accepted, or ended too long ago.

        Raises:
            InboxDown: it is not known.
        """
        door = self._inbox_for("find_message").door
        try:
            return await door.find(message_id)
        except InvalidLane:
            return None

    async def answer(self, ask_id: str, value: Any, *, by: str = "") -> Accepted:
        """Answer a question that a handler has asked (`RunContext.ask`). A checkpoint; cancelled, it may be answered.

        Args:
            value: one of the question's options, if it has any; what JSON has.
            by: who answers; the handler is told.

        Returns:
            The message that brings the answer to the handler.

        Raises:
            AskClosed: it was never asked, or has been answered or has expired; the error says which.
            InboxDown, InvalidLane: nothing has changed.
        """
        return await self._inbox_for("answer").asks.answer(ask_id, value, by)

    async def asks(self, *, lane: str | None = None, session: str | None = None, at_most: int = 1000) -> list[Question]:
        """The questions that wait for an answer, the oldest first. A checkpoint."""
        return await self._inbox_for("asks").asks.open(lane=lane, session=session, at_most=at_most)

    async def requeue(self, message_id: int) -> Accepted:
        """Have an accepted message wait again that was parked, dropped or left unknown. A checkpoint.

        Raises:
            InboxDown, InvalidLane: it is not kept, or is in another state; nothing has changed.
        """
        return await self._inbox_for("requeue").requeue(message_id)

    async def unknown(self) -> list[InboxRow]:
        """Accepted messages that a process was answering when it ended, and that may not be repeated. A checkpoint."""
        return await self._inbox_for("unknown").unknown()

    async def messages_in(self, state: str, at_most: int = 1000) -> list[InboxRow]:
        """The oldest accepted messages in a state, such as `"parked"`. A checkpoint.

        Raises:
            InboxDown, InvalidLane: they are not known; there is no such state.
        """
        return await self._inbox_for("messages_in").in_state(state, at_most)

    async def drop(self, message_id: int) -> None:
        """Have an accepted message wait no longer that is parked, unknown, or waits for a person. A checkpoint.

        Raises:
            InboxDown, InvalidLane: it is not kept, or is in another state; nothing has changed.
        """
        await self._inbox_for("drop").drop(message_id)

    def _inbox_for(self, call: str) -> InboxService:
        if self._inbox is None:
            raise InvalidLane(f"{call}: the supervisor has no inbox; allowed: Supervisor(..., inbox=True)")
        return self._inbox

    def submit_threadsafe(self, lane: str, fn: Body, *args: Any, **options: Any) -> Run:
        """As `submit`, from another thread, which it blocks until the event loop has taken the work.

        Only `result_sync` of the run may be used on that thread.

        Raises what `submit` raises, and besides:
            WrongThread: on an event loop's thread.
        """
        return self._calls.on_loop("submit", self.submit, lane, fn, *args, **options)

    def post_threadsafe(self, lane: str, message: Any, **options: Any) -> Run:
        """As `post`, from another thread, which it blocks until the event loop has taken the message.

        Only `result_sync` of the run may be used on that thread.

        Raises what `post` raises, and besides:
            WrongThread: on an event loop's thread.
        """
        return self._calls.on_loop("post", self.post, lane, message, **options)

    async def run(self, lane: str, fn: Body, *args: Any, **options: Any) -> Any:
        """Submit, wait, and return what the body returned; cancelling the waiter cancels the run. A checkpoint.

        Raises what `submit` and `Run.result` raise.
        """
        return await self._calls.result_of(self.submit(lane, fn, *args, **options))

    # Ending work

    def cancel(
        self, *, lane: str | None = None, session: str | None = None, reason: str = "cancelled", queued: bool = True
    ) -> int:
        """Ask all runs of a lane, of a session, or all to end; returns how many were asked.

        In this process: where others have the same sessions, `everywhere.cancel` reaches theirs.

        Args:
            queued: whether to cancel the queued ones too, and accepted messages that wait on disk only (not counted).
        """
        return self._calls.cancel(lane=lane, session=session, reason=reason, queued=queued)

    async def reset(self, key: str, *, archive: bool = True) -> str | None:
        """Start a session afresh: end its runs, refuse what they and all older runs still write, put its file away.

        Questions that were asked in the session are withdrawn. What is posted meanwhile finds the new session. Ends
        after the longest grace of the session's runs. The runs of other processes with the same sessions are ended and
        refused too, as far as `everywhere` reaches; the turn of one that it does not reach is waited for, and
        `reset_unreached` is logged. A checkpoint. Cancelled, the runs are ended all the same; the file is either put
        away or as it was.

        Args:
            key: the session.
            archive: `False` to delete the file instead of moving it aside.

        Returns:
            Where the file is now; `None` when there was none, it was empty, or it was deleted.

        Raises:
            DeadlockError: awaited inside a run of that session, or a child of one, which it would wait for. Nothing has
                changed.
            Draining, InvalidSession, LaneFull: nothing has changed.
            RunError: the supervisor has stopped meanwhile, or lane `control` has no time left for it; the runs have
                ended all the same.
            TranscriptError: the file could not be put away; it stands as it was.
            StoreDown: not all processes with the same sessions have answered; the runs of those that could be reached
                have ended.
        """
        elsewhere = self.everywhere._reset if self.everywhere.shared else None
        return await self._calls.reset(key, archive=archive, elsewhere=elsewhere)

    # What failed for good

    def parked(self, *, lane: str | None = None, session: str | None = None) -> list[Parked]:
        """The runs that were tried as often as their lane's `retry` allows and failed, oldest first."""
        return [
            one
            for one in self._scheduler.board.history.parked.values()
            if (lane is None or one.run.lane == lane) and (session is None or one.run.session == session)
        ]

    def resubmit(self, run_id: int) -> Run:
        """Submit what a parked run was to do, as a new run; the old one is parked no more.

        Raises what `submit` raises, and then it stays parked; and besides:
            InvalidLane: no such run is parked.
        """
        return self._calls.parked(run_id).again()

    def discard(self, run_id: int) -> None:
        """Forget a parked run.

        Raises:
            InvalidLane: no such run is parked.
        """
        parked = self._calls.parked(run_id)
        self._calls.discard(run_id)
        if self._inbox is not None:
            self._inbox.discard(parked.messages)

    # Looking

    def find(self, run_id: int) -> Run | None:
        """A live run, one of the last `keep_outcomes` finished ones, or a parked one."""
        return self._scheduler.board.find(run_id)

    def runs(self, *, session: str | None = None) -> list[Run]:
        """The queued and running runs, oldest first."""
        return [
            execution.run
            for execution in self._scheduler.board.live.values()
            if session is None or execution.run.session == session
        ]

    def sessions(self) -> list[str]:
        """The keys of the sessions that live runs name."""
        return sorted({e.run.session for e in self._scheduler.board.live.values() if e.run.session is not None})

    def abandoned(self) -> list[AbandonedBody]:
        """The bodies that ignored their cancellation and still run, the first abandoned one first."""
        now = _clock.clock.now()
        return [
            AbandonedBody(execution.run, now - since, stack)
            for execution, (since, stack) in self._scheduler.board.abandoned.items()
        ]

    def statistics(self) -> Statistics:
        """What it holds at this instant; cheap enough to ask ten times a second."""
        inbox = self._inbox.statistics() if self._inbox is not None else None
        node = self._node.statistics() if self._node is not None else None
        now = _clock.clock.now()
        return take(self._scheduler, self.watchdog, now, self._limits.abandoned, self.generation, inbox, node)


def _inbox_of(given: Inbox | bool, scheduler: Scheduler, root: str) -> InboxService | None:
    if given is False:
        return None
    from .inbox.service import InboxService  # noqa: PLC0415 -- most programs that embed one have no inbox
    from .inbox.settings import Inbox  # noqa: PLC0415 -- the same
    from .inbox.sqlite import SqliteInbox  # noqa: PLC0415 -- the same

    settings = Inbox() if given is True else given
    if not isinstance(settings, Inbox):
        raise InvalidLane(f"inbox: {shown(settings)} is not allowed; allowed: True, False, or an Inbox")
    store = SqliteInbox(settings.file_in(root), settings.durability)
    return InboxService(scheduler, store, settings)


def _layout_of(sessions: str | os.PathLike[str] | SessionLayout | PostgresStore) -> SessionLayout | StoreLayout:
    if isinstance(sessions, PostgresStore):
        return StoreLayout(sessions.name)
    return sessions if isinstance(sessions, SessionLayout) else SessionLayout(os.fspath(sessions))


def _shared(
    store: PostgresStore, inbox: Inbox | bool, scheduler: Scheduler, name: str | None, *, exclusive: bool
) -> Node:
    from .inbox.settings import Inbox  # noqa: PLC0415 -- most programs that embed one have no inbox

    try:
        from .postgres.node import Node  # noqa: PLC0415 -- the driver is an extra
    except ImportError as error:
        raise InvalidLane(
            f"sessions: a PostgresStore needs its driver ({error}); allowed: with `pip install session-lanes[postgres]`"
        ) from error
    settings = Inbox() if isinstance(inbox, bool) else inbox
    if not isinstance(settings, Inbox):
        raise InvalidLane(f"inbox: {shown(settings)} is not allowed; allowed: True, False, or an Inbox")
    if settings.path is not None or settings.durability != "process":
        raise InvalidLane("inbox: path and durability are the database's; allowed: Inbox(keep=…, schedules=…)")
    if exclusive:
        raise InvalidLane("exclusive: the sessions of a store are shared; allowed: False, or another schema")
    return Node(store, scheduler, settings, name)


def _hooks(**hooks: Hook | None) -> Hooks:
    for name, hook in hooks.items():
        if hook is not None:
            callback(name, hook, f"{name}(run)", 1)
    return Hooks(*hooks.values())
