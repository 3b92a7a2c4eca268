"""Peers in one process: locks by key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from .interface import Locks, Peer
from .ours import registry


class InDict:
    """One lock per key in a dictionary, from which none is removed: the usual recipe."""

    def __init__(self, new: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._new = new
        self._locks: dict[str, AbstractAsyncContextManager[Any]] = {}

    def hold(self, key: str) -> AbstractAsyncContextManager[Any]:
        """The lock of that key."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = self._new()
        return lock


class Called:
    """A library whose object is called with the key."""

    def __init__(self, call: Callable[[str], AbstractAsyncContextManager[Any]]) -> None:
        self.hold = call


def _asyncio() -> Locks:
    import asyncio

    return InDict(asyncio.Lock)


def _anyio() -> Locks:
    import anyio

    return InDict(anyio.Lock)


def _trio() -> Locks:
    import trio

    return InDict(trio.Lock)


def _keyed() -> Locks:
    from asyncio_keyed_lock import AsyncioKeyedLock

    return Called(AsyncioKeyedLock())


def _lanes() -> Locks:
    return Called(registry(engine="none").lease)


def _lanes_limited(hold_s: float, grace_s: float) -> Locks:
    return Called(registry(engine="none", max_hold=hold_s, grace=grace_s).lease)


INSIDE = (
    Peer(
        name="asyncio.Lock",
        kind="inside",
        make=_asyncio,
        backends=("asyncio",),
        about="one lock per key in a dictionary, kept for ever",
    ),
    Peer(
        name="anyio.Lock",
        kind="inside",
        make=_anyio,
        backends=("asyncio", "trio"),
        about="one lock per key in a dictionary, kept for ever",
    ),
    Peer(
        name="trio.Lock",
        kind="inside",
        make=_trio,
        backends=("trio",),
        about="one lock per key in a dictionary, kept for ever",
    ),
    Peer(
        name="asyncio-keyed-lock",
        kind="inside",
        make=_keyed,
        backends=("asyncio",),
        about="an asyncio.Lock per key, dropped after its last use",
        needs="asyncio-keyed-lock",
    ),
    Peer(
        name="lanes",
        kind="inside",
        make=_lanes,
        limited=_lanes_limited,
        backends=("asyncio", "trio"),
        about='LockRegistry(engine="none"): owner, deadline, epoch and fence for each lease; dropped after use',
    ),
)
