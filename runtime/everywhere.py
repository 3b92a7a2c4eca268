"""The calls of a supervisor that reach all processes with the same sessions, and what they do in each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lanes import InvalidLane, Run, RunState
from lanes.checks import shown
from lanes.core.execution import execution_of
from lanes.core.reset import ENDED, end_here
from lanes.core.scheduler import Scheduler
from lanes.message import ids_of
from lanes.spec import WhenBusy
from locks import _clock
from locks._events import log
from locks.checks import flag

from .calls import end_runs
from .neighbours import UNSEEN
from .posting import Posted, post_to_conductor
from .streams import Emitting, MessageEvents

if TYPE_CHECKING:
    from .inbox.service import InboxService
    from .neighbours import Conducting, Neighbours
    from .postgres.commands import Commands
    from .status.protocol import RunRow

_MOST_RUNS = 1_000
_MOST_REASON = 1_000
_MOST_WHOLE = (1 << 63) - 1


class RunSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A run of any process, as it was when that process was asked."""

    node: str
    """What the process is called; without a store, its number."""
    id: int
    """Of the run: on a store, no other run of any process has it. Without one, each process counts by itself."""
    lane: str
    session: str | None
    state: RunState
    reason: str
    """Why it was asked to end, or how it has ended."""
    attempt: int
    seconds: float
    """For how long it runs, or has waited."""
    messages: list[int]
    """The accepted messages that it answers."""


