"""The context that a body is given: its run, its sessions, and what it needs to end well."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import anyio

from locks import InvalidSession, RunEnded, _clock

from ..asking import NewQuestion, WaitsForAnswer
from ..run import Body, Run
from .grant import PoolGrant
from .inbox import Inbox
from .permit import Permit
from .processes import ProcessResult, run_process
from .session import Session

_CLEANUP_SHARE = 0.95  # of the grace; the rest lets a body whose clean-up was cut off still end by itself


class RunContext:
    """The first argument of every body. `run` and `services` are for reading; the rest acts for this run only.

    It belongs to one attempt: once that is over, calls of a left-over task or thread are refused, also while the run is
    tried again.
    """

    __slots__ = ("_permit", "_session", "run", "services")

    def __init__(self, permit: Permit, services: Mapping[str, Any]) -> None:
        self._permit = permit
        self._session: Session | None = None
        self.run: Run = permit.run
        self.services = services
        """What the supervisor's service factories have made, by name."""

    def __repr__(self) -> str:
        return f"<RunContext of {self.run!r}>"

    @property
    def session(self) -> Session:
        """The session that the run names.

        Raises:
            InvalidSession: it names none.
        """
        if self._session is None:
            if self.run.session is None:
                raise InvalidSession(
                    f"run {self.run.id} on lane {self.run.lane} names no session; submit it with session="
                )
            self._session = self._permit.session(self.run.session)
        return self._session

    def session_of(self, key: str) -> Session:
        """Another session, to read and to append announcements to; conducting it needs a run of its own.

        Raises:
            InvalidSession: the key cannot name a session.
        """
        return self._permit.session(key)

    @property
    def inbox(self) -> Inbox:
        """The messages for the run since it began (`when_busy="steer"`); those left unread are queued first."""
        return self._permit.inbox

    @property
    def cancelled(self) -> bool:
        """Whether the run was asked to end. For loops in worker threads, which no cancellation reaches."""
        return self._permit.ending or self._permit.is_over()

    def emit(self, event: Any) -> None:
        """Hand an event to all readers of `run.events()`. Never waits; after the end the event is dropped and counted.

        On the event loop's thread; a worker thread hands it over by `anyio.from_thread.run_sync(ctx.emit, event)`.

        Raises:
            WrongThread: on another thread, from which readers cannot be woken.
        """
        self._permit.emit(event)

    def progress(self) -> None:
        """Report that the run gets on: restarts its `idle_timeout`, within its hard `timeout`. On the loop's thread."""
        self._permit.progress()

    def extend(self, seconds: float, reason: str) -> None:
        """Move the hard deadline by so many seconds, within its lane's `extend_at_most`. It is progress, too.

        For the code that knows that the work is worth it; not for each sign of life, which is what `progress` is for.
        The move is logged, and is seen in `lanes status`. Children keep their own deadlines.

        Args:
            reason: why, for the operator: 1 to 200 characters.

        Raises:
            InvalidLane: an argument is not allowed; it is more than the lane allows in all, or than the parent of the
                run has left. The message says how much is allowed. Nothing has changed.
            RunEnded, Superseded: the run has ended, was asked to end, or has passed its deadline.
            WrongThread: on another thread than the event loop's.
        """
        self._permit.may_extend(seconds, reason)

    def submit(
        self,
        lane: str,
        fn: Body,
        *args: Any,
        detached: bool = False,
        session: str | None = None,
        turn: bool = True,
        timeout: float | None = None,
        priority: str | None = None,
    ) -> Run:
        """Queue `fn(ctx, *args)` on a lane, as a child of this run. Never blocks.

        A child is cancelled when its parent ends, however that ends, and has at most the parent's deadline. It never
        has the parent's turn.

        Args:
            lane: as for `Supervisor.submit`, like the others that are not named here.
            detached: whether it goes on by itself instead; it only remembers its parent.

        Raises:
            DeadlockError: it is not detached and would conduct a session that this run, or one above it, conducts.
            RunEnded, Superseded: this run has ended, or was asked to.
            Draining, InvalidLane, InvalidSession, LaneFull, LaneBusy: no run exists.
        """
        permit = self._permit
        permit.check_may_begin(f"submitted to lane {lane!r:.80}")
        if permit.ending and not detached:
            holder = permit.fence.holder
            raise RunEnded(
                f"{holder} was asked to end: no child submitted to lane {lane!r:.80}; allowed: detached=True",
                path="",
                holder=holder,
            )
        return permit.submit(
            lane, fn, args, detached=detached, session=session, turn=turn, timeout=timeout, priority=priority
        )

    def pool(self, name: str, *, tokens: int | None = None) -> PoolGrant:
        """A call of a provider, say, that a pool lets through when its limits allow it: `async with ctx.pool(...)`.

        Args:
            name: of the pool (`Supervisor(pools=[...])`).
            tokens: how many it will use at most, as far as that is known before; `PoolGrant.settle` says how many it
                was. A pool without a limit of tokens counts them only.

        Raises:
            InvalidLane: there is no such pool; it never has so many tokens; they are missing where it limits them.
            WrongThread: on another thread than the event loop's.
        """
        return self._permit.pool(name, tokens)

    @property
    def message_ids(self) -> list[int]:
        """The ids of the messages that the run answers and that the inbox keeps; of others there are none."""
        return self._permit.message_ids()

    async def finish(self, record: Mapping[str, Any], result: Any = None) -> None:
        """Append the answer to the session, and have the messages of this run kept as done. A checkpoint.

        On a shared store both are kept, or neither. In files, transcript and inbox are two: when the process dies
        between the two, the answer is there and the messages end as `unknown`, or are repeated where the lane says so.
        That is as close as files allow. What the run does afterwards changes nothing of it.

        Args:
            result: kept with the messages, as what a run returns is otherwise: what later processes know of the answer.

        Raises what `Session.append` raises, and the messages are not done then; and besides:
            InboxDown: the answer is there, and that it is done could not be kept.
        """
        await self._permit.finish(self.session, record, result)

    async def ask(
        self,
        question: Any,
        *,
        options: Sequence[Any] | None = None,
        expires: float | timedelta | None = None,
        key: str | None = None,
        keep: Any = None,
    ) -> WaitsForAnswer:
        """Ask a person, and end: `raise await ctx.ask("Delete it?", options=["yes", "no"], keep=plan)`. A checkpoint.

        The question is kept when this returns, so its id may be shown (`.id`) before it is raised. Raised, it ends the
        run as done, with the `Question` as its value: nothing is held meanwhile, no turn, no slot, no task. The answer
        (`Supervisor.answer`) comes to the same lane and session as a message whose `answer` is set, before all that
        waits there; and so does the expiry. Needs an inbox.

        Args:
            question: what JSON has; it comes back with the answer.
            keep: the same.
            options: the values that are allowed as an answer; by default any.
            expires: seconds until it expires; never by default.
            key: a name for it: while the question of that key is open in the session, asking again is that question.

        Raises:
            InvalidLane: an argument is not allowed, or the supervisor has no inbox; nothing was asked.
            InboxDown: it cannot be kept.
            RunEnded, Superseded: this run has ended.
        """
        self._permit.check_may_begin("asked")
        new = NewQuestion(question=question, options=options, expires=expires, key=key, keep=keep)
        return WaitsForAnswer(await self._permit.ask(new))

    async def run_process(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002 -- the word of `subprocess.run`
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        output_limit: int = 1_000_000,
        check: bool = True,
    ) -> ProcessResult:
        """Run a program to its end, in a process group of its own that ends with the run. A checkpoint.

        When the run is cancelled, the group gets SIGTERM at once and SIGKILL when the grace is nearly over; when the
        run ends or is abandoned, or is tried again, SIGKILL. What the program leaves running in its group ends with it.
        A clean-up may run a program too, within its grace.

        Args:
            command: the program and its arguments; no shell.
            input: what it reads; nothing by default.
            cwd: as for `subprocess.run`.
            env: the same.
            output_limit: bytes of stdout, and of stderr, that are kept.
            check: whether an exit code other than 0 raises.

        Raises:
            ProcessFailed: it could not be started, or ended badly.
            RunEnded, Superseded: this run has ended, or its grace has passed; nothing was started.
            ValueError: an argument is not allowed; nothing was started.
        """
        permit = self._permit
        permit.check_may_begin("started")
        if permit.killers is None:
            permit.killers = set()
        return await run_process(
            command,
            grace_left=permit.grace_left,
            killers=permit.killers,
            input=input,
            cwd=cwd,
            env=env,
            output_limit=output_limit,
            check=check,
        )

    @asynccontextmanager
    async def cleanup(self) -> AsyncIterator[None]:
        """A block that the run's cancellation does not interrupt, bounded by the grace, in which it may still write.

        What is not done by then is cut off; code behind the block sees the cancellation again.
        """
        now = _clock.clock.now()
        with anyio.CancelScope(shield=True) as scope:
            remaining = self._permit.grace_left() * _CLEANUP_SHARE
            scope.deadline = anyio.current_time() + remaining if now < self._permit.fence.end_at else -float("inf")
            yield
