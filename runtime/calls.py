"""What a host asks of a supervisor: to take work, to end it, and to say what became of it."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from lanes import Draining, InvalidLane, Parked, Run, RunState, WrongThread, current_run
from lanes.core.reset import begin as begin_reset
from lanes.core.reset import concerns
from lanes.core.scheduler import Scheduler
from lanes.run import Body
from lanes.spec import WhenBusy
from locks import DeadlockError, _clock, _effects
from locks._loop import LOOK_S, Post, know_loop, loop_has_ended, on_loop_thread

from .statistics import AbandonedBody, Statistics, take
from .watch.limits import Limits
from .watch.watchdog import Watchdog


class Work:
    """The calls of a supervisor that concern work. They never block, and do not wait behind work."""

    _scheduler: Scheduler
    watchdog: Watchdog
    generation: int
    _limits: Limits
    _to_loop: Post | None = None

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
            session, timeout, priority: as for `submit`.
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

    def submit_threadsafe(self, lane: str, fn: Body, *args: Any, **options: Any) -> Run:
        """As `submit`, from another thread, which it blocks until the event loop has taken the work.

        Only `result_sync` of the run may be used on that thread.

        Raises:
            What `submit` raises; `WrongThread` on an event loop's thread.
        """
        return self._on_loop("submit", lane, fn, *args, **options)

    def post_threadsafe(self, lane: str, message: Any, **options: Any) -> Run:
        """As `post`, from another thread, which it blocks until the event loop has taken the message.

        Only `result_sync` of the run may be used on that thread.

        Raises:
            What `post` raises; `WrongThread` on an event loop's thread.
        """
        return self._on_loop("post", lane, message, **options)

    def _on_loop(self, name: str, *args: Any, **options: Any) -> Run:
        if on_loop_thread():
            raise WrongThread(f"{name}_threadsafe would block the event loop; use {name} there")
        if self._to_loop is None:
            raise Draining("the supervisor does not accept work: it is not started yet")
        done: Future[Run] = Future()
        context = copy_context()  # the caller's, not that of whatever the loop calls it from

        def call() -> None:
            if not done.set_running_or_notify_cancel():
                return
            try:
                know_loop(context)  # anyio marks that of a worker thread as one without an event loop
                done.set_result(context.run(getattr(self, name), *args, **options))
            except BaseException as error:
                done.set_exception(error)

        self._to_loop(call)
        while True:
            try:
                return done.result(LOOK_S)
            except TimeoutError:
                # A loop that has ended takes nothing any more, and says so to nobody.
                if (not self._scheduler.serving or loop_has_ended(self._scheduler.intake.loop)) and done.cancel():
                    raise Draining("the supervisor does not accept work: it has stopped") from None

    async def run(self, lane: str, fn: Body, *args: Any, **options: Any) -> Any:
        """Submit, wait, and return what the body returned; cancelling the waiter cancels the run. A checkpoint.

        Raises:
            What `submit` and `Run.result` raise.
        """
        run = self.submit(lane, fn, *args, **options)
        try:
            return await run.result()
        except DeadlockError:
            run.cancel("waiting for it would never have ended")
            raise
        finally:
            if run.outcome is None:
                run.cancel("whoever waited for it was cancelled")

    # Ending work

    @_effects.change
    def cancel(
        self, *, lane: str | None = None, session: str | None = None, reason: str = "cancelled", queued: bool = True
    ) -> int:
        """Ask all runs of a lane, of a session, or all to end; returns how many were asked.

        Args:
            queued: whether to cancel the queued ones too.
        """
        chosen = [
            execution
            for execution in list(self._scheduler.live.values())
            if (lane is None or execution.run.lane == lane)
            and (session is None or execution.run.session == session)
            and (queued or execution.run.state is RunState.RUNNING)
        ]
        # The latest first, lest each one that goes starts the next one just to cancel it.
        return sum(execution.ask_to_end(RunState.CANCELLED, reason) for execution in reversed(chosen))

    async def reset(self, key: str, *, archive: bool = True) -> str | None:
        """Start a session afresh: end its runs, refuse what they and all older runs still write, put its file away.

        What is posted meanwhile finds the new session. Ends after the longest grace of the session's runs, and, where
        another process conducts it, when that turn has ended. A checkpoint. Cancelled, the runs are ended all the same;
        the file is either put away or as it was.

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
        """
        above = self._conducting(key)
        if above is not None:
            raise DeadlockError(
                f"reset({key!r:.80}) waits for run {above.id} on lane {above.lane}, which awaits it", run_id=above.id
            )
        run = begin_reset(self._scheduler, key, archive=archive)
        try:
            moved: str | None = await run.result()
            return moved
        finally:
            if run.outcome is None:
                run.cancel("whoever asked for the reset was cancelled")

    def _conducting(self, key: str) -> Run | None:
        """The run that the caller is part of, or one that bounds it, if it names that session."""
        inside = current_run()
        one = self._scheduler.live.get(inside.id) if inside is not None else None
        if one is None or one.run is not inside:
            return None  # none of ours
        file = self._scheduler.layout.file_of(key)
        while one is not None and not concerns(one, key, file):
            one = one.parent
        return one.run if one is not None else None

    # What failed for good

    def parked(self, *, lane: str | None = None, session: str | None = None) -> list[Parked]:
        """The runs that were tried as often as their lane's `retry` allows and failed, oldest first."""
        return [
            one
            for one in self._scheduler.history.parked.values()
            if (lane is None or one.run.lane == lane) and (session is None or one.run.session == session)
        ]

    def resubmit(self, run_id: int) -> Run:
        """Submit a parked run anew, as a run of its own; it is parked no more.

        Raises:
            InvalidLane: no such run is parked.
            What `submit` raises: then it stays parked.
        """
        return self._parked(run_id).again()

    def discard(self, run_id: int) -> None:
        """Forget a parked run.

        Raises:
            InvalidLane: no such run is parked.
        """
        self._parked(run_id)
        self._scheduler.history.forget_parked(run_id)

    def _parked(self, run_id: int) -> Parked:
        found = self._scheduler.history.parked.get(run_id) if type(run_id) is int else None
        if found is None:
            known = ", ".join(map(str, list(self._scheduler.history.parked)[:10])) or "none"
            raise InvalidLane(f"run_id: {run_id!r:.80} is not parked; parked: {known}")
        return found

    # Looking

    def find(self, run_id: int) -> Run | None:
        """A live run, one of the last `keep_outcomes` finished ones, or a parked one."""
        return self._scheduler.find(run_id)

    def runs(self, *, session: str | None = None) -> list[Run]:
        """The queued and running runs, oldest first."""
        return [
            execution.run
            for execution in self._scheduler.live.values()
            if session is None or execution.run.session == session
        ]

    def sessions(self) -> list[str]:
        """The keys of the sessions that live runs name."""
        return sorted({e.run.session for e in self._scheduler.live.values() if e.run.session is not None})

    def abandoned(self) -> list[AbandonedBody]:
        """The bodies that ignored their cancellation and still run, the first abandoned one first."""
        now = _clock.clock.now()
        return [
            AbandonedBody(execution.run, now - since, stack)
            for execution, (since, stack) in self._scheduler.abandoned.items()
        ]

    def statistics(self) -> Statistics:
        """What it holds at this instant; cheap enough to ask ten times a second."""
        return take(self._scheduler, self.watchdog, _clock.clock.now(), self._limits.abandoned, self.generation)
