"""`lanes stop`, `drain`, `restart` and `stack`: orders to a process, and reports of what came of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from runtime.status import protocol
from runtime.status.client import Client, Found, successor

from ..trial.output import Output
from ..usage_error import UsageError
from . import fleet
from .remote import Asking, IsFrozen, Refusal, asked, lasting, printable, talk, talk_to

_EVERY_S = 0.1
_LONGEST_DRAIN_S = 1e9
_LONGEST_REASON = 1000
_SUCCESSOR_S = 15.0
"""Time for a service manager to start a new process, before it is reported that none came."""


def stop(socket: str | None, run: int, reason: str, which: fleet.Which) -> int:
    """Ask a run to end; returns the exit code.

    Args:
        which: the store whose processes are asked, one after the other until one has the run.

    Raises:
        UsageError: `reason` is empty or too long, or there is no process; nothing was asked.
    """
    if not 1 <= len(reason) <= _LONGEST_REASON:
        given = f"has {len(reason)} characters"
        raise UsageError(f"--reason: {given}, which is not allowed; allowed: text of 1 to {_LONGEST_REASON}")
    reason = protocol.text(reason, _LONGEST_REASON)  # of the command line, so it may be no UTF-8

    def do(client: Asking, output: Output) -> None:
        found = asked(client, protocol.Stop(run=run, reason=reason)).stopped
        assert found is not None
        before = "" if found.asked else " before"
        text = f"run {found.run} on lane {found.lane}, {found.state}, was asked to end{before}: {found.reason}"
        output.result(printable(text))

    return _talk(socket, which, do)


def stack(socket: str | None, run: int, which: fleet.Which) -> int:
    """Print where a run stands; returns the exit code. Asked are those that `stop` asks."""

    def do(client: Asking, output: Output) -> None:
        found = asked(client, protocol.Stack(run=run)).stack
        assert found is not None
        output.result("\n".join(map(printable, found.text.splitlines())))

    return _talk(socket, which, do)


def _talk(socket: str | None, which: fleet.Which, do: Callable[[Asking, Output], object]) -> int:
    """Have `do` talk to the process that is meant, or to those on a store."""
    found = fleet.store_of(socket, which)
    if found is None:
        return talk(socket, do)
    with contextlib.closing(fleet.Whoever(found, which.node)) as asked_one:
        return talk_to(asked_one, do)


def drain(socket: str | None, timeout: float | None) -> int:
    """Drain, and wait for that; returns the exit code.

    Raises:
        UsageError: `timeout` is no duration, or there is no process; nothing was asked.
    """
    if timeout is not None and not 0 <= timeout <= _LONGEST_DRAIN_S:  # in JSON, NaN would be null: "as configured"
        raise UsageError(f"--timeout: {timeout!r} is not allowed; allowed: seconds from 0 to {_LONGEST_DRAIN_S:g}")

    def do(client: Client, output: Output) -> None:
        process = asked(client, protocol.Ping()).pong
        started = asked(client, protocol.Drain(timeout=timeout)).started
        assert process is not None and started is not None
        bound = f"{lasting(started.within_s)} at most"
        output.line(printable(f"process {process.pid}, sessions {process.sessions}, drains: {bound}"))
        order, _ = _over(client, started)
        if order.error:
            raise Refusal(f"the drain failed: {order.error}")
        output.result(f"drained: {_became(order)}, {order.unstarted} not started")
        if order.abandoned:
            raise Refusal(f"{order.abandoned} bodies ignored their cancellation, and still run: see lanes status")

    return talk(socket, do)


def restart(socket: str | None) -> int:
    """Restart, and wait for that; returns the exit code."""

    def do(client: Client, output: Output) -> None:
        before = asked(client, protocol.Ping()).pong
        started = asked(client, protocol.Restart()).started
        assert before is not None and started is not None
        bound = f"{lasting(started.within_s)} at most"
        output.line(printable(f"process {before.pid}, sessions {before.sessions}, restarts: {bound}"))
        try:
            order, picture = _over(client, started)
        except _Gone as gone:
            output.line(f"process {before.pid} has ended; waiting up to {lasting(_SUCCESSOR_S)} for the next one")
            after = _successor(before, client.path)
            if after is None:
                raise Refusal(f"{gone}, and no other process serves {before.sessions}") from None
            output.result(f"restarted: process {after.pid} has taken the place of process {before.pid}")
            return
        if order.error:
            raise Refusal(f"the restart failed, the process is {picture.state}: {order.error}")
        kept = f"{order.unstarted} kept in the queue"
        output.result(f"restarted: generation {picture.generation} of process {picture.pid}; {_became(order)}, {kept}")

    return talk(socket, do)


def _became(order: protocol.Order) -> str:
    return f"{order.finished} finished, {order.cancelled} cancelled, {order.abandoned} abandoned"


class _Gone(Refusal):
    """The process has ended."""


def _over(client: Client, started: protocol.Started) -> tuple[protocol.Order, protocol.Picture]:
    """What came of an order, and the process afterwards. A loop that is frozen for a moment is waited for.

    Raises:
        _Gone: the process has ended.
        IsFrozen: its loop was frozen when the time was up.
        Refusal: it has not come to an end in time.
    """
    deadline = time.monotonic() + started.within_s
    while True:
        frozen: IsFrozen | None = None
        try:
            picture = asked(client, protocol.Status()).status
        except IsFrozen as error:
            picture, frozen = None, error
        except Refusal as error:
            raise _Gone(str(error)) from error
        for order in picture.orders if picture is not None else ():
            if order.id == started.order and order.over and picture is not None:
                return order, picture
        if time.monotonic() >= deadline:
            late = f"process {client.pid} is not through with it after {lasting(started.within_s)}: see lanes status"
            raise frozen or Refusal(late)
        time.sleep(_EVERY_S)


def _successor(before: protocol.Pong, path: str) -> Found | None:
    """The process that serves the same sessions now; waits for a service manager to start it."""
    deadline = time.monotonic() + _SUCCESSOR_S
    while time.monotonic() < deadline:
        if (after := successor(before, path)) is not None:
            return after
        time.sleep(_EVERY_S)
    return None