class Everywhere:
    """The calls of a supervisor that reach all processes with the same sessions: `Supervisor.everywhere`.

    Those are the processes on the same `PostgresStore`. Without one, they are the processes of this user on the same
    directory that have a status socket: `cancel`, `post`, `runs` and `find` reach them, as `Supervisor.reset` does,
    unless this one is `exclusive`. All are checkpoints; cancelled, those that were asked do it all the same.

    Raises, each call:
        StoreDown: the database cannot be reached, so some may have done it. Or not all have answered within the store's
            `ttl + grace` and 5 seconds, since an event loop stands still, say: they do it when they can.
        Unreached: without a store: a process on the directory has not answered within 8 seconds, or conducts a session
            that is concerned and has no status socket. The error names them; it is not done by those later.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        inbox: InboxService | None,
        commands: Commands | None,
        node: str,
        neighbours: Neighbours | None,
    ) -> None:
        self._scheduler, self._inbox, self._commands, self._node = scheduler, inbox, commands, node
        self._neighbours = neighbours
        if commands is not None:
            commands.handlers |= {"cancel": self._cancel, "reset": self._end_for_reset, "runs": self._runs}
            assert inbox is not None
            commands.handlers["events"] = Emitting(inbox.door).page
            commands.slow.add("events")

    @property
    def shared(self) -> bool:
        """Whether other processes may have the same sessions."""
        return self._commands is not None or self._neighbours is not None

    async def cancel(
        self,
        *,
        lane: str | None = None,
        session: str | None = None,
        message: int | None = None,
        reason: str = "cancelled",
        queued: bool = True,
    ) -> int:
        """Ask all runs of a lane, of a session, the run that is to answer a message, or all to end, wherever they are.

        Args:
            queued: whether to cancel the queued ones too, and accepted messages that wait on disk only.

        Returns:
            How many were asked, with the messages that have ended since nothing but their row waited.

        Raises:
            InvalidLane: an argument is not allowed. Nothing has changed.
        """
        flag("queued", queued)
        which = {
            "lane": _text("lane", lane),
            "session": _text("session", session),
            "message": None if message is None else _message_id(message),
            "reason": str(reason)[:_MOST_REASON].encode(errors="replace").decode(),
            "queued": queued,
        }
        if self._commands is None:
            asked: int = await self._cancel(which, _MOST_WHOLE)
            if self._neighbours is not None and message is None:
                told = await self._neighbours.cancel(lane, session, str(which["reason"]), queued=queued)
                asked += sum(number for _, number in told.answers)
                if (error := told.unreached(self._neighbours.root, asked)) is not None:
                    raise error
            return asked

        async def here(upto: int) -> Any:
            return await self._cancel(which, upto)

        commands = self._commands

        async def left(upto: int) -> bool:
            return queued and await commands.waits(lane, session, message, upto)

        return sum(await commands.tell_all("cancel", which, here=here, left=left))

    async def runs(self, *, lane: str | None = None, session: str | None = None) -> list[RunSeen]:
        """The queued and running runs of all processes, those of each oldest first, and at most 1,000 of each.

        Without a store, with the runs that conduct a session in processes without a status socket, as far as the notes
        beside the sessions name them.
        """
        which = {
            "lane": _text("lane", lane),
            "session": _text("session", session),
        }
        return await self._seen(which)

    async def find(self, run_id: int) -> RunSeen | None:
        """A run of any process that is queued, runs, or is among the last ended ones that its process keeps."""
        if type(run_id) is not int or not 0 <= run_id <= _MOST_WHOLE:
            return None
        found = await self._seen({"run": run_id})
        return found[0] if found else None

    def events(self, message: int, buffer: int = 256) -> MessageEvents:
        """What the body that answers an accepted message emits from now on, in whatever process (see `Run.events`).

        It listens from now on where this process has the message, and else from the first step of `async for`:
        what is emitted before is missed. Through the database it goes only while somebody reads, a page at a
        time. Events of other processes are what JSON makes of them; one that has no JSON, or more than 1 MiB of
        it, is missed. To be left early, close it (`aclose`).

        Args:
            buffer: events that are kept for this reader, at most 10,000; it misses the oldest if it falls further
                behind, and never slows the body.

        Raises:
            InvalidLane: `buffer` is no whole number from 1, or there is no inbox.
        """
        if self._inbox is None:
            raise InvalidLane(
                "events: the supervisor has no inbox; allowed: Supervisor(..., inbox=True), or run.events()"
            )
        return MessageEvents(self._inbox.door, self._commands, _message_id(message), buffer)

    async def _seen(self, which: Mapping[str, Any]) -> list[RunSeen]:
        async def here(upto: int) -> Any:
            return await self._runs(which, upto)

        pages = [await here(0)] if self._commands is None else await self._commands.tell_all("runs", which, here=here)
        found = [_seen_of(one) for page in pages for one in page]
        if self._neighbours is not None and (not found or "run" not in which):
            told = await self._neighbours.runs(which.get("lane"), which.get("session"))
            if told.silent:
                raise told.unreached(self._neighbours.root) or AssertionError
            beside = [_seen_beside(pid, row) for pid, rows in told.answers for row in rows]
            beside += [_seen_noted(one) for one in told.unseen]
            found += [one for one in beside if which.get("run") in (None, one.id)]
        return found

    async def post(
        self,
        lane: str,
        message: Any,
        *,
        session: str,
        timeout: float | None = None,
        priority: str | None = None,
        when_busy: WhenBusy | None = None,
        dedupe: str | None = None,
    ) -> Posted:
        """As `Supervisor.post`, in the process that conducts the session: so it steers or interrupts the run there.

        For processes on a directory; on a store, `Supervisor.accept` reaches any of them. Where none conducts it, the
        message is posted here. Cancelled, it may have been posted.

        Args:
            message: to another process, what JSON has, of at most 60,000 bytes.
            timeout: as for `Supervisor.post`, like `priority`, `when_busy` and `dedupe`.

        Raises what `Supervisor.post` raises, here or there: nothing was posted. And besides:
            Unreached: the process that conducts it cannot be reached, or does not answer: then it may have been posted.
            InvalidLane: it is no message for another process; or the sessions are on a store. Nothing was posted.
        """
        if self._commands is not None:
            raise InvalidLane("post: a store has an inbox; allowed: Supervisor.accept, which reaches all processes")
        options = {"timeout": timeout, "priority": priority, "when_busy": when_busy, "dedupe": dedupe}
        return await post_to_conductor(self._scheduler.intake, self._neighbours, lane, message, session, options)

    async def _reset(self, key: str) -> None:
        """End the runs of a session in other processes, and have them write nothing to it any more."""
        if self._neighbours is not None:
            told = await self._neighbours.end(key)
            if (error := told.unreached(self._neighbours.root)) is not None:
                # Its turn ends by its own limits, and is waited for.
                log("reset_unreached", level="warning", session=key, error=str(error))
            return
        assert self._commands is not None and self._inbox is not None
        commands, journal = self._commands, self._inbox.journal

        async def here(upto: int) -> Any:
            await journal.cancel_waiting(None, key, ENDED, upto=upto)

        async def left(upto: int) -> bool:
            return await commands.waits(None, key, None, upto)

        await commands.tell_all("reset", {"session": key}, here=here, left=left, wants=f"s:{key}")

    # What a process does that is asked

    async def _cancel(self, which: Mapping[str, Any], _upto: int) -> int:
        lane, session, message, reason = (which[name] for name in ("lane", "session", "message", "reason"))
        inbox, on_disk = self._inbox, None
        known = set(inbox.door.in_memory) if inbox is not None else set()
        if message is None:
            asked = end_runs(self._scheduler, lane, session, reason, queued=which["queued"])
        else:
            run = inbox.door.in_memory.get(message) if inbox is not None else None
            chosen = run is not None and (which["queued"] or run.state is RunState.RUNNING)
            asked = int(chosen and run is not None and run.cancel(reason))
        if which["queued"] and inbox is not None:
            on_disk = await inbox.journal.cancel_waiting(lane, session, reason, message=message)
        return asked + len(set(on_disk or ()) - known)

    async def _end_for_reset(self, which: Mapping[str, Any], upto: int) -> None:
        end_here(self._scheduler, which["session"])
        if self._inbox is not None:
            await self._inbox.journal.cancel_waiting(None, which["session"], ENDED, upto=upto)

    async def _runs(self, which: Mapping[str, Any], _upto: int) -> list[dict[str, Any]]:
        board = self._scheduler.board
        if "run" in which:
            found = board.find(which["run"])
            return [] if found is None else [self._seen_here(found)]
        chosen = [
            execution.run
            for execution in board.live.values()
            if which["lane"] in (None, execution.run.lane) and which["session"] in (None, execution.run.session)
        ]
        return [self._seen_here(run) for run in chosen[:_MOST_RUNS]]

    def _seen_here(self, run: Run) -> dict[str, Any]:
        execution, outcome = execution_of(run), run.outcome
        if outcome is not None:
            seconds = outcome.ran_s or outcome.waited_s
        else:
            seconds = max(0.0, _clock.clock.now() - (run.started_at or run.enqueued_at))
        return {
            "node": self._node,
            "id": run.id,
            "lane": run.lane,
            "session": run.session,
            "state": run.state.value,
            "reason": run.reason,
            "attempt": run.attempt,
            "seconds": seconds,
            "messages": ids_of(execution.messages or ()) if execution is not None else [],
        }


def _text(what: str, given: str | None) -> str | None:
    if given is None:
        return None
    from .inbox.door import storable  # noqa: PLC0415 -- most programs that embed a supervisor have no inbox

    return storable(what, given)


def _message_id(given: object) -> int:
    if type(given) is not int or not 0 < given <= _MOST_WHOLE:
        raise InvalidLane(f"message: {shown(given)} is not allowed; allowed: the id of an accepted message")
    return given


def _seen_of(told: Mapping[str, Any]) -> RunSeen:
    """A run as another process tells it. Not by `msgspec.convert`: that looks for the types of a public class in the
    module that it says it is of, which is `runtime`.
    """
    known = {name: told[name] for name in RunSeen.__struct_fields__}  # a newer version may tell more
    return RunSeen(**{**known, "state": RunState(told["state"])})


def _seen_noted(one: Conducting) -> RunSeen:
    run = one.holder.run_id
    return RunSeen(
        node=f"process {one.holder.pid}",
        id=run if isinstance(run, int) else 0,
        lane=one.holder.lane or "",
        session=one.session,
        state=RunState.RUNNING,
        reason=f"it cannot be asked: its process {UNSEEN}",
        attempt=1,
        seconds=one.held_s,
        messages=[],
    )


def _seen_beside(pid: int, row: RunRow) -> RunSeen:
    return RunSeen(
        node=f"process {pid}",
        id=row.id,
        lane=row.lane,
        session=row.session,
        state=RunState(row.state),
        reason=row.reason,
        attempt=1,
        seconds=row.waited_s if row.ran_s is None else row.ran_s,
        messages=[],
    )
