"""The arbiter: which claim holds which right of which file, and which claims wait for it.

How it hangs together. `OpenFiles` has an `Entry` per file that is held or waited for, and nothing for all others. An
entry has a `RightQueue` per right; a queue orders claims. All decisions are synchronous methods of the queue, taken
under its mutex on the event loop's thread. `Grants` acts on what they return; `Recovery` finishes what an exception has
broken off.

Two helpers act beside them: the `WaitingRoom` looks after files that other processes hold, and the `Steward` ends what
overstays, from a thread, so that a frozen loop cannot keep a session.

A claim has no cancel scope: a scheduler, which asks the arbiter itself, owns the scope that its claim lives in; `Lease`
has one of its own.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

from anyio import CancelScope, current_effective_deadline
from anyio.lowlevel import checkpoint as checkpoint_anywhere

from .. import _clock, _effects, network
from .._events import prepare as prepare_events
from .._loop import (
    cancel,
    checkpoint_of_loop,
    current_loop,
    current_task,
    deadline_of_loop,
    event_type,
    loop_has_ended,
    poster,
    running_loop,
    scope_type,
    task_of_loop,
)
from ..checks import flag, seconds
from ..engines.choose import EngineName, engine_for
from ..engines.interface import LeaseEngine, Right
from ..errors import LeaseLost, LockError, RunEnded, TranscriptError
from ..holder import Holder
from .claim import HELD, OVER, WAITING, without
from .deadlock import WaitGraph, WaitSource, in_the_way
from .fence import Fence, current_fence
from .guard import NewBeside
from .messages import timed_out
from .open_file import Entry, FileClaim, FileQueue
from .open_files import OpenFiles
from .recovery import Recovery, drop_handle
from .waiting import failure

_live: weakref.WeakSet[Arbiter] = weakref.WeakSet()
_REPLACED_LIMIT = 100


def live_arbiters() -> list[Arbiter]:
    """Every arbiter of this process that is still referenced, if only by a lease; for leak checks."""
    return list(_live)


class Arbiter:
    """Grants rights on session files to claims, in order of arrival, to one event loop at a time.

    Not thread-safe but where a method says so.
    """

    def __init__(
        self,
        *,
        max_hold: float,
        grace: float,
        engine: EngineName | LeaseEngine,
        new_beside: NewBeside | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        self.max_hold = seconds("max_hold", max_hold)
        self.grace = seconds("grace", grace)
        flag("allow_network_fs", allow_network_fs)
        chosen = engine_for(engine)
        self.engine = "none" if chosen is None else chosen.name
        """The name of what excludes other processes."""
        self.files = OpenFiles(
            engine=chosen,
            grace=self.grace,
            new_beside=new_beside,
            allow_network_fs=allow_network_fs,
        )
        self._recovery = Recovery(self.files, self.grace)
        self.grants = self._recovery.grants
        self.wait_sources: list[WaitSource] = []
        """Each says for which tasks a task waits by other means than a right, so that rings through them are found."""
        self.on_loop_left: Callable[[], object] | None = None
        """Called when the event loop has ended with something held or waited for."""
        self.graph = WaitGraph(self.wait_sources)
        """Which task waits for which claim here."""
        self.loop: object = None
        self.new_scope: Callable[[], CancelScope] = CancelScope
        """Makes a cancel scope on the loop that the registry serves."""
        self.checkpoint: Callable[[], Awaitable[None]] = checkpoint_anywhere
        """A checkpoint on that loop."""
        self.effective_deadline: Callable[[], float] = current_effective_deadline
        """When the scopes around the running task end, on that loop's clock."""
        self._task_there: Callable[[], object] = current_task
        """Says which task of that loop runs."""
        prepare_events()
        if chosen is not None and not allow_network_fs:
            network.prepare()
        _live.add(self)

    def new_claim(
        self,
        holder: Holder | None = None,
        max_hold: float | None = None,
        fence: Fence | None = None,
        task: object = None,
        *,
        arrived_at: float | None = None,
        bound: float = math.inf,
    ) -> FileClaim:
        """A claim for the calling task, or for the run that `fence` belongs to, by default the calling task's.

        Args:
            task: the calling task, where that is known already.
            bound: the instant at which the enclosing scope ends, for a claim that lives in one.

        Raises:
            RuntimeError: no task runs, and no run is named: the right would have no holder.
        """
        if fence is None:
            fence = current_fence.get()
        identity = fence or task or current_task()
        if identity is None:  # all callbacks of asyncio would be one holder
            raise RuntimeError("a right belongs to the task that asks for it: ask for it in a task, not in a callback")
        return FileClaim(
            _clock.clock.now() if arrived_at is None else arrived_at,
            identity,
            fence,
            holder,
            self.max_hold if max_hold is None else max_hold,
            bound,
        )

    @_effects.change
    def acquire_nowait(self, path: str, right: Right, claim: FileClaim) -> bool:
        """Take a right if it is free and no claim waits for it. Returns whether; if not, nothing is left behind.

        Raises:
            TranscriptError: the file cannot be opened or locked.
        """
        entry = self._enter(path)
        claim.entry, claim.path = entry, path
        try:
            claim.queue = queue = entry.queue(right)
            taken = False
            if queue.holder is None:
                with queue.mutex:
                    taken = queue.try_ask(claim)
            if taken and claim.state is WAITING:
                self.grants.let_in(entry, queue)
            if taken and claim.state is WAITING:
                self.release(claim)
                if claim.failed is not None:
                    raise claim.failed
            elif taken:
                self.grants.now_held(claim)
                if claim.in_place or entry.is_at(path):
                    return True
                self.release(claim)
            self.files.drop_if_idle(entry)
        except BaseException as error:
            self._undo(entry, claim)
            if isinstance(error, Exception):
                raise failure(path, error) from error
            raise
        return False

    async def acquire(
        self,
        path: str,
        right: Right,
        claim: FileClaim,
        wait_timeout: float | None = None,
        *,
        suspend: bool = True,
        task: object = None,
        gives_up: bool = True,
    ) -> FileClaim:
        """Take a right, waiting in order of arrival. A checkpoint. Returns the claim that holds it.

        Args:
            wait_timeout: seconds to wait at most; `None` waits as long as it takes.
            suspend: `False` to suspend only if there is something to wait for.
            task: the calling task, whose block it is for; a wait that would close a ring through it is refused. Take it
                out of the claim's `tasks` before giving the claim back.
            gives_up: whether `wait_timeout` is a limit of this wait, after which its task goes on, and not the deadline
                of what it is for.

        That is `claim`, or the one that the same run holds already. Cancelled, nothing is held or waited for.

        Raises:
            LeaseTimeout: `wait_timeout` seconds passed.
            DeadlockError: the holder waits, over any number of steps, for something that the calling task holds, and
                no time limit of its own ends the wait.
            TranscriptError: the file cannot be opened or locked.
        """
        try:
            if current_loop() is not self.loop:
                self.bind()
            got = self.ask(path, right, claim, claim, task)
            if got.state is WAITING:
                return await self.wait(path, right, claim, got, wait_timeout, task, gives_up)
            if suspend:
                await self.checkpoint()
            return got
        except BaseException as error:
            self.give_up(claim, task, error)
            raise

    async def wait(
        self,
        path: str,
        right: Right,
        asked: FileClaim,
        got: FileClaim,
        wait_timeout: float | None,
        task: object,
        gives_up: bool = True,
    ) -> FileClaim:
        """Wait for what was asked for until it is had; the second half of `acquire`. A checkpoint."""
        asked_at, claim = _clock.clock.now(), asked
        give_up_at = math.inf if wait_timeout is None else asked_at + wait_timeout
        asked.waiter = me = task or current_task()
        try:
            while got.waits():
                limit = current_effective_deadline() if claim.scope_ends is None else claim.scope_ends
                self.graph.begin(me, got, -math.inf if gives_up and give_up_at < math.inf else limit)
                await self.grants.room.wait(path, got, give_up_at, asked)
                self.graph.end(me)
                if got.waits():
                    raise timed_out(path, got, _clock.clock.now() - asked_at)
                if got.fence is not None:
                    got.fence.check(path)  # the run may have ended while a task of it still waited
                if got.state is not HELD or got.entry is None or got.entry.is_at(path):
                    return got  # lost already: entering the block reports it
                # Another file was renamed into its place: start over there, with the same arrival.
                got.tasks = without(got.tasks, task)
                self.release(got, asked)
                self.files.forget(got.entry)
                claim = asked.got = got.again()
                asked.counts = True
                got = self.ask(path, right, claim, asked, task)
            return got
        except BaseException as error:
            self._give_up(asked, task, error)
            raise

    def give_up(self, asked: FileClaim, task: object, error: BaseException) -> None:
        """As `_give_up`, once more: it does what another exception has kept that from doing, if one came meanwhile."""
        _effects.recover()
        self._give_up(asked, task, error)

    def _give_up(self, asked: FileClaim, task: object, error: BaseException) -> None:
        """Give back what asking has led to, or stop waiting. What was done is not done again."""
        got = asked.got or asked
        if asked.counts:
            got.tasks = without(got.tasks, task)
        if asked.waiter is not None:
            self.graph.end(asked.waiter)
        if (sleeping := asked.sleeping) is not None:
            asked.sleeping = None
            with suppress(RuntimeError):  # it was left already
                sleeping.__exit__(type(error), error, error.__traceback__)
        self.release(got, asked)
        if got.entry is None:
            self._recovery.interrupted()  # a file may have been opened for it
        elif got.waits():
            self.grants.room.look_again()  # others wait for it, and this task may have been the one that looked

    def release(self, claim: FileClaim, asked: FileClaim | None = None) -> None:
        """Give a claim back, in whatever state it is. Synchronous: nothing can interrupt it.

        Args:
            asked: the claim that was asked with, so that a handle is given back once, however often this is called.

        Not even an exception that comes in the middle, a signal handler's for instance: what is left to do is done
        before the exception goes on. If another one comes meanwhile, the next call of the registry does it, or the
        steward has the event loop do it.
        """
        try:
            if running_loop() is not self.loop and self.loop is not None:
                self._release_elsewhere(claim, asked)
            elif claim.handles > 1:
                drop_handle(claim, asked)
            elif claim.state is not OVER and (asked is None or asked.counts):
                self.grants.give_back(claim)
        except BaseException:
            self._recovery.interrupted(claim, asked)
            raise

    @_effects.change
    def hand_over(self, claim: FileClaim, successor: FileClaim) -> bool:
        """Give a right back, and let a claim of this process have it at once if no other has waited for longer.

        The file stays open and locked then. Returns whether the successor holds; if not, nothing of it is left behind.
        """
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None or claim.state is not HELD or claim.handles > 1 or queue.waiting:
            self.release(claim)
            return False
        successor.entry, successor.path, successor.queue = entry, claim.path, queue
        held = False
        try:
            queue.ask(successor)
            self.release(claim)
            held = not successor.waits() and entry.is_at(successor.path)
        except TranscriptError:
            pass  # asking for the right anew reports it
        finally:
            if not held:
                self.release(successor)
        return held

    def end(self, fence: Fence, kind: type[LeaseLost] = RunEnded) -> None:
        """Refuse every later write of a run, and take away whatever its tasks still hold."""
        fence.close(kind)
        for held in list(fence.claims):
            held.end_with_run(kind)

    def end_by(self, fence: Fence, at: float) -> None:
        """Let a run write until `at` at most: what it holds is taken away then, what it writes later is refused.

        Callable from any thread.
        """
        now = _clock.clock.now()
        for held in fence.claims:
            held.catch_up(now)  # as the steward would: when a process goes on, either of them may come first
        fence.end_by(at)
        self.grants.steward.look_by(at)

    def end_claim_by(self, claim: FileClaim, at: float) -> None:
        """Cancel a claim's blocks now, and take away at `at` what they still hold."""
        if claim.state is HELD:
            claim.time.end_by(at)
            self.grants.steward.look_by(at)
            for scope in claim.scopes:
                cancel(scope)

    def look_by(self, at: float) -> None:
        """Have the steward look again at `at` at the latest: a run's fence got its instants."""
        self.grants.steward.look_by(at)

    def keepers(self, path: str, right: Right) -> Iterator[object]:
        """The tasks that have to go on before a right that is held here is given back, of a file by its usual name."""
        entry = self.files.known(path)
        queue = entry.queues.get(right) if entry is not None else None
        held = in_the_way(queue) if queue is not None else None
        return iter(()) if held is None else self.graph.keepers(held)

    def lose_all(self, reason: str) -> None:
        """Lose every right without unlocking it, as a forked child must: an unlock would act for its parent as well."""
        self._recovery.lose_all(reason)
        self.graph = WaitGraph(self.wait_sources)
        self.loop = None

    # Internals

    def _leave_loop(self) -> None:
        """The event loop has ended: forget its tasks, and see to what they have left."""
        if self.on_loop_left is not None:
            self.on_loop_left()
        self.loop = None
        self.graph = WaitGraph(self.wait_sources)
        self._recovery.leave_loop()

    @_effects.change
    def _release_elsewhere(self, claim: FileClaim, asked: FileClaim | None) -> None:
        """Give a claim back from elsewhere than its loop: a coroutine that its loop has left was collected just now."""
        if loop_has_ended(self.loop):
            self._leave_loop()
            self.grants.give_back(claim)
        else:
            self.grants.steward.post(partial(self.release, claim, asked))

    def _enter(self, path: str) -> Entry:
        if current_loop() is not self.loop:
            self.bind()
        if self.grants.steward.unfinished:
            self._recovery.finish()
        return self.files.get_or_open(path)

    def task_here(self) -> object:
        """The running task, on whose event loop the registry serves; `None` in a callback of asyncio.

        Raises:
            RuntimeError: as `bind`.
        """
        if current_loop() is not self.loop:
            self.bind()
        return self._task_there()

    def bind(self) -> None:
        """Serve the event loop that is running. The first use does so by itself, but has to be made in a task.

        Raises:
            RuntimeError: it serves another one, on which something is held or waited for.
        """
        loop = current_loop()
        if loop is self.loop:
            return
        if len(self.files) and not loop_has_ended(self.loop):
            raise RuntimeError("a LockRegistry serves one event loop at a time; make another one for this loop")
        if len(self.files):
            self._leave_loop()
        self.loop, self.new_scope = loop, scope_type()
        self.checkpoint, self.effective_deadline = checkpoint_of_loop(), deadline_of_loop()
        self._task_there = task_of_loop()
        self.grants.room.new_event = event_type()
        self.grants.steward.post = poster()
        self.grants.steward.look_by(_clock.clock.now())  # what it had posted to a loop that has ended was lost

    def ask(self, path: str, right: Right, claim: FileClaim, asked: FileClaim, task: object) -> FileClaim:
        """Take a right at once or join its queue; returns the claim to use: the first half of `acquire`.

        What is held at once is at `path` now. The registry has to serve the running loop: see `bind`. Call `give_up` if
        this raises, or anything that comes before `wait`.
        """
        if claim.fence is not None:
            claim.fence.check(path)  # a run that has ended takes nothing any more
        for _ in range(_REPLACED_LIMIT):
            if self.grants.steward.unfinished:
                self._recovery.finish()
            entry = self.files.get_or_open(path)
            claim.entry, claim.path = entry, path
            try:
                claim.queue = queue = entry.queues.get(right) or entry.queue(right)
                if queue.holder is None:
                    queue.mutex.acquire()
                    try:
                        got = queue.ask(claim)
                    finally:
                        queue.mutex.release()
                else:
                    # While a claim holds the right, joining and leaving the queue touch only fields of the loop's
                    # thread, so they skip the mutex: a hung write of a worker thread may have it, and the loop serves
                    # all other sessions.
                    got = queue.ask(claim)
                if got.state is WAITING:
                    if queue.holder is None or claim.supersedes:
                        self._join(entry, queue, claim, got)
                    if got.waits() or got is not claim:
                        break
                elif got is not claim:
                    break
                else:
                    self.grants.now_held(claim)
                # Between looking the file up and locking it, another may have been renamed into its place.
                if claim.in_place or (entry.fresh and self.engine == "none") or entry.is_at(path):
                    entry.fresh = False
                    break
                self.release(claim)
            except BaseException as error:
                self._undo(entry, claim)
                if isinstance(error, Exception) and not isinstance(error, LockError):
                    raise failure(path, error) from error
                raise
            self.files.forget(entry)
            claim = asked.got = claim.again()
        else:
            raise TranscriptError(f"{path} was replaced {_REPLACED_LIMIT} times while it was being locked", path=path)
        if task is not None:
            got.tasks += (task,)
        return got

    def _undo(self, entry: Entry, claim: FileClaim) -> None:
        """Asking has failed, or was interrupted anywhere: give back whatever it has got by then."""
        got = claim.got or claim
        try:
            self.release(got, claim)
            if entry.queues and any(queue.mutex.mine() for queue in entry.queues.values()):
                self._recovery.interrupted()
            self.files.drop_if_idle(entry)
        except BaseException:
            self._recovery.interrupted(got, claim)
            raise

    @_effects.change
    def _join(self, entry: Entry, queue: FileQueue, claim: FileClaim, got: FileClaim) -> None:
        """After a claim has joined a queue: let it in at once if possible, else have its queue looked after."""
        if claim.supersedes:
            self.grants.supersede(queue, got)
        self.grants.wake(self.grants.let_in(entry, queue))  # the first of the queue, which may be another claim
        if claim.failed is not None:
            raise failure(claim.path, claim.failed)
        self.grants.room.update(entry, queue)


def _after_fork() -> None:
    """A forked child has every descriptor and no thread: it must let go, without unlocking for its parent."""
    for arbiter in live_arbiters():
        arbiter.lose_all("the process was forked")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
