"""What the event loop answers to a question on the status socket: one synchronous call, without I/O.

It looks at the scheduler itself, as `statistics` does, because an operator wants to know not which runs wait but for
what. It is bounded, however much the process holds: rows are counted off, and only of the bodies that have run longest
it is looked up where they stand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from heapq import nsmallest
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from lanes import RunState
from lanes.core.execution import Execution, execution_of
from lanes.core.needs import Kind, needs_of
from lanes.core.scheduler import Scheduler
from lanes.layout import Layout
from locks import WaitingClaim, _clock
from locks._events import described, log

from ..background import Background
from ..inspect.run_report import guilty_lines, report_on
from . import protocol
from .beside import Posting, answer_neighbour
from .life import Lives
from .protocol import text
from .recording import Recorder
from .work import Work, Worked, trends

if TYPE_CHECKING:
    from ..drain import DrainReport
    from ..statistics import AbandonedBody, Statistics
    from ..watch.watchdog import Blocked, Trends

_Row = TypeVar("_Row", bound=msgspec.Struct)
_What = Literal["drain", "restart"]
_MOST_PLACES = 20
_SETTLE_S = 5.0
"""On top of what is configured, for the loop to come to it all."""
_MOST_NAMED = 10


class _Watchdog(Protocol):
    def blocked(self) -> Blocked | None: ...
    def trends(self) -> Trends: ...


class Supervised(Worked, Posting, Protocol):
    """What is needed of a supervisor."""

    drain_timeout: float
    services_timeout: float

    @property
    def layout(self) -> Layout: ...
    @property
    def state(self) -> str: ...
    @property
    def generation(self) -> int: ...
    @property
    def watchdog(self) -> _Watchdog: ...
    @property
    def _scheduler(self) -> Scheduler: ...
    def statistics(self) -> Statistics: ...
    def abandoned(self) -> list[AbandonedBody]: ...
    async def restart(self) -> DrainReport: ...
    def request_restart(self, reason: str = ...) -> None: ...
    async def drain(self, timeout: float) -> DrainReport: ...


class _Wait(NamedTuple):
    """What a run waits for, and what has it."""

    what: str = ""
    holder: str = ""
    run: int | None = None


class Handlers:
    """Answers what is asked of one supervisor. On the event loop's thread."""

    def __init__(self, sup: Supervised) -> None:
        self._sup = sup
        self._since = _clock.clock.now()
        self._orders: dict[int, protocol.Order] = {}
        self._last_order = 0
        self._recorder = Recorder(sup)
        self._lives = Lives(sup)
        self.work = Work(sup)
        """Answers about work that is kept; what a coroutine answers, it answers alone."""

    def close(self) -> None:
        """Answer no more: a recording that is under way ends."""
        self._recorder.close()

    def answer(self, question: protocol.Question, by: str) -> protocol.Answer:
        """Answer; never raises.

        Args:
            by: the process that asks, for the log.
        """
        try:
            match question:
                case protocol.Status():
                    return protocol.Answer(status=self._picture(question.each))
                case protocol.Stop():
                    return self._stop(question, "stop", RunState.CANCELLED, by)
                case protocol.Supersede():
                    return self._stop(question, "supersede", RunState.SUPERSEDED, by)
                case protocol.Stack():
                    return self._stack(question)
                case protocol.Life():
                    return self._lives.look(question) or self._unknown(question.run)
                case protocol.Drain():
                    return self._drain(question, by)
                case protocol.Restart():
                    return self._restart(by)
                case protocol.Ping():
                    return protocol.Answer(pong=pong(self._sup))
                case protocol.Trends():
                    return trends(self._sup.watchdog.trends())
                case protocol.Timeline():
                    return self.work.timeline(question)
                case protocol.Parked():
                    return self.work.parked(question)
                case protocol.Resubmit():
                    return self.work.resubmit(question, by)
                case protocol.Discard():
                    return self.work.discard(question, by)
                case protocol.Record():
                    log("operator_asked", what="record", seconds=question.seconds, by=by)
                    return self._recorder.begin(question)
                case protocol.Recorded():
                    return self._recorder.fetch(question)
                case protocol.End() | protocol.Post() | protocol.Ended():
                    return answer_neighbour(self._sup, question)
                case _:
                    return refused("failed", "it is answered by a coroutine")
        except Exception as error:
            log("status_failed", level="error", error=described(error))
            return refused("failed", f"it could not be answered: {text(described(error))}")

    # Doing something

    def _stop(self, question: protocol.Stop | protocol.Supersede, what: str, how: RunState, by: str) -> protocol.Answer:
        run = self._sup.find(question.run)
        if run is None:
            return self._unknown(question.run)
        if run.outcome is not None:
            ended = f"run {run.id} on lane {run.lane} has ended already: {run.state.value}"
            return refused("run_ended", text(f"{ended}, {run.reason}" if run.reason else ended), "run")
        state = run.state.value
        execution = execution_of(run)
        asked = execution is not None and execution.ask_to_end(how, question.reason)
        log("operator_asked", what=what, run=run.id, lane=run.lane, reason=question.reason, by=by)
        return protocol.Answer(
            stopped=protocol.Stopped(
                run=run.id, lane=text(run.lane), state=state, asked=asked, reason=text(run.reason or question.reason)
            )
        )

    def _stack(self, question: protocol.Stack) -> protocol.Answer:
        run = self._sup.find(question.run)
        if run is None:
            return self._unknown(question.run)
        return protocol.Answer(stack=protocol.Stood(run=run.id, text=protocol.stack_text(report_on(run))))

    def _unknown(self, run_id: int) -> protocol.Answer:
        live = list(islice(self._sup._scheduler.board.live, _MOST_NAMED + 1))
        known = ", ".join(map(str, live[:_MOST_NAMED])) + (", …" if len(live) > _MOST_NAMED else "")
        return refused("unknown_run", f"run: {run_id} is not known here; live runs: {known or 'none'}", "run")

    def _drain(self, question: protocol.Drain, by: str) -> protocol.Answer:
        sup = self._sup
        if sup.state not in ("running", "draining"):
            return refused("not_now", f"the supervisor is {sup.state}; it drains while it runs")
        timeout = sup.drain_timeout if question.timeout is None else question.timeout
        log("operator_asked", what="drain", timeout_s=timeout, by=by)
        return self._begin("drain", partial(sup.drain, timeout), timeout + self._grace() + _SETTLE_S)

    def _restart(self, by: str) -> protocol.Answer:
        sup = self._sup
        if sup.state not in ("running", "draining"):
            return refused("not_now", f"the supervisor is {sup.state}; it restarts while it runs or drains")
        log("operator_asked", what="restart", by=by)
        within = sup.drain_timeout + 2 * self._grace() + 4 * sup.services_timeout + 2 * _SETTLE_S
        return self._begin("restart", sup.restart, within)

    def _begin(
        self, what: _What, call: Callable[[], Coroutine[Any, Any, DrainReport]], within_s: float
    ) -> protocol.Answer:
        """Start what takes time; each later status reports what came of it."""
        self._last_order += 1
        number = self._last_order
        self._orders[number] = protocol.Order(id=number, what=what, over=False)
        for old in list(self._orders)[: -protocol.MOST_ORDERS]:
            del self._orders[old]
        name = f"{what} asked for by an operator"
        # What it makes belongs to the supervisor, not to the connection.
        context = self._sup._scheduler.board.hooks.context.copy()
        Background().start(partial(self._see_through, number, what, call), name, context=context)
        return protocol.Answer(started=protocol.Started(order=number, within_s=within_s))

    async def _see_through(
        self, number: int, what: _What, call: Callable[[], Coroutine[Any, Any, DrainReport]]
    ) -> None:
        """A background task: it ends when the supervisor has done it, or cannot."""
        ended = partial(protocol.Order, id=number, what=what, over=True)
        order = ended(error="it was cut short")
        try:
            report = await call()
            order = ended(
                finished=report.finished,
                cancelled=report.cancelled,
                abandoned=len(report.abandoned),
                unstarted=len(report.unstarted),
            )
        except Exception as error:
            order = ended(error=text(described(error)))
        finally:
            if number in self._orders:
                self._orders[number] = order

    def _grace(self) -> float:
        return max((spec.grace for spec in self._sup._scheduler.board.specs.lanes.values()), default=0.0)

    # Looking

    def _picture(self, each: int | None) -> protocol.Picture:
        sup, now = self._sup, _clock.clock.now()
        scheduler, statistics = sup._scheduler, sup.statistics()
        leases, inbox, node = statistics.leases, statistics.inbox, statistics.node
        configured = scheduler.configuring
        lanes = nsmallest(
            protocol.MOST_LANES, statistics.lanes.items(), key=lambda item: (-item[1].oldest_wait_s, -item[1].running)
        )
        runs = self._runs(leases.waiters, statistics.runs["running"], now, each)
        left = dict(islice(scheduler.board.abandoned.items(), protocol.MOST_ABANDONED))
        lines = guilty_lines(left)
        abandoned = [_abandoned(now, one, since, stack, lines[one]) for one, (since, stack) in left.items()]
        held = nsmallest(protocol.MOST_LEASES, leases.holders, key=lambda right: -right.held_s)
        return protocol.Picture(
            pid=os.getpid(),
            sessions=directory_of(sup),
            state=sup.state,
            generation=sup.generation,
            uptime_s=now - self._since,
            healthy=statistics.healthy,
            problems=[text(problem) for problem in statistics.problems],
            admission_slowed=text(statistics.admission_slowed),
            loop_lag=_row(protocol.Lag, statistics.loop_lag),
            counts={str(state): number for state, number in statistics.runs.items()},
            parked=statistics.parked,
            groups=[_row(protocol.GroupRow, group, name=text(name)) for name, group in statistics.groups.items()],
            lanes=[_row(protocol.LaneRow, lane, name=text(name)) for name, lane in lanes],
            lanes_left_out=len(statistics.lanes) - len(lanes),
            runs=runs,
            runs_left_out=len(scheduler.board.live) - len(runs),
            abandoned=abandoned,
            abandoned_left_out=len(scheduler.board.abandoned) - len(abandoned),
            leases=[_row(protocol.LeaseRow, right, path=text(right.path), holder=text(right.holder)) for right in held],
            leases_left_out=len(leases.holders) - len(held),
            orders=list(self._orders.values()),
            inbox=None if inbox is None else _row(protocol.InboxPart, inbox, error=text(inbox.error)),
            node=None if node is None else _row(protocol.NodePart, node, name=text(node.name)),
            configured=[text(change) for change in configured.changes[: protocol.MOST_CHANGES]],
            configured_s_ago=None if configured.changed_at is None else now - configured.changed_at,
            pools=[_row(protocol.PoolRow, pool, name=text(name)) for name, pool in statistics.pools.items()],
        )

    def _runs(
        self, waiters: Iterable[WaitingClaim], running_now: int, now: float, each: int | None
    ) -> list[protocol.RunRow]:
        """Those that run come first: they are what the others wait for."""
        live = self._sup._scheduler.board.live.values()
        running = (one for one in live if one.run.state is RunState.RUNNING)
        queued = (one for one in live if one.run.state is not RunState.RUNNING)
        # Not further than to the last one that runs: behind it there may be 100,000 that wait.
        most = running_now if each is None else min(each, running_now)
        chosen = list(islice(chain(islice(running, most), islice(queued, each)), protocol.MOST_RUNS))
        started = [one for one in chosen if one.run.started_at is not None and one.run.state is RunState.RUNNING]
        longest = set(nsmallest(_MOST_PLACES, started, key=attrgetter("run.started_at")))
        claims = {claim.holder.run_id: claim for claim in waiters}
        lines = guilty_lines(longest)
        return [self._run(one, lines.get(one, ""), claims.get(one.run.id), now) for one in chosen]

    def _run(self, one: Execution, line: str, claim: WaitingClaim | None, now: float) -> protocol.RunRow:
        run, queued = one.run, one.is_queued()
        started = None if queued else run.started_at
        limit = run.wait_deadline if queued else run.deadline
        wait = _wait(one, claim, now)
        return protocol.RunRow(
            id=run.id,
            lane=text(run.lane),
            session=None if run.session is None else text(run.session, protocol.LONGEST_KEY),
            state=run.state.value,
            waited_s=(now if started is None else started) - run.enqueued_at,
            ran_s=None if started is None else now - started,
            deadline_in_s=None if limit is None else limit - now,
            ending=one.ending,
            waits_for=text(wait.what),
            holder=text(wait.holder),
            holder_run=wait.run,
            parent=run.parent,
            reason=text(run.reason),
            extended_s=one.extended_s,
            extended_for=text(one.extended_for),
            at=text(line),
        )


