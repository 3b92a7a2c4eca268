"""What nobody expects: an exception of somebody else's code in the middle of granting, logging or unlocking."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import structlog
from anyio import create_task_group, fail_after

from locks import LockRegistry, TranscriptError, Unordered, _os
from locks.sidecar import lockfile


class Surprise(Exception):
    """Nothing that anybody catches."""


@pytest.fixture
def surprising(monkeypatch):
    """A switch: once it is on, the next one cannot say that it holds."""
    switch = {"on": False}
    take = lockfile.take

    def take_or_raise(*args, **options):
        if switch["on"]:
            switch["on"] = False
            raise Surprise("planted")
        return take(*args)

    monkeypatch.setattr("locks.sidecar.guards.take", take_or_raise)
    return switch


async def test_an_exception_while_a_right_is_granted_is_the_errors_of_who_asked_and_leaves_nothing(
    path, virtual, surprising
):
    registry = LockRegistry()
    surprising["on"] = True
    with pytest.raises(TranscriptError, match="Surprise: planted") as caught:
        async with registry.lease(path):
            pytest.fail("entered")
    assert isinstance(caught.value.__cause__, Surprise)
    assert registry.statistics().sessions == 0
    async with registry.lease(path, wait_timeout=0), LockRegistry().turn(path, wait_timeout=0):
        pass


@pytest.mark.failure("Y5")
async def test_a_surprise_while_a_right_is_passed_on_goes_to_the_code_that_gave_it_back_and_costs_no_right(
    path, virtual, surprising
):
    """It may be a signal handler's, which belongs to the code that it has interrupted; the next one gets in."""
    registry, told = LockRegistry(), []

    async def wait(name):
        async with registry.lease(path):
            told.append(name)

    async def make_room(group):
        async with registry.lease(path):
            group.start_soon(wait, "first")
            await virtual.settle()
            group.start_soon(wait, "second")
            await virtual.settle()
            surprising["on"] = True

    async with create_task_group() as group:
        with pytest.raises(Surprise):
            await make_room(group)
    assert told == ["first", "second"]


class Incomplete:
    """The locks of an engine that somebody has begun to write."""

    def try_lock(self):
        return True


class Raising(Unordered):
    """An engine's locks that raise whatever they like."""

    def __init__(self, where):
        self.where = where

    def try_lock(self):
        if self.where == "try_lock":
            raise Surprise("planted")
        return True

    def unlock(self):
        if self.where == "unlock":
            raise Surprise("planted")


class Engine:
    """Somebody's own."""

    name = "own"

    def __init__(self, make):
        self.make = make

    def lock(self, path, fd, file_id, right):
        return self.make()


async def test_an_engine_whose_locks_lack_methods_is_refused_with_their_names(path, virtual):
    registry = LockRegistry(engine=Engine(Incomplete))
    with pytest.raises(TranscriptError, match=r"engine: the locks of 'own' lack .*take_ticket"):
        async with registry.lease(path):
            pytest.fail("entered")
    assert registry.statistics().sessions == 0


async def test_an_engine_that_raises_whatever_it_likes_leaves_nothing_behind(path, virtual):
    registry = LockRegistry(engine=Engine(lambda: Raising("try_lock")))
    with pytest.raises(TranscriptError, match="Surprise"):
        async with registry.lease(path):
            pytest.fail("entered")
    assert registry.statistics().sessions == 0
    registry = LockRegistry(engine=Engine(lambda: Raising("unlock")))
    with structlog.testing.capture_logs() as logs:
        async with registry.lease(path):
            pass
    assert registry.statistics().sessions == 0
    assert "unlock_failed" in [line["event"] for line in logs]


def test_the_steward_hands_its_log_lines_to_the_loop(virtual):
    """A host's log handler that blocks must not stop the watch over all sessions."""
    registry = LockRegistry()
    posted: list[Any] = []
    registry.arbiter.grants.steward.post = posted.append
    something: Any = object()
    registry.arbiter.grants.steward.held[something] = None  # it stumbles over that
    with structlog.testing.capture_logs() as logs:
        registry.arbiter.grants.steward._tick(virtual.now())
        assert logs == []
        posted[0]()
    assert [line["event"] for line in logs] == ["steward_failed"]


async def test_inside_one_process_a_sync_that_fails_parts_no_holders(path, monkeypatch):
    """Nothing but the very entry keeps them apart there, so it stays, with another descriptor."""
    registry = LockRegistry(engine="none", durability="sync")
    fdatasync = _os.fdatasync

    def failing(fd):
        raise OSError(errno.EIO, "planted")

    held = []
    with fail_after(60):
        async with registry.turn(path) as turn:
            monkeypatch.setattr(_os, "fdatasync", failing)
            with pytest.raises(TranscriptError):
                await turn.append({"n": 1})
            monkeypatch.setattr(_os, "fdatasync", fdatasync)
            async with create_task_group() as group:

                async def conduct():
                    async with registry.turn(path, wait_timeout=0.05):
                        held.append("two at once")

                async def refused():
                    with pytest.raises(Exception, match="waited"):
                        await conduct()

                group.start_soon(refused)
        await registry.append(path, {"n": 2})
    assert held == []
    assert [record["n"] for record in await registry.read(path)] == [1, 2]
    assert registry.statistics().sessions == 0
