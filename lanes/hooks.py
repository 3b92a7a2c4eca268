"""What a host wants to be told, called so that it cannot do harm."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any

from locks._events import described, log

from .run import Run

Hook = Callable[[Run], Any]


class Hooks:
    """The host's functions; an exception in one is logged, and that is all it does."""

    __slots__ = ("_on_end", "_on_start")

    def __init__(self, on_start: Hook | None, on_end: Hook | None) -> None:
        self._on_start = on_start
        self._on_end = on_end

    def started(self, run: Run, context: Context) -> None:
        """A run starts; its state is `running`, its body has not begun."""
        if self._on_start is not None:
            _call(self._on_start, run, context)

    def ended(self, run: Run, context: Context) -> None:
        """A run has its outcome."""
        if self._on_end is not None:
            _call(self._on_end, run, context)


def _call(hook: Hook, run: Run, context: Context) -> None:
    """In a copy of `context`, lest a hook sees the variables of the run in which something happened to end."""
    try:
        context.copy().run(hook, run)
    except Exception as error:
        name = getattr(hook, "__qualname__", type(hook).__name__)
        log("hook_failed", level="error", hook=name, run=run.id, error=described(error))
