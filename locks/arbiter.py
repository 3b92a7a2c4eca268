"""The arbiter: who holds which right of which file, and who waits for it.

How it hangs together. `OpenFiles` has an `Entry` per file that is held or waited for, and nothing for all others. An
entry has a `RightQueue` per right; a queue orders `Claim`s. All decisions are synchronous methods of the queue, taken
under the entry's mutex on the event loop's thread; what they return is acted upon here.

Two helpers act beside it: the `WaitingRoom` looks after files that other processes hold, and the `Steward` ends what
overstays, from a thread, so that a frozen loop cannot keep a session.

A claim has no cancel scope. This face is for schedulers, which own the scope that a claim lives in; `LockRegistry` adds
the one with `async with`.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

from anyio import CancelScope, current_effective_deadline
from anyio.lowlevel import EventLoopToken, checkpoint, current_token

from . import _clock, _effects, network
from ._events import log
from ._events import prepare as prepare_events
from ._loop import current_loop, current_task, poster, scope_type
from ._os import FileId
from .checks import flag, seconds
from .claim import Claim, ClaimState, without
from .deadlock import WaitGraph, WaitSource, in_the_way, never_ending, tasks_of
from .engines.choose import EngineName, engine_for
from .engines.seam import LeaseEngine, Right
from .entry import Entry
from .errors import LeaseLost, LockError, Revoked, RunEnded, TranscriptError
from .explain import left_while_writing, name_successor, superseded, timed_out
from .files import OpenFiles
from .guards import Manners
from .holder import Fence, Holder, current_fence
from .queue import RightQueue
from .steward import Steward
from .waiting import WaitingRoom, failure

_live: weakref.WeakSet[Arbiter] = weakref.WeakSet()
_REPLACED_LIMIT = 100
_UNCOVERED = nullcontext()
_A_WRITE_S = 0.02
"""What a release waits for a write of another thread; one that takes longer may hang."""


def live_arbiters() -> list[Arbiter]:
    """Every arbiter of this process that is still referenced."""
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
        sidecar: bool = False,
        yield_to_foreign: bool | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        self.max_hold = seconds("max_hold", max_hold)
        self.grace = seconds("grace", grace)
        flag("sidecar", sidecar)
        flag("yield_to_foreign", yield_to_foreign, none=True)
        flag("allow_network_fs", allow_network_fs)
        chosen = engine_for(engine)
        self.engine = "none" if chosen is None else chosen.name
        """The name of what excludes other processes."""
        self._files = OpenFiles(
            engine=chosen,
            grace=self.grace,
            manners=Manners(yield_to_foreign) if sidecar else None,
            allow_network_fs=allow_network_fs,
        )
        self._room = WaitingRoom(self._now_held, self._let_in)
        self.wait_sources: list[WaitSource] = []
        """Each says for which tasks a task waits by other means than a right, so that rings through them are found."""
        self.observers: tuple[Callable[[Claim], object], ...] = ()
        """Told each claim that held its right and was given back, on the loop's thread. Must not raise."""
        self._waits = WaitGraph(self.wait_sources)
        self._steward = Steward(self._settle)
        self._loop: object = None
        self._token: EventLoopToken | None = None
        self.new_scope: Callable[[], CancelScope] = CancelScope
        """Makes a cancel scope on the loop that the registry serves."""
        self._granted = 0
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
    ) -> Claim:
        """A claim for the calling task, or for the run that `fence` belongs to, by default the calling task's.

        Args:
            bound: the instant at which the enclosing scope ends, for a claim that lives in one.
        """
        if fence is None:
            fence = current_fence.get()
        return Claim(
            _clock.clock.now() if arrived_at is None else arrived_at,
            current_task() if fence is None else fence,
            fence,
            holder,
            self.max_hold if max_hold is None else max_hold,
            bound,
        )

    @_effects.change
    def acquire_nowait(self, path: str, right: Right, claim: Claim) -> bool:
        """Take a right if nobody has it or waits for it. Returns whether; if not, nothing is left behind.

        Raises:
            TranscriptError: the file cannot be opened or locked.
        """
        entry = self._enter(path)
        claim.entry, claim.path = entry, path
        try:
            queue = entry.queue(right)
            with _covering(queue):
                taken = queue.try_ask(claim)
        except Exception as error:
            self._files.drop_if_idle(entry)
            raise failure(path, error) from error
        if taken and claim.waits():
            self._let_in(entry, queue)
            if claim.waits():
                self.release(claim)
                if claim.failed is not None:
                    raise failure(path, claim.failed)
                return False
        if taken:
            self._now_held(claim)
            try:
                if entry.is_at(path):
                    return True
            except BaseException:
                self.release(claim)
                raise
            self.release(claim)
        self._files.drop_if_idle(entry)
        return False

    async def acquire(
        self,
        path: str,
        right: Right,
        claim: Claim,
        wait_timeout: float | None = None,
        *,
        suspend: bool = True,
        task: object = None,
        gives_up: bool = True,
    ) -> Claim:
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
        asked_at = _clock.clock.now()
        give_up_at = math.inf if wait_timeout is None else asked_at + wait_timeout
        while True:
            got = self._ask(path, right, claim)
            if task is not None:
                got.tasks = (*got.tasks, task)
            try:
                if not got.waits():
                    if suspend:
                        await checkpoint()
                    return got
                me = current_task()
                limit = current_effective_deadline() if claim.scope_ends is None else claim.scope_ends
                self._waits.begin(me, got, -math.inf if gives_up and give_up_at < math.inf else limit)
                try:
                    await self._room.wait(path, got, give_up_at)
                finally:
                    self._waits.end(me)
                if got.waits():
                    raise timed_out(path, got, _clock.clock.now() - asked_at)
                if got.fence is not None:
                    got.fence.check(path)  # the run may have ended while a task of it still waited
                if got.state is not ClaimState.HELD or got.entry is None or got.entry.is_at(path):
                    return got  # lost already: entering the block tells
            except BaseException:
                got.tasks = without(got.tasks, task)
                self.release(got)
                raise
            # Another file was renamed into its place: start over there, with the same arrival.
            got.tasks = without(got.tasks, task)
            self.release(got)
            self._files.forget(got.entry)
            claim = claim.again()

    @_effects.change
    def release(self, claim: Claim) -> None:
        """Give a claim back, in whatever state it is. Synchronous: nothing can interrupt it."""
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None or claim.state is ClaimState.OVER:
            return
        if claim.handles > 1:
            claim.handles -= 1
            return
        if claim.waits() and queue.holder is not None:
            queue.withdraw(claim)  # without the mutex: see `_covering`
            woken = None
        elif queue.mutex.acquire(blocking=False) or queue.mutex.acquire(timeout=_A_WRITE_S):
            woken = self._let_go(entry, queue, claim)
        else:
            # A thread's write hangs in the kernel, and the loop has other sessions to serve: whoever has the mutex
            # finishes this on leaving, as it does for the steward.
            self._steward.revoke(claim, left_while_writing(claim))
            return
        self._steward.held.pop(claim, None)
        if claim.fence is not None:
            claim.fence.claims.pop(claim, None)
        self._room.update(entry, queue)
        self._wake(woken)
        for observer in self.observers:
            if claim.acquired_at:
                observer(claim)
        self._files.drop_if_idle(entry)
        if queue.trouble is not None or entry.notes:
            self._report(entry, queue)

    def end(self, fence: Fence, kind: type[LeaseLost] = RunEnded) -> None:
        """Refuse every later write of a run, and take away whatever its tasks still hold."""
        fence.close(kind)
        for claim in list(fence.claims):
            assert claim.entry is not None
            path = claim.entry.path
            message = f"{claim.holder} has ended: what it still held of {path} is taken away"
            self._steward.revoke(claim, kind(message, path=path, holder=claim.holder))

    def end_by(self, fence: Fence, at: float) -> None:
        """Let a run write until `at` at most: what it holds is taken away then, what it writes later is refused.

        Callable from any thread.
        """
        now = _clock.clock.now()
        for claim in fence.claims:
            if claim.lost is None and now - claim.next_due() >= claim.suspended_after():
                claim.forgive(now)  # as the steward would: when a process goes on, either of them may come first
        fence.end_by(at)
        self._steward.look_by(at)

    def end_claim_by(self, claim: Claim, at: float) -> None:
        """Cancel a claim's blocks now, and take away at `at` what they still hold."""
        if claim.state is ClaimState.HELD:
            claim.end_by(at)
            self._steward.look_by(at)
            for scope in claim.scopes:
                scope.cancel()

    def look_by(self, at: float) -> None:
        """Have the steward look again at `at` at the latest: a run's fence got its instants."""
        self._steward.look_by(at)

    def blockers(self, task: object) -> tuple[object, ...]:
        """The tasks that have to go on before a task gets the right that it waits for here.

        Empty when it waits for none, or another process has it.
        """
        found = self._waits.in_the_way(task)
        return () if found is None else tasks_of(found[1])

    def never_ending(self, asking: object) -> dict[object, list[object]]:
        """All that a task, or whatever else `wait_sources` know, waits for in vain, with what that needs in turn.

        It has `asking` itself exactly when that can never go on.
        """
        return never_ending(asking, self._waits.needs)

    def waits(self, task: object) -> bool:
        """Whether a task waits for a right here, or for anything that `wait_sources` tell of."""
        return self._waits.waits(task)

    def needs(self, task: object) -> Iterator[object]:
        """The tasks that have to go on before a task gets the right that it waits for here.

        As `blockers`, but none where the wait ends by a time limit of its own.
        """
        return self._waits.rights_of(task)

    def keepers(self, path: str, right: Right) -> Iterator[object]:
        """The tasks that have to go on before a right that is held here is given back, of a file by its usual name."""
        entry = self._files.known(path)
        queue = entry.queues.get(right) if entry is not None else None
        held = in_the_way(queue) if queue is not None else None
        return iter(()) if held is None else self._waits.keepers(held)

    def waiting_for(self, task: object) -> tuple[str, str] | None:
        """The path that a task waits for here, and who holds it, in words; `None` where `blockers` knows nobody."""
        found = self._waits.in_the_way(task)
        return None if found is None else (found[0].path, str(found[1].holder))

    def moved(self, entry: Entry, fd: int, file_id: FileId) -> None:
        """Note that an entry goes on with the file that was renamed into its place."""
        self._files.moved(entry, fd, file_id)

    def lose_all(self, reason: str) -> None:
        """Lose every right without unlocking it, as a forked child must: an unlock would act for its parent as well."""
        for entry in list(self._files):
            for queue in entry.queues.values():
                claim = queue.holder
                if claim is not None:
                    message = f"{claim.holder} lost {entry.path}: {reason}"
                    claim.state = ClaimState.LOST
                    claim.lost = Revoked(message, path=entry.path, holder=claim.holder)
        self._files.abandon()
        self._room = WaitingRoom(self._now_held, self._let_in)
        self._waits = WaitGraph(self.wait_sources)
        self._steward = Steward(self._settle)
        self._loop = None

    # Internals

    def _let_go(self, entry: Entry, queue: RightQueue, claim: Claim) -> Claim | None:
        """Fence, then let the guard go, then unlock or pass on; returns whom to wake. Frees the mutex that is held."""
        guard = queue.guard
        try:
            state = queue.withdraw(claim)
            if guard is None:
                return queue.pass_on()
            held = state in (ClaimState.HELD, ClaimState.LOST)
            ours = held and queue.relock()
        finally:
            queue.mutex.release()
        if ours:
            if (trouble := guard.leave()) is not None:
                entry.note("sidecar_left", path=claim.path, error=str(trouble))
        elif held:
            guard.abandon()
        with queue.mutex:
            woken = queue.pass_on()
        if not queue.locked:
            guard.forget()
        return self._let_in(entry, queue) if woken is None else woken

    def _let_in(self, entry: Entry, queue: RightQueue) -> Claim | None:
        """Let the admitted claim hold if its guard allows it; returns whom to wake."""
        first, guard = queue.admitted, queue.guard
        if first is None or guard is None:
            return None
        try:
            # A file that was replaced has no guard any more: what stands beside the name belongs to the new one. Who
            # waited gets the right all the same, sees that it is worth nothing, and starts over.
            first.in_place = entry.is_at(first.path)
            entered = not first.in_place or guard.enter(first, self.grace)
        except Exception as error:
            # Whatever it is, it is the waiter's: whoever makes room for it must not stumble over it.
            first.failed = error
            queue.next_poll = math.inf
            return first
        if not entered:
            queue.next_poll = guard.next_try
            return None
        with queue.mutex:
            return queue.hold(first)

    def _wake(self, woken: Claim | None) -> None:
        """Tell a claim that it now holds its right, or that it cannot go on waiting."""
        if woken is None:
            return
        if woken.state is ClaimState.HELD:
            self._now_held(woken)
        elif woken.changed is not None:
            woken.changed.set()

    def _enter(self, path: str) -> Entry:
        self.bind()
        return self._files.enter(path)

    def bind(self) -> None:
        """Serve the event loop that is running. The first use does so by itself, but has to be made in a task.

        Raises:
            RuntimeError: it serves another one, on which something is held or waited for.
        """
        loop = current_loop()
        if loop is self._loop:
            return
        if len(self._files):
            raise RuntimeError("a LockRegistry serves one event loop at a time; make another one for this loop")
        self._loop, self._token, self.new_scope = loop, current_token(), scope_type()
        self._steward.post = poster()

    @_effects.change
    def _ask(self, path: str, right: Right, claim: Claim) -> Claim:
        """Take a right at once or join its queue; returns the claim to use. What is held at once is at `path` now."""
        if claim.fence is not None:
            claim.fence.check(path)  # a run that is over takes nothing any more
        for _ in range(_REPLACED_LIMIT):
            entry = self._enter(path)
            claim.entry, claim.path = entry, path
            try:
                queue = entry.queue(right)
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
            except BaseException as error:
                self.release(claim)
                self._files.drop_if_idle(entry)
                if isinstance(error, Exception) and not isinstance(error, LockError):
                    raise failure(path, error) from error
                raise
            self.release(claim)
            self._files.forget(entry)
            claim = claim.again()
        raise TranscriptError(f"{path} was replaced {_REPLACED_LIMIT} times while it was being locked", path=path)

    def _join(self, entry: Entry, queue: RightQueue, claim: Claim, got: Claim) -> None:
        """After a claim has joined a queue: let it in at once if that can be, else see that somebody looks after it."""
        if claim.supersedes:
            self._supersede(queue, got)
        self._wake(self._let_in(entry, queue))  # whoever is first: that may be another one
        if claim.failed is not None:
            raise failure(claim.path, claim.failed)
        self._room.update(entry, queue)

    def _report(self, entry: Entry, queue: RightQueue | None = None) -> None:
        """Log what went wrong while the mutex was held."""
        if queue is not None and queue.trouble is not None:
            entry.note("unlock_failed", path=entry.path, right=queue.right.name.lower(), error=str(queue.trouble))
            queue.trouble = None
        if entry.notes:
            notes, entry.notes = entry.notes, ()
            for event, fields in notes:
                log(event, level="warning", **fields)

    def _now_held(self, claim: Claim) -> None:
        self._granted += 1
        if claim.fence is not None:
            claim.fence.claims[claim] = None
        if claim.changed is not None:
            claim.changed.set()
        self._steward.watch(claim)

    @_effects.change
    def _settle(self, claim: Claim) -> None:
        """After a right was taken away: tell the block, log it, and let the next one in. On the loop's thread."""
        error = claim.lost
        assert error is not None and claim.entry is not None
        log(
            "lease_revoked",
            level="warning",
            path=claim.entry.path,
            epoch=claim.epoch,
            holder=str(claim.holder),
            overstayed_s=round(claim.late_s()[0], 3),
            reason=str(error),
        )
        for scope in claim.scopes:
            scope.cancel()
        claim.handles = 1
        self.release(claim)
        name_successor(claim)
        if claim.on_lost is not None:
            claim.on_lost(error)

    def _supersede(self, queue: RightQueue, winner: Claim) -> None:
        """Take the right from who holds it here, for a claim that waits at the head of the queue."""
        loser = queue.holder
        if loser is not None and self._steward.take(loser, superseded(winner.path, loser, winner)):
            self._settle(loser)


def _covering(queue: RightQueue) -> AbstractContextManager[object]:
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
