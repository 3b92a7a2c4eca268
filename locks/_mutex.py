"""A mutex that knows its thread, so that a lock that an exception left behind is not taken for another thread's.

A signal handler may raise between any two steps of the main thread, also between having a mutex and the `try` or `with`
that gives it back. An ordinary lock would then be locked for good, by an unknown thread.
"""

from __future__ import annotations

from _thread import RLock


class Mutex(RLock):  # type: ignore[misc]  # final for typeshed alone
    """A mutex for `with`, and for threads that must not wait. No thread takes it twice: `take` refuses that."""

    __slots__ = ()

    def mine(self) -> bool:
        """Whether this thread has it."""
        return bool(self._is_owned())  # type: ignore[attr-defined]  # what `threading.Condition` goes by, too

    def take(self, within_s: float = 0.0) -> bool:
        """Lock it, unless another thread has it for longer than so many seconds, or this one has it already."""
        if self._is_owned():  # type: ignore[attr-defined]  # as in `mine`
            return False
        return self.acquire(False) or (within_s > 0 and self.acquire(timeout=within_s))

    def locked(self) -> bool:
        """Whether a thread has it, this one included."""
        # In one line: no exception comes in between.
        return not self.take() or self.release() is not None  # type: ignore[func-returns-value]  # it is for the order

    def free(self) -> None:
        """Give back what an interrupted step of this thread has left locked."""
        while self._is_owned():  # type: ignore[attr-defined]  # as in `mine`
            self.release()
