"""The registry, the users' face: leases, appends and reads on session files."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Literal

from .checks import flag, instance_of, seconds
from .engines.choose import EngineName
from .engines.interface import LeaseEngine, Right
from .errors import Revoked
from .holder import Holder
from .lease import Lease
from .paths import checked_path
from .rights.arbiter import Arbiter
from .rights.arbiter import live_arbiters as live_arbiters
from .rights.census import count, held_rights
from .rights.claim import HELD
from .rights.fence import Fence, current_fence
from .sidecar.guards import ForeignPolicy
from .statistics import HeldRight, RegistryStatistics
from .transcript.encoding import encode_all
from .transcript.records import OnError, Position, Records
from .transcript.store import Durability, FileStore


class LockRegistry:
    """Hands out turn and write leases on session files, to one event loop at a time.

    While something is held or waited for on one event loop, use on another raises `RuntimeError`, also while the two
    share a thread (trio as a guest of asyncio): make a registry for each, which exclude each other. A loop that was
    closed with something held leaves it: it is taken away at its deadline and grace, or at once if it has no deadline,
    and the next loop goes on.

    Args:
        max_hold: seconds after which a lease's block is cancelled; with 0 at its first suspension, with `inf` never. A
            run's turn is limited by the run instead.
        grace: seconds that a cancelled block may take before its right is taken away.
        sidecar: say in `<file>.lock` who has the write lease, and honour what foreign gateways write there; say in
            `<file>.turn` who conducts, once that has lasted for 50 ms. `"auto"` leaves the lock file out for sessions
            that a supervisor names in its own way: no foreign gateway knows them. About 60 µs per write lease. With
            `engine="none"` nothing is written or honoured.
        engine: what excludes other processes: `"kernel"`, Linux open-file-description locks; `"filelock"`, the library
            of that name, elsewhere, with weaker promises; `"none"`, nothing, so it keeps apart what this process does,
            over all its registries with `"none"`; or a `LeaseEngine`. `"auto"` is the strongest that works here.
        durability: what an append that has returned survives: `"process"`, the death of this process; `"sync"`, a power
            cut too, for an `fdatasync` that appends of a file share.
        yield_to_foreign: leave foreign gateways a gap of 60 ms before each of our lock files, since they poll without a
            queue; `None` does so once one was seen.
        allow_network_fs: take sessions on network file systems too, where locks of this host exclude no other host.

    Raises:
        ValueError: an option is not what it may be, or the engine does not work here.

    Schedulers, such as the floor above, own the scopes that claims live in: they ask `arbiter` and `store`, which take
    what they get as it is, and `lease_for` (see `lowlevel`).

    Not thread-safe but where a method says so. Needs no closing: an idle registry holds no file and no thread of its
    own.
    """

    def __init__(
        self,
        *,
        max_hold: float = 300.0,
        grace: float = 2.0,
        sidecar: bool | Literal["auto"] = "auto",
        engine: EngineName | LeaseEngine = "auto",
        durability: Durability = "process",
        yield_to_foreign: bool | None = None,
        allow_network_fs: bool = False,
    ) -> None:
        if durability not in ("process", "sync"):
            raise ValueError(f"durability: {durability!r} is unknown; allowed: 'process', 'sync'")
        flag("sidecar", sidecar, auto=True)
        flag("yield_to_foreign", yield_to_foreign, none=True)
        self._policy = ForeignPolicy(yield_to_foreign, auto=sidecar == "auto") if sidecar else None
        self.arbiter = Arbiter(
            max_hold=max_hold,
            grace=grace,
            engine=engine,
            new_beside=None if self._policy is None else self._policy.beside,
            allow_network_fs=allow_network_fs,
        )
        """The schedulers' way to the rights."""
        self.store = FileStore(self.arbiter, durability)
        """The schedulers' way to the transcripts."""
        self.max_hold, self.grace, self.engine = self.arbiter.max_hold, self.arbiter.grace, self.arbiter.engine
        self.durability = durability

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<LockRegistry ({self.engine}): {now.held} held, {now.waiting} waiting, {now.sessions} sessions>"

    def lease(
        self,
        path: str | os.PathLike[str],
        *,
        holder: Holder | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        idle_timeout: float | None = None,
        supersede: bool = False,
    ) -> Lease:
        """The exclusive write lease of a session file, as an async context manager.

        Args:
            path: the transcript; created when missing.
            holder: a name for error messages; by default the run's, else the task's.
            wait_timeout: seconds to wait at most; `None` waits as long as it takes, 0 takes only what is free.
            max_hold: seconds to hold at most, instead of the registry's; with 0 the block ends at its first suspension.
            idle_timeout: seconds without `Lease.progress()` after which the block is cancelled, within `max_hold`; 0 as
                there.
            supersede: take over now from the holder in this process, before all that wait here; the loser's
                block is cancelled, and its later appends raise `Superseded`, naming the winner. A holder in another
                process is waited for.

        Raises:
            InvalidSession: the path cannot name a file.
            ValueError: another argument is not what it may be.

        Entering raises:
            LeaseTimeout: the wait budget passed.
            DeadlockError: the holder waits, over any number of steps, for something that the calling task holds, and
                the wait has no time limit of its own, as `wait_timeout` is one.
            TranscriptError: the file cannot be opened or locked, or lives on a network file system.
        """
        return self.new_lease(path, Right.WRITE, holder, wait_timeout, max_hold, idle_timeout, supersede)

    def lease_for(
        self,
        fence: Fence,
        path: str,
        *,
        header: bytes | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
    ) -> Lease:
        """As `lease`, for the run that `fence` belongs to, whichever task enters it.

        Args:
            fence: the run's permission to write; it ends the lease with the run.
            path: the transcript; created when missing.
            header: the first line of a file that is still empty, with its newline; `None` for none.
            wait_timeout: as for `lease`.
            max_hold: as for `lease`; the run's own deadline ends it as well.

        Entering raises besides:
            RunEnded, Superseded: that run may not write any more.
        """
        instance_of("fence", fence, Fence)
        return self.new_lease(path, Right.WRITE, None, wait_timeout, max_hold, fence=fence, header=header)

    def turn(
        self,
        path: str | os.PathLike[str],
        *,
        holder: Holder | None = None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        idle_timeout: float | None = None,
        supersede: bool = False,
    ) -> Lease:
        """The turn of a session: its holder conducts the session. Others may still append.

        As `lease`, but a right of its own: its `append` takes a momentary write lease.
        """
        return self.new_lease(path, Right.TURN, holder, wait_timeout, max_hold, idle_timeout, supersede)

    async def append(self, path: str | os.PathLike[str], record: Mapping[str, Any]) -> Position:
        """Append one record under a momentary write lease. A checkpoint.

        It waits for its turn without a bound of its own: use `anyio.fail_after`, or a lease with `wait_timeout`.

        Returned, the record survives the death of this process, with `durability="sync"` a power cut too. Failed or
        cancelled, it is not in the file, unless `durability="sync"` was waiting for the disk: then it is.

        Raises:
            LeaseLost: the momentary lease was taken away (`Revoked`, `Superseded`), or the calling run may not write
                any more (`RunEnded`, `Superseded`). Nothing was written.
            DeadlockError: the holder of the lease waits, over any number of steps, for something that the calling task
                holds. Nothing was written.
            TranscriptError: the record would not come back equal (the message names the place), or the operating system
                refused; the file is as before, but for a sync that failed: the message says so.
            InvalidSession: the path cannot name a file.
        """
        text = checked_path(path)
        return await self.store.append(text, encode_all((record,), text), under=current_fence.get())

    async def read(
        self, path: str | os.PathLike[str], *, last: int | None = None, on_error: OnError = "skip"
    ) -> Records:
        """Read a transcript's records, without any lock: a whole prefix of them. A checkpoint; long reads in a thread.

        Args:
            last: only the last so many, found from the end without reading the rest.
            on_error: leave a broken line out (it is listed in `.skipped`), or raise.

        Raises:
            TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line.
        """
        return await self.store.read(checked_path(path), last=last, on_error=on_error)

    def stream(
        self, path: str | os.PathLike[str], *, after: Position | None = None, on_error: OnError = "skip"
    ) -> AsyncGenerator[Records, None]:
        """As `read`, for files that are too large to have in memory at once: yields batches of some hundred kilobytes.

        The end is where it was at the first batch. Use `contextlib.aclosing` where the loop may be left early. A
        checkpoint before each batch.

        Args:
            after: begin behind this position; `records.position` of an earlier read, say.

        Raises:
            TranscriptError: as `read`; or the file was replaced since that position was taken.
        """
        instance_of("after", after, Position, none=True)
        return self.store.stream(checked_path(path), after=after, on_error=on_error)

    def revoke(self, path: str | os.PathLike[str], reason: str) -> int:
        """Take turn and write lease of a session away from their holders here; returns how many were held.

        The holders' blocks are cancelled, their later appends raise `Revoked`; the waiters go on at once.
        """
        text = checked_path(path)
        entry = self.arbiter.files.find(text)
        holders = [queue.holder for queue in entry.queues.values()] if entry else []
        held = [claim for claim in holders if claim is not None and claim.state is HELD]
        for claim in held:
            message = f"{claim.holder} lost {text}: {reason}"
            self.arbiter.grants.revoke(claim, Revoked(message, path=text, holder=claim.holder))
        return len(held)

    def leave_out(self, directory: str, is_own: Callable[[str], bool]) -> None:
        """With `sidecar="auto"`, write no lock files for some sessions of a directory. For schedulers.

        Args:
            directory: as it stands in the paths of the sessions.
            is_own: whether the name of a file is one that no foreign gateway knows. The last for a directory counts.
        """
        if self._policy is not None:
            self._policy.leave_out(directory, is_own)

    def statistics(self) -> RegistryStatistics:
        """What is held and waited for now, and totals."""
        return count(self.arbiter.grants, self.store.appended)

    def holders(self) -> list[HeldRight]:
        """Every right that is held in this process, with its holder."""
        return held_rights(self.arbiter.files)

    def new_lease(
        self,
        path: str | os.PathLike[str],
        right: Right,
        holder: Holder | None,
        wait_timeout: float | None = None,
        max_hold: float | None = None,
        idle_timeout: float | None = None,
        supersede: bool = False,
        *,
        fence: Fence | None = None,
        header: bytes | None = None,
    ) -> Lease:
        """A lease on either right; what `lease`, `lease_for` and `turn` have in common."""
        if holder is not None:
            instance_of("holder", holder, Holder, none=True)
        if supersede is not False:
            flag("supersede", supersede)
        return Lease(
            self.arbiter,
            self.store,
            checked_path(path),
            right,
            holder,
            None if wait_timeout is None else seconds("wait_timeout", wait_timeout),
            self.max_hold if max_hold is None else seconds("max_hold", max_hold),
            None if idle_timeout is None else seconds("idle_timeout", idle_timeout),
            supersede,
            fence,
            header,
        )
