"""What a body has raised: its text, frames and `retryable`, read before the change of state that ends the run."""

from __future__ import annotations

from dataclasses import dataclass

from locks._events import described

from ..retry import RetrySpec
from ..tracebacks import scrub


@dataclass(frozen=True, slots=True)
class Raised:
    """What a body raised, or what kept a run from starting: without frames, and with what was asked of it."""

    error: BaseException
    said: str
    """The exception in words."""
    traceback: str
    retryable: bool
    """Whether the lane's `retry` takes it for worth another attempt."""


def raised_of(error: BaseException, retry: RetrySpec | None = None) -> Raised:
    """Ask an exception all that its run's end needs, and take its frames off.

    To be called before the change of state that ends the run: the text, the property `retryable` and the finalizers of
    what the frames held are user code.
    """
    retryable = retry is not None and retry.is_for(error)
    said = described(error)
    return Raised(error, said, scrub(error), retryable)
