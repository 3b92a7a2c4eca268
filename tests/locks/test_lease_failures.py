"""Rows of the failure catalogue that one registry answers for: leaks, lost wake-ups, false alarms."""

from __future__ import annotations

import errno
import os
import time

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after

from locks import LeaseLost, LockRegistry, Right, TranscriptError, _os


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


class Boom(Exception):
    pass


@pytest.mark.failure("A2")
@pytest.mark.parametrize("at", range(6))
async def test_an_exception_at_any_await_of_the_body_leaks_nothing(registry, path, tmp_path, at):
    async def step(number):
        await anyio.lowlevel.checkpoint()
        if number == at:
            raise Boom

    async def body():
        await step(0)
        async with registry.turn(path) as turn:
            await step(1)
            async with registry.lease(path) as lease:
                await step(2)
                await lease.append({"n": 1})
                await step(3)
            await turn.append({"n": 2})
            await step(4)
        await step(5)

    with pytest.raises(Boom):
        await body()
    assert registry.statistics().sessions == 0
    with fail_after(60):
        async with registry.turn(path, wait_timeout=0), registry.lease(path, wait_timeout=0) as lease:
            await lease.append({"n": 3})
    assert [record["n"] for record in await registry.read(path, on_error="raise")][-1] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["session.jsonl"]


