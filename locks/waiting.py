"""How a registry's tasks wait, and how one of them looks after the files that other processes hold.

The kernel wakes nobody when another process unlocks a byte, so someone must look. A task per file costs 11-22 % CPU for
64 files, a thread per file cannot be cancelled, and a background task would need an owner that outlives its waiters. So
the *leader*, one of the waiting tasks, looks after all files of its registry, and hands the office on when it leaves.
"""

from __future__ import annotations

import math

import anyio
from anyio import CancelScope

from . import _clock
from .claim import Claim, ClaimState
from .entry import Entry
from .queue import RightQueue


class WaitingRoom:
    """The tasks of one registry that wait.

    Invariant: whenever `competing` is not empty, `leader` is a WAITING claim at the head of one of its queues, and its
    task is either running or has been woken.
    """

    def __init__(self) -> None:
        self.competing: dict[RightQueue, Entry] = {}
        """The queues whose head waits for another process."""
        self.granted: list[Claim] = []
        """What a look has granted, until the registry collects it."""
        self._leader: Claim | None = None

    def update(self, entry: Entry, queue: RightQueue) -> None:
        """Note whether somebody must look after a queue, and see that somebody does. Call after each change to it."""
        leader = self._leader
        if queue.competing:
            self.competing[queue] = entry
        else:
            self.competing.pop(queue, None)
        if leader is not None and leader.state is not ClaimState.WAITING:
            self._leader = leader = None
        if leader is None and self.competing:
            first = next(iter(next(iter(self.competing)).waiting))
            self._leader = first
            if first.changed is not None:
                first.changed.set()

    def is_leader(self, claim: Claim) -> bool:
        """Whether this claim's task looks after the others."""
        return self._leader is claim

    async def sleep(self, claim: Claim, until: float) -> None:
        """Suspend until the claim has changed, or until an instant. A checkpoint."""
        changed = claim.changed
        if changed is None or changed.is_set():
            changed = claim.changed = anyio.Event()  # else it is one that another task of the same run waits for
        if until == math.inf:
            await changed.wait()
            return
        with CancelScope(deadline=anyio.current_time() + (until - _clock.clock.now())):
            await changed.wait()

    def look(self) -> float:
        """Look at every file that another process holds; returns the instant of the next look.

        What it grants is put into `granted`. A failing lock call is the error of the claim it was made for.
        """
        now, due = _clock.clock.now(), math.inf
        for queue, entry in list(self.competing.items()):
            if now >= queue.next_poll:
                first = next(iter(queue.waiting))
                try:
                    with entry.mutex:
                        granted = queue.poll()
                except OSError as error:
                    first.failed = error
                    queue.next_poll = math.inf
                    if first.changed is not None:
                        first.changed.set()
                    continue
                if granted is not None:
                    self.granted.append(granted)
                    self.competing.pop(queue)
                    continue
            due = min(due, queue.next_poll)
        return due
