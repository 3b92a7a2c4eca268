"""The host's functions, called so that they cannot do harm: after the change that they report, errors contained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, Protocol

from locks import _effects
from locks._events import described, log

from ..message import Message
from ..run import Run

Hook = Callable[[Run], Any]


class Observer(Protocol):
    """What looks at the runs of a supervisor while it runs, as the host's functions do."""

    def run_waits(self, run: Run) -> None: ...
    def run_started(self, run: Run) -> None: ...
    def run_ended(self, run: Run) -> None: ...


class Hooks:
    """The host's functions. What a hook raises is logged and goes no further, but for a `KeyboardInterrupt`.

    `started`, `ended` and `waits` note a call that runs when the present change of state is complete (see
    `locks._effects`): a hook may submit, post, cancel, reset and revoke. Each is called in a copy of the supervisor's
    own context, so it never sees the variables of a run.
    """

    __slots__ = ("_on_end", "_on_start", "_on_wait", "context", "observers")

    def __init__(self, on_start: Hook | None, on_end: Hook | None, on_wait: Hook | None) -> None:
        self._on_start = on_start
        self._on_end = on_end
        self._on_wait = on_wait
        self.observers: tuple[Observer, ...] = ()
        """Called as the host's functions are, and behind them."""
        self.context = Context()

    def started(self, run: Run) -> None:
        """A run starts; its state is `running`, its body has not begun."""
        if self._on_start is not None:
            _effects.after(self._call, self._on_start, run)
        for observer in self.observers:
            _effects.after(self._call, observer.run_started, run)

    def ended(self, run: Run) -> None:
        """A run has its outcome."""
        if self._on_end is not None:
            _effects.after(self._call, self._on_end, run)
        for observer in self.observers:
            _effects.after(self._call, observer.run_ended, run)

    def waits(self, run: Run) -> None:
        """A run that was submitted did not start at once."""
        if self._on_wait is not None:
            _effects.after(self._call, self._on_wait, run)
        for observer in self.observers:
            _effects.after(self._call, observer.run_waits, run)

    def dropped(self, hook: Callable[[Run, Sequence[Message]], Any] | None, run: Run, messages: list[Message]) -> Any:
        """Call a lane's `on_drop`, now, for a run that was dropped from a full queue; returns what it has made of the
        messages. The caller is an effect itself."""
        return None if hook is None else self._call(hook, run, tuple(messages))

    def _call(self, hook: Callable[..., Any], run: Run, *more: Any) -> Any:
        try:
            return self.context.copy().run(hook, run, *more)
        except KeyboardInterrupt:
            raise  # it is not the hook's own: the process is to end
        except BaseException as error:
            # A cancellation or a `SystemExit` too: it would reach the task that has made the change.
            name = getattr(hook, "__qualname__", type(hook).__name__)
            log("hook_failed", level="error", hook=name, run=run.id, error=described(error))
            return None
