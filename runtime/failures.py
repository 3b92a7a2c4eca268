"""Steps of an end, such as those of `ending`: each step is taken, also when an earlier step has raised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from locks._events import described, log


class Failures:
    """What steps have raised: the first is to be raised when all were taken, the others are logged."""

    def __init__(self) -> None:
        self._first: BaseException | None = None
        self.interrupted = False
        """Whether a step was cancelled, or the process is to end: what follows should not wait for long."""

    def __bool__(self) -> bool:
        return self._first is not None

    @contextmanager
    def kept(self, step: str) -> Iterator[None]:
        """A step: what it raises, a cancellation too, keeps no further one from being taken."""
        try:
            yield
        except BaseException as error:
            self.interrupted |= not isinstance(error, Exception)
            if self._first is None:
                self._first = error
            elif error is not self._first:
                log("stop_step_failed", level="error", step=step, error=described(error))

    def raise_first(self) -> None:
        """Raise what was raised first, if anything was."""
        first, self._first = self._first, None
        try:
            if first is not None:
                raise first
        finally:
            del first  # this frame stands in its traceback
