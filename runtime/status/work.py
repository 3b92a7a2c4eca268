"""What is answered about work that is kept: sessions, parked runs, questions to persons, and the messages of the inbox.

Beside `handlers`, which answers about the instant. Where a disk or a database is asked, it is a coroutine.
"""

from __future__ import annotations

import os
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lanes import LaneError, Question, Run, RunContext, RunError
from lanes import Parked as ParkedRun
from lanes.core.reset import PUT_ASIDE
from lanes.core.scheduler import Scheduler
from lanes.layout import Layout
from lanes.spec import CONTROL
from locks import LockError, _clock, process
from locks._events import described, log

from ..threads import Threads
from . import protocol, rows
from .protocol import Answer, Done, Refused, text

if TYPE_CHECKING:
    from ..watch.watchdog import Trends

_LAG_PARTS = 60
_NOTE_WITHIN_S = 20.0


class Kept(Protocol):
    """The messages of an inbox, as far as an operator asks."""

    id: int
    lane: str
    session: str | None
    attempt: int
    accepted_at: float
    reason: str
    body: bytes

    @property
    def state(self) -> str: ...


class Worked(Protocol):
    """What is needed of a supervisor."""

    @property
    def layout(self) -> Layout: ...
    @property
    def _scheduler(self) -> Scheduler: ...
    def find(self, run_id: int) -> Run | None: ...
    def parked(self) -> list[ParkedRun]: ...
    async def run(self, lane: str, fn: Any, *args: Any, **options: Any) -> Any: ...
    def resubmit(self, run_id: int) -> Run: ...
    def discard(self, run_id: int) -> None: ...
    async def reset(self, key: str) -> str | None: ...
    async def asks(self, *, at_most: int = ...) -> list[Question]: ...
    async def answer(self, ask_id: str, value: Any, *, by: str = ...) -> Any: ...
    async def requeue(self, message_id: int) -> Any: ...
    async def messages_in(self, state: str, at_most: int) -> list[Any]: ...
    async def drop(self, message_id: int) -> None: ...


