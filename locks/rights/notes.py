"""Which turns are noted beside their sessions (`<file>.turn`), for people: those that are held for a while.

Most turns are over before anyone can ask for the name of their holder, and writing and removing a file costs more than
all the rest of such a turn. So a note is written when its claim has held for `NOTED_AFTER_S`, by a thread of its own:
it names the holder of a frozen event loop too, and a disk that hangs keeps neither the loop nor the steward.

No lock is needed. The thread marks the claim, writes, and looks whether the claim still holds; the loop ends the claim,
and looks for the mark. So whichever of them comes last removes the note.
"""

from __future__ import annotations

import math
from contextlib import suppress

from .. import _clock
from .claim import ClaimState
from .open_file import FileClaim

NOTED_AFTER_S = 0.05
_CLEAN = 512  # paths, of which a number each is kept
THREAD = "locks-notes"


class Notes:
    """The notes of one registry.

    Args:
        grace: seconds that a cancelled block may take.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._due: dict[FileClaim, None] = {}
        """What is not noted yet, in the order of the grants; taken out by either thread, each step a single one."""
        self._clean: dict[int, None] = {}
        """Paths, as numbers, beside which this registry has removed what a dead process may have left."""
        self._alarm = _clock.clock.alarm(self._tick, THREAD)

    def watch(self, claim: FileClaim) -> None:
        """Have a claim that was granted noted, if it still holds by then."""
        queue, path = claim.queue, hash(claim.path)
        assert queue is not None and queue.note is not None
        if queue.competed or path not in self._clean:
            queue.competed = False
            queue.note.clear(claim.path)
            while len(self._clean) >= _CLEAN:
                del self._clean[next(iter(self._clean))]
            self._clean[path] = None
        self._due[claim] = None
        self._alarm.ring_by(claim.time.acquired_at + NOTED_AFTER_S)

    def release(self, claim: FileClaim) -> None:
        """After a claim has ended, or its file has lost its name: nothing names it any more. May be called again."""
        self._due.pop(claim, None)
        if claim.noted and claim.queue is not None and claim.queue.note is not None:
            claim.queue.note.remove(claim)

    def _tick(self, now: float) -> float:
        for claim in list(self._due):
            due = claim.time.acquired_at + NOTED_AFTER_S
            if due > now:
                return due
            self._due.pop(claim, None)
            self._write(claim)
        return math.inf

    def _write(self, claim: FileClaim) -> None:
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None or queue.note is None or claim.state is not ClaimState.HELD:
            return
        with suppress(Exception):  # a file whose name cannot be looked at gets no note
            if entry.is_at(claim.path):
                claim.noted = True
                queue.note.write(claim, self._grace)
                if not claim.can_be_shared():  # it has ended meanwhile, or is about to
                    queue.note.remove(claim)