def _wait(one: Execution, claim: WaitingClaim | None, now: float) -> _Wait:
    """The first thing that keeps a run from going on, and the run, or the other process, that it depends on first."""
    run, need = one.run, next(iter(needs_of(one)), None)
    if claim is not None and (need is None or need.kind is Kind.HELD or not one.is_queued()):
        what = f"the {claim.right} lease of {run.session or os.path.basename(claim.path)}"
        return _Wait(what, "another process" if claim.behind is None else str(claim.behind), _own_run(claim))
    if need is None:
        return _Wait()
    front = one.owner.board.turns.front(one.file) if need.kind is Kind.TURN and one.file is not None else None
    holder = front or next(iter(need.runs), None)
    words = {
        Kind.READER: "its message to be answered",
        Kind.RUN: f"run {holder.run.id}" if holder is not None else "",
        Kind.ADMISSION: "admission, which is closed",
        Kind.INSTANT: f"{f'its attempt {run.attempt}' if run.attempt > 1 else 'its sender to say more'}, "
        f"in {one.held_until - now:.1f} s",
        Kind.TURN: f"the turn of session {run.session}",
        Kind.HELD: f"the turn of session {run.session}",
        Kind.PLACE: f"a place on lane {one.lane.name}",
        Kind.SLOT: f"a slot of group {one.spec.group}{'' if one.is_queued() else ' again'}",
        Kind.POOL: _pool_words(one, now),
        Kind.THROTTLE: f"admission, which is slowed: {one.owner.board.throttle.reason}",
    }
    what = words.get(need.kind, "")
    if holder is None:
        return _Wait(what)
    state = " (which waits too)" if holder.is_queued() else ""
    return _Wait(what, f"run {holder.run.id} on lane {holder.run.lane}{state}", holder.run.id)