@pytest.mark.failure("A2")
async def test_the_failure_of_the_nth_system_call_of_an_append_is_typed_and_leaks_nothing(registry, path, monkeypatch):
    names = ["open", "fstat", "stat", "pread", "write", "ofd_lock", "ofd_conflict"]
    originals = {name: getattr(_os, name) for name in names}
    calls = 0
    failing = 0

    def counted(name):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(5, "planted")
            return originals[name](*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(_os, name, counted(name))
    acknowledged = []
    while failing <= calls:  # the last round has made all its calls and none has failed
        failing, calls = failing + 1, 0
        try:
            async with registry.lease(path) as lease:
                await lease.append({"n": failing})
            acknowledged.append(failing)
        except (TranscriptError, LeaseLost):
            pass
        assert registry.statistics().sessions == 0
        if failing > calls:
            break
    last, failing = failing, -1
    assert last > (6 if registry.engine == "kernel" else 3)
    records = await registry.read(path, on_error="raise")
    assert [record["n"] for record in records] == acknowledged
    assert last in acknowledged


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
async def test_a_stat_that_keeps_failing_is_an_error_and_no_endless_loop(path, monkeypatch, code):
    registry = LockRegistry(engine="kernel")
    calls = 0

    def stat(path):
        nonlocal calls
        calls += 1
        if calls > 1000:
            return os.stat(path)
        raise OSError(code, "planted")

    monkeypatch.setattr(_os, "stat", stat)
    with pytest.raises(TranscriptError, match="planted"):
        await registry.append(path, {"n": 1})
    assert calls < 1000
    assert registry.statistics().sessions == 0


@pytest.mark.failure("A5")
@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_cancelled_waiter_gets_nothing_later_and_the_queue_moves(registry, path, virtual, victim):
    served = []
    scopes = [CancelScope() for _ in range(3)]

    async def wait(number):
        with scopes[number]:
            async with registry.lease(path):
                served.append(number)

    async with create_task_group() as group, registry.lease(path):
        for number in range(3):
            group.start_soon(wait, number)
            await virtual.settle()
        scopes[victim].cancel()
        await virtual.settle()
        assert registry.statistics().waiting == 2
    assert served == [number for number in range(3) if number != victim]
    assert registry.statistics().sessions == 0


@pytest.mark.failure("A5")
@pytest.mark.parametrize("first", ["release", "cancel"])
async def test_a_waiter_cancelled_in_the_tick_of_its_grant_gives_it_on(registry, path, virtual, first):
    served = []
    scope = CancelScope()

    async def wait(name, scope):
        with scope:
            async with registry.lease(path):
                served.append(name)
                await anyio.lowlevel.checkpoint()
                served.append(f"{name} went on")

    async with create_task_group() as group:
        claim = registry.arbiter.new_claim()
        assert registry.arbiter.acquire_nowait(path, Right.WRITE, claim)
        group.start_soon(wait, "cancelled", scope)
        await virtual.settle()
        group.start_soon(wait, "next", CancelScope())
        await virtual.settle()
        if first == "release":
            registry.arbiter.release(claim)
            scope.cancel()
        else:
            scope.cancel()
            registry.arbiter.release(claim)
    assert served[-2:] == ["next", "next went on"]
    assert "cancelled went on" not in served
    assert registry.statistics().sessions == 0


@pytest.mark.failure("A5")
async def test_a_cancelled_waiter_withdraws_its_ticket_from_other_processes(path, virtual):
    here, elsewhere, third = LockRegistry(), LockRegistry(), LockRegistry()
    got = []

    async def wait(registry, scope):
        with scope:
            async with registry.lease(path):
                got.append((registry, virtual.now()))

    async with create_task_group() as group:
        async with elsewhere.lease(path):
            scope = CancelScope()
            group.start_soon(wait, here, scope)
            await virtual.settle()
            group.start_soon(wait, third, CancelScope())
            await anyio.sleep(0.5)
            scope.cancel()
            await anyio.sleep(0.5)
            assert here.statistics().sessions == 0
        released_at = virtual.now()
    ((who, at),) = got
    assert who is third
    assert at <= released_at + 0.006  # the next poll; a ticket that had stayed would have been passed over after 50 ms


@pytest.mark.failure("B3")
async def test_a_harmless_append_during_a_turn_harms_nobody(registry, path, virtual):
    async def announce():
        await anyio.sleep(1)
        await registry.append(path, {"by": "somebody else"})

    async with create_task_group() as group:
        group.start_soon(announce)
        async with registry.turn(path) as turn:
            await turn.append({"by": "the run", "n": 1})
            await anyio.sleep(2)  # the model call
            await turn.append({"by": "the run", "n": 2})
            assert turn.lost is None
    records = await registry.read(path, on_error="raise")
    assert records == [{"by": "the run", "n": 1}, {"by": "somebody else"}, {"by": "the run", "n": 2}]


@pytest.mark.failure("A8")
async def test_appends_go_on_while_a_turn_waits_for_its_model(registry, path, virtual):
    started = virtual.now()
    async with registry.turn(path), create_task_group() as group:
        for number in range(50):
            group.start_soon(registry.append, path, {"n": number})
        await virtual.settle()
        assert virtual.now() == started
        assert registry.statistics().appended == 50
        await anyio.sleep(5)


@pytest.mark.failure("B5")
@pytest.mark.parametrize("registries", [1, 4])
async def test_tasks_in_sections_of_20_ms_never_overlap_and_never_fail(path, registries):
    """In real time: no task takes its own fresh lease for an orphan's."""
    inside = 0
    sections = []
    until = time.monotonic() + 0.8
    everyone = [LockRegistry() for _ in range(registries)]

    async def work(registry):
        nonlocal inside
        while time.monotonic() < until:
            async with registry.lease(path) as lease:
                inside += 1
                assert inside == 1
                await anyio.sleep(0.02)
                lease.check()
                assert inside == 1
                sections.append(lease.epoch)
                inside -= 1

    with fail_after(30):
        async with create_task_group() as group:
            for number in range(16):
                group.start_soon(work, everyone[number % registries])
    assert len(sections) >= 16
    assert len(set(sections)) == len(sections)
    if registries == 1:
        assert sections == sorted(sections)


async def test_a_failing_lock_call_is_the_error_of_the_one_it_was_made_for(path, virtual, monkeypatch):
    here, elsewhere = LockRegistry(), LockRegistry()
    ofd_lock, fail = _os.ofd_lock, False

    def lock(fd, position):
        if fail:
            raise OSError(37, "No locks available")
        return ofd_lock(fd, position)

    monkeypatch.setattr(_os, "ofd_lock", lock)
    errors = []

    async def wait():
        try:
            async with here.lease(path):
                pytest.fail("entered")
        except TranscriptError as error:
            errors.append(error.errno)

    async with create_task_group() as group, elsewhere.lease(path):
        group.start_soon(wait)
        await virtual.settle()
        fail = True
    fail = False
    assert errors == [37]
    assert here.statistics().sessions == 0
    async with here.lease(path, wait_timeout=0):
        pass
