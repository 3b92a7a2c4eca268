"""The arbiter: who holds which right of which file, and who waits for it.

How it hangs together. `OpenFiles` has an `Entry` per file that is held or waited for, and nothing for all others. An
entry has a `FileQueue` per right; a queue orders `Claim`s. All decisions are synchronous methods of the queue, taken
under the entry's mutex on the event loop's thread; what they return is acted upon here.

Two helpers act beside it: the `WaitingRoom` looks after files that other processes hold, and the `Steward` ends what
overstays, from a thread, so that a frozen loop cannot keep a session.

A claim has no cancel scope: a scheduler, which asks the arbiter itself, owns the scope that its claim lives in; `Lease`
has one of its own.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial

from anyio import CancelScope, current_effective_deadline
from anyio.lowlevel import checkpoint

from .. import _clock, _effects, network
from .._events import log
from .._events import prepare as prepare_events
from .._loop import cancel, current_loop, current_task, loop_has_ended, poster, running_loop, scope_type
from ..checks import flag, seconds
from ..engines.choose import EngineName, engine_for
from ..engines.interface import LeaseEngine, Right
from ..errors import LeaseLost, LockError, Revoked, RunEnded, TranscriptError
from ..holder import Holder
from .claim import ClaimState, without
from .deadlock import WaitGraph, WaitSource, in_the_way, never_ending
from .fence import Fence, current_fence
from .guard import NewGuard
from .messages import left_while_writing, name_successor, superseded, timed_out
from .open_file import Entry, FileClaim, FileQueue
from .open_files import OpenFiles
from .steward import Steward
from .waiting import WaitingRoom, failure

_live: weakref.WeakSet[Arbiter] = weakref.WeakSet()
_REPLACED_LIMIT = 100
_UNCOVERED = nullcontext()
_AGAIN_S = 0.05
_A_WRITE_S = 0.02
"""What a release waits for a write of another thread; one that takes longer may hang."""


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
        new_guard: NewGuard | None = None,
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
            new_guard=new_guard,
            allow_network_fs=allow_network_fs,
        )
        self.room = WaitingRoom(self._now_held, self._let_in, self._interrupted)
        self.wait_sources: list[WaitSource] = []
        """Each says for which tasks a task waits by other means than a right, so that rings through them are found."""
        self.on_loop_left: Callable[[], object] | None = None
        """Called when the event loop has ended with something held or waited for."""
        self.observers: tuple[Callable[[FileClaim], object], ...] = ()
        """Told each claim that held its right and was given back, on the loop's thread. Must not raise."""
        self.graph = WaitGraph(self.wait_sources)
        self.steward = Steward(self._settle, self._finish)
        self.loop: object = None
        self.new_scope: Callable[[], CancelScope] = CancelScope
        """Makes a cancel scope on the loop that the registry serves."""
        self.granted = 0
        prepare_events()
        if chosen is not None and not allow_network_fs:
            network.prepare()
        _live.add(self)

    def new_claim(
        self,
        holder: Holder | None = None,
        max_hold: float | None = None,
        *,
        fence: Fence | None = None,
        arrived_at: float | None = None,
        bound: float = math.inf,
    ) -> FileClaim:
        """A claim for the calling task, or for the run that `fence` belongs to, by default the calling task's.

        Args:
            bound: the instant at which the enclosing scope ends, for a claim that lives in one.

        Raises:
            RuntimeError: no task runs, and no run is named: nothing says who would hold.
        """
        if fence is None:
            fence = current_fence.get()
        identity = current_task() if fence is None else fence
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
        """Take a right if nobody has it or waits for it. Returns whether; if not, nothing is left behind.

        Raises:
            TranscriptError: the file cannot be opened or locked.
        """
        entry = self._enter(path)
        claim.entry, claim.path = entry, path
        try:
            claim.queue = queue = entry.queue(right)
            with _covering(queue):
                taken = queue.try_ask(claim)
            if taken and claim.waits():
                self._let_in(entry, queue)
            if taken and claim.waits():
                self.release(claim)
                if claim.failed is not None:
                    raise claim.failed
            elif taken:
                self._now_held(claim)
                if entry.is_at(path):
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
            task: whose block it is for; whoever waits for that task in turn is refused. Take it out of the claim's
                `tasks` before giving the claim back.
            gives_up: whether `wait_timeout` is a limit of this wait, after which its task goes on, and not the deadline
                of what it is for.

        That is `claim`, or the one that the same run holds already. Cancelled, nothing is held or waited for.

        Raises:
            LeaseTimeout: `wait_timeout` seconds passed.
            DeadlockError: who has it waits, over any number of steps, for something that the calling task holds, and
                no time limit of its own ends the wait.
            TranscriptError: the file cannot be opened or locked.
        """
        try:
            got = self._ask(path, right, claim, claim)
            if task is not None:
                got.tasks = (*got.tasks, task)
            if got.waits():
                return await self._wait(path, right, claim, got, wait_timeout, task, gives_up)
            if suspend:
                await checkpoint()
            return got
        except BaseException as error:
            # Once more, for what came in the middle of giving up: then this does it, else there is nothing to do.
            _effects.recover()
            self._give_up(claim, task, error)
            raise

    async def _wait(
        self,
        path: str,
        right: Right,
        asked: FileClaim,
        got: FileClaim,
        wait_timeout: float | None,
        task: object,
        gives_up: bool,
    ) -> FileClaim:
        """Wait for what was asked for until it is had; the second half of `acquire`."""
        asked_at, claim = _clock.clock.now(), asked
        give_up_at = math.inf if wait_timeout is None else asked_at + wait_timeout
        asked.waiter = me = current_task()
        try:
            while got.waits():
                limit = current_effective_deadline() if claim.scope_ends is None else claim.scope_ends
                self.graph.begin(me, got, -math.inf if gives_up and give_up_at < math.inf else limit)
                await self.room.wait(path, got, give_up_at, asked)
                self.graph.end(me)
                if got.waits():
                    raise timed_out(path, got, _clock.clock.now() - asked_at)
                if got.fence is not None:
                    got.fence.check(path)  # the run may have ended while a task of it still waited
                if got.state is not ClaimState.HELD or got.entry is None or got.entry.is_at(path):
                    return got  # lost already: entering the block tells
                # Another file was renamed into its place: start over there, with the same arrival.
                got.tasks = without(got.tasks, task)
                self.release(got, asked)
                self.files.forget(got.entry)
                claim = asked.got = got.again()
                asked.counts = True
                got = self._ask(path, right, claim, asked)
                if task is not None:
                    got.tasks = (*got.tasks, task)
            await checkpoint()
            return got
        except BaseException as error:
            self._give_up(asked, task, error)
            raise

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
            self._interrupted()  # a file may have been opened for it
        elif got.waits():
            self.room.look_again()  # others wait for it, and this task may have been the one that looked

    @_effects.change
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
                _drop_handle(claim, asked)
            elif claim.state is not ClaimState.OVER and (asked is None or asked.counts):
                self._give_back(claim)
        except BaseException:
            self._interrupted(claim, asked)
            raise

    def end(self, fence: Fence, kind: type[LeaseLost] = RunEnded) -> None:
        """Refuse every later write of a run, and take away whatever its tasks still hold."""
        fence.close(kind)
        for held in list(fence.claims):
            held.end_with_run(kind)

    def _end_claim(self, claim: FileClaim, kind: type[LeaseLost]) -> None:
        assert claim.entry is not None
        path = claim.entry.path
        message = f"{claim.holder} has ended: what it still held of {path} is taken away"
        self.revoke(claim, kind(message, path=path, holder=claim.holder))

    def revoke(self, claim: FileClaim, error: LeaseLost) -> None:
        """Take a right away, on the loop's thread."""
        try:
            self.steward.revoke(claim, error)
        except BaseException:
            self._interrupted()
            raise

    def end_by(self, fence: Fence, at: float) -> None:
        """Let a run write until `at` at most: what it holds is taken away then, what it writes later is refused.

        Callable from any thread.
        """
        now = _clock.clock.now()
        for held in fence.claims:
            held.catch_up(now)  # as the steward would: when a process goes on, either of them may come first
        fence.end_by(at)
        self.steward.look_by(at)

    def end_claim_by(self, claim: FileClaim, at: float) -> None:
        """Cancel a claim's blocks now, and take away at `at` what they still hold."""
        if claim.state is ClaimState.HELD:
            claim.end_by(at)
            self.steward.look_by(at)
            for scope in claim.scopes:
                cancel(scope)

    def look_by(self, at: float) -> None:
        """Have the steward look again at `at` at the latest: a run's fence got its instants."""
        self.steward.look_by(at)

    def never_ending(self, asking: object) -> dict[object, list[object]]:
        """All that a task, or whatever else `wait_sources` know, waits for in vain, with what that needs in turn.

        It has `asking` itself exactly when that can never go on.
        """
        return never_ending(asking, self.graph.needs)

    def waits(self, task: object) -> bool:
        """Whether a task waits for a right here, or for anything that `wait_sources` tell of."""
        return self.graph.waits(task)

    def needs(self, task: object) -> Iterator[object]:
        """The tasks that have to go on before a task gets the right that it waits for here.

        Empty when it waits for none, another process has it, or a time limit of its own ends the wait.
        """
        return self.graph.rights_of(task)

    def keepers(self, path: str, right: Right) -> Iterator[object]:
        """The tasks that have to go on before a right that is held here is given back, of a file by its usual name."""
        entry = self.files.known(path)
        queue = entry.queues.get(right) if entry is not None else None
        held = in_the_way(queue) if queue is not None else None
        return iter(()) if held is None else self.graph.keepers(held)

    def lose_all(self, reason: str) -> None:
        """Lose every right without unlocking it, as a forked child must: an unlock would act for its parent as well."""
        for entry in list(self.files):
            for queue in entry.queues.values():
                claim = queue.holder
                if claim is not None:
                    message = f"{claim.holder} lost {entry.path}: {reason}"
                    claim.state = ClaimState.LOST
                    claim.lost = Revoked(message, path=entry.path, holder=claim.holder)
        self.files.abandon()
        self.room = WaitingRoom(self._now_held, self._let_in, self._interrupted)
        self.graph = WaitGraph(self.wait_sources)
        self.steward = Steward(self._settle, self._finish)
        self.loop = None

    # Internals

    def _give_back(self, claim: FileClaim) -> None:
        """Give the last handle of a claim back. Interrupted by an exception, it may be called again, and finishes."""
        entry, queue = claim.entry, claim.queue
        if entry is None:
            return
        if queue is None:
            self.files.drop_if_idle(entry)
            return
        if claim.waits() and queue.holder is not None and queue.holder is not claim:
            queue.withdraw(claim)  # without the mutex: see `_covering`
            self.room.update(entry, queue)
        elif queue.mutex.take(_A_WRITE_S) or self._freed(queue):
            woken = None
            try:
                queue.withdraw(claim)
                if queue.guard is None:
                    woken = queue.pass_on()
            finally:
                queue.mutex.release()
            self.steward.held.pop(claim, None)
            if claim.fence is not None:
                claim.fence.claims.pop(claim, None)
            if queue.guard is None:
                self.room.update(entry, queue)
                if woken is not None:
                    self._wake(woken)
            else:
                self._go_on(entry, queue)
        else:
            # A thread's write hangs in the kernel, and the loop has other sessions to serve: whoever has the mutex
            # finishes this on leaving, as it does for the steward.
            self.steward.revoke(claim, left_while_writing(claim))
            return
        if claim.acquired_at:
            for observer in self.observers:
                observer(claim)
        self.files.drop_if_idle(entry)
        if queue.trouble is not None or entry.notes:
            self.report(entry, queue)

    def _go_on(self, entry: Entry, queue: FileQueue) -> None:
        """After a right was given up: take its guard down, unlock or pass on, and wake whoever has the right now.

        It goes by what the queue says alone, so it can be done again.
        """
        guard, woken = queue.guard, None
        if guard is not None and queue.guarded is not None and queue.guarded is not queue.holder:
            with queue.mutex:
                ours = queue.relock()
            if not ours:
                guard.abandon()
            elif (trouble := guard.leave()) is not None:
                entry.note("sidecar_left", path=queue.guarded.path, error=str(trouble))
            queue.guarded = None
        with queue.mutex:
            woken = queue.pass_on()
        if guard is not None and not queue.locked:
            guard.forget()
        if woken is None:
            woken = self._let_in(entry, queue)
        self.room.update(entry, queue)
        if woken is not None:
            self._wake(woken)

    @staticmethod
    def _freed(queue: FileQueue) -> bool:
        """Take the mutex if it is this thread's: nothing that has it gives back a right, so it was left locked."""
        ours = queue.mutex.mine()
        queue.mutex.free()
        return ours and queue.mutex.take()

    # What an exception leaves undone

    def _interrupted(self, claim: FileClaim | None = None, asked: FileClaim | None = None) -> None:
        """An exception came in the middle of a change: finish it.

        Args:
            claim: whose last handle, or one of several, was to be given back.
        """
        self.steward.unfinished = True
        if claim is not None:
            if claim.handles > 1:
                _drop_handle(claim, asked)
            elif asked is None or asked.counts:
                claim.given_up = True
        self._finish()

    @_effects.change
    def _finish(self) -> None:
        """Do what an exception has left undone, if one has. It may have come anywhere, so every queue is looked at.

        Each step goes by the state alone, and is harmless where nothing is left to do.
        """
        if not self.steward.unfinished:
            return
        self.steward.unfinished = False  # first: what is called from here may use the registry
        try:
            self.room.forget_stale()
            for entry in list(self.files):
                for queue in list(entry.queues.values()):
                    queue.mutex.free()
                    self._finish_queue(entry, queue)
                self.files.drop_if_idle(entry)
            for claim in list(self.steward.held):
                if claim.state is ClaimState.OVER:
                    self.steward.held.pop(claim, None)
                    if claim.fence is not None:
                        claim.fence.claims.pop(claim, None)
            self.room.look_again()
            self.steward.look_by(_clock.clock.now())  # an alarm may not have been set
        except BaseException as error:
            self.steward.unfinished = True
            self.steward.look_by(_clock.clock.now() + _AGAIN_S)
            if not isinstance(error, Exception):
                raise

    def _release_elsewhere(self, claim: FileClaim, asked: FileClaim | None) -> None:
        """Give a claim back from elsewhere than its loop: a coroutine that its loop has left was collected just now."""
        if loop_has_ended(self.loop):
            self._leave_loop()
            self._give_back(claim)
        else:
            self.steward.post(partial(self.release, claim, asked))

    def _leave_loop(self) -> None:
        """The event loop has ended, and left the rights that its tasks held or waited for.

        Who waited has gone. What is held is taken away at its deadline and grace, as ever, since a thread may still
        write; without a deadline, now.
        """
        if self.on_loop_left is not None:
            self.on_loop_left()
        self.loop = None
        self.graph = WaitGraph(self.wait_sources)
        self.room = WaitingRoom(self._now_held, self._let_in, self._interrupted)
        for entry in list(self.files):
            entry.pins = 0
            for queue in entry.queues.values():
                for claim in queue.waiting:
                    claim.changed, claim.on_lost, claim.handles, claim.given_up = None, None, 1, True
                holder = queue.holder
                if holder is None:
                    continue
                holder.scopes, holder.tasks, holder.changed, holder.on_lost, holder.handles = (), (), None, None, 1
                if holder.state is ClaimState.HELD and holder.next_due() == math.inf:
                    message = f"{holder.holder} lost {entry.path}: its event loop has ended"
                    self.steward.take(holder, Revoked(message, path=entry.path, holder=holder.holder))
        self.steward.unfinished = True
        self._finish()

    def _finish_queue(self, entry: Entry, queue: FileQueue) -> None:
        for claim in [*queue.waiting, queue.holder]:
            if claim is not None and claim.given_up:
                self._give_back(claim)
        holder = queue.holder
        if holder is not None and holder.lost is not None:
            self.steward.take(holder, holder.lost)  # it was lost already, or is now
            if holder.state is ClaimState.LOST:
                self._do_settle(holder)
        if queue.mutex.locked():
            return  # a thread writes: whoever holds the right does so still
        self._go_on(entry, queue)
        holder = queue.holder
        if holder is not None and holder.state is ClaimState.HELD and holder not in self.steward.held:
            self._now_held(holder)

    def _let_in(self, entry: Entry, queue: FileQueue) -> FileClaim | None:
        """Let the admitted claim hold if its guard allows it; returns whom to wake."""
        first, guard = queue.admitted, queue.guard
        if first is None or guard is None:
            return None
        queue.guarded = first
        try:
            # A file that was replaced has no guard any more: what stands beside the name belongs to the new one. Who
            # waited gets the right all the same, sees that it is worth nothing, and starts over.
            first.in_place = entry.is_at(first.path)
            entered = not first.in_place or guard.enter(first, self.grace)
        except Exception as error:
            if not isinstance(error, (OSError, LockError)) and not first.interrupted:
                first.interrupted = True
                raise  # a signal handler's, it seems: it goes to the code that it has interrupted, and this is repeated
            # Whatever it is, it is the waiter's: whoever makes room for it must not stumble over it.
            first.failed = error
            queue.next_poll = math.inf
            return first
        if not entered:
            queue.next_poll, queue.guarded = guard.next_try, None
            return None
        with queue.mutex:
            return queue.hold(first)

    def _wake(self, woken: FileClaim | None) -> None:
        """Tell a claim that it now holds its right, or that it cannot go on waiting."""
        if woken is None:
            return
        if woken.state is ClaimState.HELD:
            self._now_held(woken)
        elif woken.changed is not None:
            woken.changed.set()

    def _enter(self, path: str) -> Entry:
        self.bind()
        if self.steward.unfinished:
            self._finish()
        return self.files.get_or_open(path)

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
        self.steward.post = poster()
        self.steward.look_by(_clock.clock.now())  # what it had posted to a loop that has ended was lost

    @_effects.change
    def _ask(self, path: str, right: Right, claim: FileClaim, asked: FileClaim) -> FileClaim:
        """Take a right at once or join its queue; returns the claim to use. What is held at once is at `path` now."""
        if claim.fence is not None:
            claim.fence.check(path)  # a run that is over takes nothing any more
        for _ in range(_REPLACED_LIMIT):
            entry = self._enter(path)
            claim.entry, claim.path = entry, path
            try:
                claim.queue = queue = entry.queue(right)
                with _covering(queue):
                    got = queue.ask(claim)
                if got.waits():
                    self._join(entry, queue, claim, got)
                    if got.waits() or got is not claim:
                        return got
                elif got is not claim:
                    return got
                else:
                    self._now_held(claim)
                # Between looking the file up and locking it, another may have been renamed into its place.
                if claim.in_place or (self.engine == "none" and entry.fresh) or entry.is_at(path):
                    entry.fresh = False
                    return claim
                self.release(claim)
            except BaseException as error:
                self._undo(entry, claim)
                if isinstance(error, Exception) and not isinstance(error, LockError):
                    raise failure(path, error) from error
                raise
            self.files.forget(entry)
            claim = asked.got = claim.again()
        raise TranscriptError(f"{path} was replaced {_REPLACED_LIMIT} times while it was being locked", path=path)

    def _undo(self, entry: Entry, claim: FileClaim) -> None:
        """Asking has failed, or was interrupted anywhere: give back whatever it has got by then."""
        got = claim.got or claim
        try:
            self.release(got, claim)
            if entry.queues and any(queue.mutex.mine() for queue in entry.queues.values()):
                self._interrupted()
            self.files.drop_if_idle(entry)
        except BaseException:
            self._interrupted(got, claim)
            raise

    def _join(self, entry: Entry, queue: FileQueue, claim: FileClaim, got: FileClaim) -> None:
        """After a claim has joined a queue: let it in at once if that can be, else see that somebody looks after it."""
        if claim.supersedes:
            self._supersede(queue, got)
        self._wake(self._let_in(entry, queue))  # whoever is first: that may be another one
        if claim.failed is not None:
            raise failure(claim.path, claim.failed)
        self.room.update(entry, queue)

    def report(self, entry: Entry, queue: FileQueue | None = None) -> None:
        """Log what went wrong while the mutex was held."""
        if queue is not None and queue.trouble is not None:
            entry.note("unlock_failed", path=entry.path, right=queue.right.name.lower(), error=str(queue.trouble))
            queue.trouble = None
        if entry.notes:
            notes, entry.notes = entry.notes, ()
            for event, fields in notes:
                log(event, level="warning", **fields)

    def _now_held(self, claim: FileClaim) -> None:
        if claim.fence is not None:
            claim.fence.claims[claim] = None
            claim.on_run_end = self._end_claim
        if claim.changed is not None:
            claim.changed.set()
        self.steward.watch(claim)  # last, but for what is counted: by that it is known to have been done
        self.granted += 1

    @_effects.change
    def _settle(self, claim: FileClaim) -> None:
        """After a right was taken away: tell the block, let the next one in, and log it. On the loop's thread."""
        try:
            self._do_settle(claim)
        except BaseException:
            self._interrupted()
            raise

    def _do_settle(self, claim: FileClaim) -> None:
        error = claim.lost
        assert error is not None and claim.entry is not None
        if claim.settled:
            return  # it was done when an exception was made up for, before what the steward had posted came
        late_s, _ = claim.late_s()
        claim.handles = 1
        for scope in claim.scopes:
            cancel(scope)
        if claim.state is not ClaimState.OVER:
            self._give_back(claim)
        claim.settled = True
        log(
            "lease_revoked",
            level="warning",
            path=claim.entry.path,
            epoch=claim.epoch,
            holder=str(claim.holder),
            overstayed_s=round(late_s, 3),
            reason=str(error),
        )
        name_successor(claim)
        if claim.on_lost is not None:
            claim.on_lost(error)

    def _supersede(self, queue: FileQueue, winner: FileClaim) -> None:
        """Take the right from who holds it here, for a claim that waits at the head of the queue."""
        loser = queue.holder
        if loser is not None and self.steward.take(loser, superseded(winner.path, loser, winner)):
            self._settle(loser)


def _drop_handle(claim: FileClaim, asked: FileClaim | None) -> None:
    """Give back one of several handles, but none twice."""
    if asked is None:
        claim.handles -= 1
    elif asked.counts:
        asked.counts, claim.handles = False, claim.handles - 1  # together: no exception comes in between


def _covering(queue: FileQueue) -> AbstractContextManager[object]:
    """What to ask for a right in: the queue's mutex, unless somebody here holds the right.

    Then who comes and goes changes only what this thread alone looks at, and must not wait: a worker thread whose
    write hangs in the kernel has the mutex, and the loop serves all other sessions.
    """
    return queue.mutex if queue.holder is None else _UNCOVERED


def _after_fork() -> None:
    """A forked child has every descriptor and no thread: it must let go, without unlocking for its parent."""
    for arbiter in list(_live):
        arbiter.lose_all("the process was forked")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