def _pool_words(one: Execution, now: float) -> str:
    claim = one.wait.claim if one.wait is not None else None
    return "" if claim is None else f"a grant of pool {claim.pool.spec.name}: {claim.pool.reason(claim, now)}"


def _own_run(claim: WaitingClaim) -> int | None:
    holder = claim.behind
    if holder is None or holder.pid != os.getpid() or not isinstance(holder.run_id, int):
        return None
    return holder.run_id


def _row(kind: type[_Row], source: object, **texts: str) -> _Row:
    """A row whose fields are those of `source` by the same names, but for the given ones."""
    return kind(**{name: getattr(source, name) for name in kind.__struct_fields__ if name not in texts}, **texts)


def _abandoned(now: float, execution: Execution, since: float, stack: str, line: str) -> protocol.AbandonedRow:
    run = execution.run
    return protocol.AbandonedRow(
        id=run.id,
        lane=text(run.lane),
        session=None if run.session is None else text(run.session, protocol.LONGEST_KEY),
        reason=text(run.reason),
        abandoned_for_s=now - since,
        at=text(line),
        stack=protocol.stack_text(stack),
    )


def pong(sup: Supervised) -> protocol.Pong:
    """This process. Callable from any thread."""
    return protocol.Pong(pid=os.getpid(), sessions=directory_of(sup))


def directory_of(sup: Supervised) -> str:
    """The sessions directory, in full: the reader has another current directory. Or the name of the store."""
    root = os.fspath(sup.layout.root)
    return text(os.path.abspath(root) if os.path.isdir(root) else root, 4200)


def refused(kind: protocol.Kind, message: str, field: str = "") -> protocol.Answer:
    """Nothing was done, and why."""
    return protocol.Answer(error=protocol.Refused(kind=kind, message=message, field=field))
