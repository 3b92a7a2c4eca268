"""How soon the next waiter has the lock when its holder fails: raises, runs over its time, ignores that, is killed,
or freezes.

The holder holds for `HOLD_S` and then fails. The time is counted from the failure to the waiter's entry: from the
raise, the deadline, the signal. A holder that ignores its cancellation, or whose process is frozen, keeps for ever a
lock that has no limit of its own; ours has one, and is to be taken away at limit + grace: time counts from there.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import anyio

from ..forks import Channel, Forks, imported
from ..peers.interface import Backend, Locks, Peer
from .interface import Ask, Cell, NotMeasured, Question, Sample, Scale

HOLD_S, GRACE_S = 0.3, 0.1
_START_WITHIN_S = 30.0
_FOR_EVER_S = 3_600.0

How = Literal["exception", "timeout", "ignored cancellation", "kill -9", "frozen process"]
_ALL: tuple[How, ...] = ("exception", "timeout", "ignored cancellation", "kill -9", "frozen process")
_IN_ONE_PROCESS = _ALL[:3]
_CANCELLED = ("timeout", "ignored cancellation")


class _Fault(Exception):
    """What the holder raises."""


def between(peer: Peer, backend: Backend, *, how: How, limit_s: float) -> Sample:
    """In the worker: holder and waiter are two processes."""
    imported(peer, backend)
    limited = peer.limited is not None and how in ("ignored cancellation", "frozen process")
    with tempfile.TemporaryDirectory() as directory, Forks() as forks:
        path = os.path.join(directory, "session.jsonl")
        held, ready, go, asked, entered, failed = (forks.channel() for _ in range(6))
        forks.fork(partial(_waiter, peer, backend, path, ready, go, asked, entered))
        _received(ready)
        holder = forks.fork(partial(_holder, peer, backend, limited, path, how, held, failed))
        got = _received(held)
        go.now()
        if _received(asked) > got + HOLD_S:
            raise NotMeasured("the waiter started too late; the machine is busy")
        time.sleep(max(0.0, got + HOLD_S - time.monotonic()))
        if how == "kill -9":
            began = time.monotonic()
            forks.kill(holder, signal.SIGKILL)
        else:
            began = _received(failed) if how == "exception" else _end_of(got, limited)
        return _sample(how, began, entered.receive(began + limit_s - time.monotonic()), limit_s)


def inside(peer: Peer, backend: Backend, *, how: How, limit_s: float) -> Sample:
    """In the worker: holder and waiter are two tasks, in a child that is ended with what it holds."""
    imported(peer, backend)
    limited = peer.limited is not None and how == "ignored cancellation"
    with tempfile.TemporaryDirectory() as directory, Forks() as forks:
        path = os.path.join(directory, "session.jsonl")
        held, asked, entered, failed = (forks.channel() for _ in range(4))

        async def both() -> None:
            locks = _locks(peer, limited)
            async with anyio.create_task_group() as group:
                group.start_soon(_fail, locks, limited, path, how, held, failed)
                await anyio.sleep(HOLD_S / 3)
                asked.now()
                async with locks.hold(path):
                    entered.now()

        forks.fork(partial(anyio.run, both, backend=backend))
        got = _received(held)
        began = _received(failed) if how == "exception" else _end_of(got, limited)
        return _sample(how, began, entered.receive(began + limit_s - time.monotonic()), limit_s)


def _end_of(got: float, limited: bool) -> float:
    return got + HOLD_S + (GRACE_S if limited else 0.0)


def _received(channel: Channel) -> float:
    found = channel.receive(_START_WITHIN_S)
    if found is None:
        raise NotMeasured("a process did not get ready")
    return found


def _sample(how: How, began: float, entered: float | None, limit_s: float) -> Sample:
    if entered is None:
        return Sample({}, missing={how: f"still held {limit_s:g} s later"})
    return Sample({how: max(0.0, entered - began) * 1e3}, violations=int(entered < began))


def _locks(peer: Peer, limited: bool) -> Any:
    return peer.limited(HOLD_S, GRACE_S) if limited and peer.limited is not None else peer.make()


def _holder(peer: Peer, backend: Backend, limited: bool, path: str, how: How, held: Channel, failed: Channel) -> None:
    locks = _locks(peer, limited)
    if backend != "blocking":
        anyio.run(_fail, locks, limited, path, how, held, failed, backend=backend)
        return
    with suppress(_Fault), locks.hold(path):
        held.now()
        time.sleep(HOLD_S if how == "exception" else _FOR_EVER_S)
        failed.now()
        raise _Fault


async def _fail(locks: Locks, limited: bool, path: str, how: How, held: Channel, failed: Channel) -> None:
    before = time.monotonic()
    with suppress(_Fault), anyio.CancelScope() as scope:
        async with locks.hold(path):
            # A limit of the lock's own counts from the grant, which came before this line.
            held.send(before if limited else time.monotonic())
            if how in _CANCELLED and not limited:
                scope.deadline = anyio.current_time() + HOLD_S
            if how == "frozen process":
                time.sleep(_FOR_EVER_S)  # noqa: ASYNC251 -- that is what is measured
            elif how == "exception":
                await anyio.sleep(HOLD_S)
                failed.now()
                raise _Fault
            with anyio.CancelScope(shield=how == "ignored cancellation"):
                await anyio.sleep(_FOR_EVER_S)


def _waiter(
    peer: Peer, backend: Backend, path: str, ready: Channel, go: Channel, asked: Channel, entered: Channel
) -> None:
    def await_go() -> None:
        ready.now()
        go.receive(_START_WITHIN_S)
        asked.now()

    if backend != "blocking":
        anyio.run(_wait, peer.make(), path, await_go, entered, backend=backend)
        return
    locks = peer.make()
    await_go()
    with locks.hold(path):
        entered.now()


async def _wait(locks: Locks, path: str, await_go: Callable[[], None], entered: Channel) -> None:
    async with locks.hold(path + ".warm-up"):
        pass
    await_go()  # blocks the loop, on which nothing waits
    async with locks.hold(path):
        entered.now()


def _take(function: str, hows: tuple[How, ...], cell: Cell, ask: Ask, scale: Scale) -> Sample:
    found = Sample({})
    for how in hows:
        if cell.backend == "blocking" and how in _CANCELLED:
            found.missing[how] = "a thread that blocks cannot be cancelled"
            continue
        try:
            one = ask(function, how=how, limit_s=3.0 if scale.full else 0.5)
        except NotMeasured as error:  # a busy machine, perhaps; the other failures are measured all the same
            found.missing[how] = str(error)
            continue
        found.values |= one.values
        found.missing |= one.missing
        found.violations += one.violations
    return found


RECOVERY = Question(
    name="recovery",
    title="How soon has a waiting process the lock when the holder's process fails?",
    unit="ms",
    kind="between",
    take=partial(_take, "recovery:between", _ALL),
    floor="flock",
    seconds=28,
    rounds=3,
)
RECOVERY_INSIDE = Question(
    name="recovery-inside",
    title="How soon has a waiting task the lock when the holder's task fails, in one process?",
    unit="ms",
    kind="inside",
    take=partial(_take, "recovery:inside", _IN_ONE_PROCESS),
    floor="anyio.Lock",
    seconds=12,
    rounds=3,
)