class Work:
    """Answers about kept work of one supervisor. On the event loop's thread."""

    def __init__(self, sup: Worked) -> None:
        self._sup = sup
        self._threads = Threads(1)

    # At once

    def parked(self, question: protocol.Parked) -> Answer:
        """The runs that have failed for the last time, the latest first."""
        now, latest = _clock.clock.now(), self._sup.parked()[-rows.MOST_ROWS :]
        return Answer(parked=[_parked(one, now, question.content) for one in reversed(latest)])

    def resubmit(self, question: protocol.Resubmit, by: str) -> Answer:
        """Submit a parked run once more."""
        try:
            run = self._sup.resubmit(question.run)
        except (LaneError, LockError) as error:
            return _no(error)
        log("operator_asked", what="resubmit", run=question.run, lane=run.lane, by=by)
        return _done(f"run {question.run} was submitted again, as run {run.id} on lane {run.lane}")

    def discard(self, question: protocol.Discard, by: str) -> Answer:
        """Forget a parked run."""
        try:
            self._sup.discard(question.run)
        except LaneError as error:
            return _no(error)
        log("operator_asked", what="discard", run=question.run, by=by)
        return _done(f"run {question.run} is parked no more")

    def timeline(self, question: protocol.Timeline) -> Answer:
        """What ran when. Nothing is noted for it: the finished runs are kept in any case."""
        board, now = self._sup._scheduler.board, _clock.clock.now()
        since = now - question.window_s
        live = [one.run for one in islice(board.live.values(), 5 * rows.MOST_BARS)]
        ended = board.history.latest(5 * rows.MOST_BARS)
        bars = [bar_of(run, now) for run in chain(live, ended) if (at := _ended_at(run)) is None or at >= since]
        bars.sort(key=lambda bar: bar.started if bar.started is not None else bar.submitted)
        shown = bars[: rows.MOST_BARS]
        part = rows.TimelinePart(window_s=question.window_s, bars=shown[::-1], left_out=len(bars) - len(shown))
        return Answer(timeline=part)

    # By a coroutine

    async def see_to(self, question: protocol.Slow, by: str) -> Answer:
        """Answer; never raises but for a cancellation."""
        try:
            match question:
                case protocol.Session():
                    return await self._session(question)
                case protocol.Reset():
                    return await self._reset(question, by)
                case protocol.Note():
                    return await self._note(question, by)
                case protocol.Asks():
                    return await self._asks(question)
                case protocol.AnswerAsk():
                    return await self._answer(question, by)
                case protocol.Messages():
                    return await self._messages(question)
                case protocol.Requeue():
                    await self._sup.requeue(question.message)
                    log("operator_asked", what="requeue", message=question.message, by=by)
                    return _done(f"message {question.message} waits again")
                case protocol.Drop():
                    await self._sup.drop(question.message)
                    log("operator_asked", what="drop", message=question.message, by=by)
                    return _done(f"message {question.message} waits no longer")
        except (LaneError, LockError, RunError) as error:
            return _no(error)
        except Exception as error:
            log("status_failed", level="error", error=described(error))
            return _refused("failed", f"it could not be answered: {text(described(error))}")

    async def _session(self, question: protocol.Session) -> Answer:
        board, now = self._sup._scheduler.board, _clock.clock.now()
        file = board.layout.file_of(question.key)
        queue = list(board.turns.of(file))
        held = next(
            (one for one in board.registry.statistics().holders if one.path == file and one.right == "turn"), None
        )
        records: list[str] = []
        error = ""
        if question.content:
            try:
                found = await board.sessions.store.read(file, last=rows.MOST_RECORDS)
                records = [_json(record) for record in found]
            except (LockError, OSError) as failure:
                error = text(described(failure))
        part = rows.SessionPart(
            key=text(question.key, protocol.LONGEST_KEY),
            place=_place(board.layout, file),
            runs=[
                rows.Waiter(
                    run=one.run.id,
                    lane=text(one.run.lane),
                    state=one.run.state.value,
                    for_s=now - (one.run.enqueued_at if one.run.started_at is None else one.run.started_at),
                )
                for one in queue[: rows.MOST_ROWS]
            ],
            runs_left_out=max(0, len(queue) - rows.MOST_ROWS),
            holder="" if held is None else text(held.holder),
            held_s=0.0 if held is None else held.held_s,
            remaining_s=None if held is None else held.remaining_s,
            records=records,
            error=error,
            put_aside=await self._threads.run(partial(_put_aside, file)),
        )
        return Answer(session=part)

    async def _reset(self, question: protocol.Reset, by: str) -> Answer:
        log("operator_asked", what="reset", session=question.key, by=by)
        moved = await self._sup.reset(question.key)
        aside = "; it had no file" if moved is None else f"; its file is {os.path.basename(moved)} now"
        return _done(f"session {question.key} starts afresh{aside}")

    async def _note(self, question: protocol.Note, by: str) -> Answer:
        record = {"role": question.role, "content": question.text, "by": by}
        log("operator_asked", what="note", session=question.key, by=by)
        await self._sup.run(CONTROL, _append, record, session=question.key, turn=False, timeout=_NOTE_WITHIN_S)
        return _done(f"the note was appended to session {question.key}")

    async def _asks(self, question: protocol.Asks) -> Answer:
        now = process.wall()
        return Answer(asks=[_ask(one, now, question.content) for one in await self._sup.asks(at_most=rows.MOST_ROWS)])

    async def _answer(self, question: protocol.AnswerAsk, by: str) -> Answer:
        value = msgspec.json.decode(question.value)
        accepted = await self._sup.answer(question.id, value, by=question.by or by)
        log("operator_asked", what="answer", ask=question.id, by=by)
        return _done(f"question {question.id} is answered; message {accepted.id} brings the answer")

    async def _messages(self, question: protocol.Messages) -> Answer:
        now = process.wall()
        found = await self._sup.messages_in(question.state, rows.MOST_ROWS)
        return Answer(messages=[_message(one, now, question.content) for one in found])


async def _append(ctx: RunContext, record: dict[str, str]) -> None:
    await ctx.session.append(record)


def _put_aside(file: str) -> list[str]:
    """What resets have made of a session's file. Reads its directory: not on the event loop's thread."""
    folder, name = os.path.split(file)
    try:
        found = [one for one in os.listdir(folder) if one.startswith(f"{name}{PUT_ASIDE}")]
    except OSError:
        return []  # a place in a store
    return [text(one) for one in sorted(found, reverse=True)[: rows.MOST_RECORDS]]


def _place(layout: Layout, file: str) -> str:
    """Where a session is, in full where that is a file: the reader has another current directory."""
    return text(os.path.abspath(file) if os.path.isdir(layout.root) else file, 4200)


def trends(found: Trends) -> Answer:
    """The past of what a watchdog has looked at."""
    samples, each = found.lags, max(1, len(found.lags) // _LAG_PARTS)
    lag = [max(samples[at : at + each]) for at in range(0, len(samples), each)]
    memory, descriptors = [one.memory for one in found.usage], [one.descriptors for one in found.usage]
    return Answer(trends=rows.TrendsPart(lag_s=lag, memory=memory, descriptors=descriptors))


def _ended_at(run: Run) -> float | None:
    outcome = run.outcome
    return None if outcome is None else run.enqueued_at + outcome.waited_s + outcome.ran_s


def bar_of(run: Run, now: float) -> rows.Bar:
    """A run on a timeline."""
    ended = _ended_at(run)
    return rows.Bar(
        run=run.id,
        lane=text(run.lane),
        session=None if run.session is None else text(run.session, protocol.LONGEST_KEY),
        state=run.state.value,
        reason=text(run.reason),
        submitted=now - run.enqueued_at,
        started=None if run.started_at is None else now - run.started_at,
        ended=None if ended is None else now - ended,
    )


def _parked(one: ParkedRun, now: float, content: bool) -> rows.ParkedRow:
    run = one.run
    return rows.ParkedRow(
        run=run.id,
        lane=text(run.lane),
        session=None if run.session is None else text(run.session, protocol.LONGEST_KEY),
        reason=text(run.reason),
        attempts=run.attempt,
        parked_for_s=now - one.parked_at,
        bodies=[_json(message.body) for message in one.messages[:10]] if content else [],
    )


def _ask(one: Question, now: float, content: bool) -> rows.AskRow:
    return rows.AskRow(
        id=one.id,
        lane=text(one.lane),
        session=None if one.session is None else text(one.session, protocol.LONGEST_KEY),
        asked_for_s=max(0.0, now - one.asked_at),
        expires_in_s=None if one.expires_at is None else one.expires_at - now,
        question=(one.question if isinstance(one.question, str) else _json(one.question)) if content else "",
        options=None if one.options is None or not content else [_json(option) for option in one.options[:50]],
    )


def _message(one: Kept, now: float, content: bool) -> rows.MessageRow:
    return rows.MessageRow(
        id=one.id,
        lane=text(one.lane),
        session=None if one.session is None else text(one.session, protocol.LONGEST_KEY),
        state=str(one.state),
        attempt=one.attempt,
        accepted_for_s=max(0.0, now - one.accepted_at),
        reason=text(one.reason),
        body=text(one.body.decode(errors="replace"), rows.LONGEST_CONTENT) if content else "",
    )


def _json(value: Any) -> str:
    return text(msgspec.json.encode(value, enc_hook=str).decode(), rows.LONGEST_CONTENT)


def _done(words: str) -> Answer:
    return Answer(done=Done(text=text(words, 1500)))


def _no(error: Exception) -> Answer:
    return _refused("refused", text(str(error)))


def _refused(kind: protocol.Kind, message: str) -> Answer:
    return Answer(error=Refused(kind=kind, message=message))
