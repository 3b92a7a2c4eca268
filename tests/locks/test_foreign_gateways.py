"""Gateways that know nothing but lock files, beside ours: neither robs the other, neither starves, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after
from structlog.testing import capture_logs

from locks import Fence, LeaseExpired, LeaseTimeout, LockRegistry, Right, _os, process
from locks.sidecar import lockfile
from tests.contention import PROCESSES, Interval, check, compete, overlaps, result
from tests.lock_files import dead, foreign, ours
from tests.peers import peer
from tests.poll import eventually

GAP_S = 0.06


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    monkeypatch.setattr(lockfile, "_warned", False)


@pytest.fixture
def creations(virtual, monkeypatch):
    """The instants at which lock files were to be created."""
    original, instants = _os.open, []

    def open_(name, flags, *mode):
        if str(name).endswith(".lock") and flags & os.O_CREAT:
            instants.append(virtual.now())
        return original(name, flags, *mode)

    monkeypatch.setattr(_os, "open", open_)
    return instants


def freed(registry, path):
    """Whether the kernel lock of the write lease is nobody's."""
    claim = registry.arbiter.new_claim()
    taken = registry.arbiter.acquire_nowait(path, Right.WRITE, claim)
    registry.arbiter.release(claim)
    return taken


# A live owner


@pytest.mark.failure("B9")
async def test_a_foreign_owner_is_looked_at_every_50_ms_by_one_waiter_and_waited_for(
    virtual, path, lock, other, creations
):
    registry, order = LockRegistry(), []
    lock.write_bytes(foreign(other.pid))
    started = virtual.now()

    async def wait(name):
        async with registry.lease(path):
            order.append((name, round(virtual.now() - started, 6)))

    async with create_task_group() as group:
        for name in range(5):
            group.start_soon(wait, name)
            await virtual.settle()
        await anyio.sleep(0.33)
        assert registry.statistics().waiting == 5
        assert registry.statistics().competing == 1
        assert registry.statistics().held == 0
        looked = [round(at - started, 6) for at in creations]
        assert looked == [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
        lock.unlink()
    # From then on the other side is left a gap before each of ours.
    assert order[0] == (0, 0.35)
    assert [name for name, _ in order] == [0, 1, 2, 3, 4]
    assert registry.statistics().sessions == 0


@pytest.mark.failure("B9", "D1")
async def test_other_processes_of_ours_queue_behind_the_one_that_waits_for_a_foreign_owner(
    virtual, path, lock, other, creations
):
    registry, elsewhere, order = LockRegistry(), LockRegistry(), []
    content = foreign(other.pid)
    lock.write_bytes(content)

    async def wait(one):
        async with one.lease(path):
            order.append(one)

    async with create_task_group() as group:
        group.start_soon(wait, registry)
        await virtual.settle()
        group.start_soon(wait, elsewhere)
        await anyio.sleep(1.0)
        assert len(creations) == 21  # nobody but the first looks
        assert lock.read_bytes() == content
        lock.unlink()
    assert order == [registry, elsewhere]


@pytest.mark.failure("B9", "D4")
async def test_a_wait_that_was_too_long_names_the_foreign_owner(virtual, path, lock, other):
    registry, elsewhere = LockRegistry(), LockRegistry()
    lock.write_bytes(foreign(other.pid, created_at=-12, maxHoldMs=60_000))

    async def wait(one, name):
        with pytest.raises(LeaseTimeout) as caught:
            async with one.lease(path, wait_timeout=2):
                raise AssertionError("granted")
        error = caught.value
        assert error.waited_s == pytest.approx(2)
        assert error.holder is not None
        assert error.holder.pid == other.pid
        assert error.remaining_s is not None
        assert 30 < error.remaining_s < 49
        assert f"process {other.pid} (a foreign gateway) holds it, since 1" in str(error), name

    async with create_task_group() as group:
        for name, one in enumerate((registry, registry, elsewhere)):
            group.start_soon(wait, one, name)
    assert registry.statistics().sessions == elsewhere.statistics().sessions == 0


@pytest.mark.failure("B9")
@pytest.mark.parametrize(
    "fields, within", [({"maxHoldMs": 400}, 0.45), ({"maxHoldMs": 9_000_000, "created_at": -1799.0}, 1.05)]
)
async def test_a_foreign_owner_is_waited_for_up_to_its_own_limit_and_half_an_hour(
    virtual, path, lock, other, monkeypatch, fields, within
):
    # The wall clock goes with the virtual one.
    real, started = time.time(), virtual.now()
    for name in ("wall", "carried_wall"):
        monkeypatch.setattr(process, name, lambda: real + virtual.now() - started)
    lock.write_bytes(foreign(other.pid, **fields))
    async with LockRegistry().lease(path) as lease:
        assert within - 0.1 < virtual.now() - started <= within + 0.01
        assert json.loads(lock.read_bytes())["epoch"] == lease.epoch


@pytest.mark.failure("A5")
@pytest.mark.parametrize("who", ["the first", "the second", "all"])
async def test_a_cancelled_waiter_leaves_nothing_and_the_next_one_goes_on(virtual, path, lock, other, who):
    registry, elsewhere, order = LockRegistry(), LockRegistry(sidecar=False), []
    lock.write_bytes(foreign(other.pid))
    scopes = [CancelScope(), CancelScope()]

    async def wait(number):
        with scopes[number]:
            async with registry.lease(path):
                order.append(number)

    async with create_task_group() as group:
        for number in range(2):
            group.start_soon(wait, number)
            await virtual.settle()
        assert not freed(elsewhere, path)
        for number in {"the first": [0], "the second": [1], "all": [0, 1]}[who]:
            scopes[number].cancel()
        await virtual.settle()
        assert registry.statistics().waiting == (0 if who == "all" else 1)
        assert freed(elsewhere, path) == (who == "all")
        lock.unlink()
    assert order == {"the first": [1], "the second": [0], "all": []}[who]
    assert registry.statistics().sessions == 0
    assert freed(elsewhere, path)


async def test_whoever_asks_while_others_wait_for_a_foreign_owner_wakes_the_first_of_them(virtual, path, lock, other):
    """The loop was busy when the next look was due: then it is the newcomer's question that finds the file free."""
    registry, order = LockRegistry(max_hold=5), []
    lock.write_bytes(foreign(other.pid))

    async def wait():
        with pytest.raises(LeaseExpired):  # noqa: PT012 -- raised by leaving the block
            async with registry.lease(path) as lease:
                order.append("first")
                assert json.loads(lock.read_bytes())["epoch"] == lease.epoch
                await anyio.sleep(100)

    async with create_task_group() as group:
        group.start_soon(wait)
        await virtual.settle()
        lock.unlink()
        virtual.advance(1)
        started = virtual.now()
        async with registry.lease(path):
            order.append("newcomer")
            assert virtual.now() - started == pytest.approx(5 + GAP_S)  # the first is watched as any other holder
    assert order == ["first", "newcomer"]


async def test_tasks_of_one_run_that_wait_for_a_foreign_owner_get_one_lease(virtual, path, lock, other):
    registry, seen = LockRegistry(), []
    lock.write_bytes(foreign(other.pid))
    fence = Fence(lane="session:a", run_id=17)

    async def wait():
        async with registry.lease_for(fence, path) as lease:
            seen.append(lease.epoch)

    async with create_task_group() as group:
        group.start_soon(wait)
        await virtual.settle()
        lock.unlink()
        virtual.advance(1)
        group.start_soon(wait)
    assert len(seen) == 2
    assert not lock.exists()


async def test_epochs_rise_although_some_wait_for_a_foreign_owner(virtual, path, lock, other, tmp_path):
    registry, epochs = LockRegistry(), []
    lock.write_bytes(foreign(other.pid))

    async def wait(name):
        async with registry.lease(name) as lease:
            epochs.append(lease.epoch)
            await anyio.lowlevel.checkpoint()

    async with create_task_group() as group:
        group.start_soon(wait, path)
        await virtual.settle()
        for _ in range(3):
            await wait(tmp_path / "another.jsonl")
        lock.unlink()
    assert epochs == sorted(set(epochs))


async def test_a_foreign_lock_file_keeps_nobody_from_the_turn(virtual, path, lock, other):
    registry = LockRegistry()
    content = foreign(other.pid)
    lock.write_bytes(content)
    async with registry.turn(path, wait_timeout=0), create_task_group() as group:
        group.start_soon(registry.append, path, {"n": 1})
        await virtual.settle()
        assert registry.statistics().waiting == 1
        assert lock.read_bytes() == content
        lock.unlink()
    assert await registry.read(path) == [{"n": 1}]


async def test_a_foreign_gateway_is_reason_for_one_warning(virtual, path, lock, other):
    registry = LockRegistry()
    with capture_logs() as logs:
        for _ in range(3):
            lock.write_bytes(foreign(other.pid, maxHoldMs=200))
            async with registry.lease(path):
                pass
    events = [one["event"] for one in logs]
    assert events.count("foreign_gateway_seen") == 1
    assert events.count("sidecar_reclaimed") == 3
    assert next(one for one in logs if one["event"] == "foreign_gateway_seen")["log_level"] == "warning"


# Manners


def quiet(path):
    """Nothing has happened in the directory for long."""
    os.utime(os.path.dirname(path), (1, 1))


@pytest.mark.parametrize("how", ["one after the other", "handed on"])
async def test_before_each_of_our_lock_files_the_path_is_left_free_for_a_gap(virtual, path, lock, creations, how):
    registry, ends = LockRegistry(yield_to_foreign=True), []

    async def hold():
        async with registry.lease(path):
            await anyio.sleep(0.01)
        ends.append(virtual.now())
        assert not lock.exists()

    if how == "handed on":
        async with create_task_group() as group:
            for _ in range(4):
                group.start_soon(hold)
    else:
        for _ in range(4):
            await hold()
    assert len(creations) == 4
    assert all(created - ended == pytest.approx(GAP_S) for ended, created in zip(ends, creations[1:], strict=False))


async def test_where_nothing_happens_nobody_waits_for_a_gap(virtual, path, creations):
    registry = LockRegistry(yield_to_foreign=True)
    await registry.append(path, {})
    for _ in range(3):
        quiet(path)
        started = virtual.now()
        async with registry.lease(path, wait_timeout=0):
            pass
        assert creations[-1] == virtual.now() == started


async def test_who_gives_up_within_the_gap_is_told_that_nobody_holds_it(virtual, path, creations):
    registry = LockRegistry(yield_to_foreign=True)
    await registry.append(path, {"n": 1})
    with pytest.raises(LeaseTimeout, match="it is free, but foreign gateways") as caught:
        async with registry.lease(path, wait_timeout=0.03):
            raise AssertionError("granted")
    assert caught.value.holder is None
    assert len(creations) == 1


async def test_the_gap_begins_anew_when_others_had_the_lock_meanwhile(virtual, path, lock):
    registry, elsewhere = LockRegistry(yield_to_foreign=True), LockRegistry()
    async with registry.turn(path):  # so that the registry goes on knowing the file
        await elsewhere.append(path, {"n": 1})
        with pytest.raises(LeaseTimeout):
            async with registry.lease(path, wait_timeout=0.03):
                raise AssertionError("granted")
        await anyio.sleep(1)
        await elsewhere.append(path, {"n": 2})
        ended = virtual.now()
        async with registry.lease(path):
            assert virtual.now() - ended == pytest.approx(GAP_S)


@pytest.mark.parametrize("yields, gap_s", [(None, GAP_S), (False, 0.0), (True, GAP_S)])
async def test_who_has_met_a_foreign_gateway_leaves_gaps_for_ten_minutes(virtual, path, lock, other, yields, gap_s):
    registry = LockRegistry(yield_to_foreign=yields)

    async def waited():
        await registry.append(path, {})
        started = virtual.now()
        await registry.append(path, {})
        return virtual.now() - started

    assert await waited() == pytest.approx(GAP_S if yields else 0.0)
    lock.write_bytes(foreign(other.pid))
    async with create_task_group() as group:
        group.start_soon(registry.append, path, {})
        await anyio.sleep(0.1)
        lock.unlink()
    assert await waited() == pytest.approx(gap_s)
    await anyio.sleep(590)
    assert await waited() == pytest.approx(gap_s)
    await anyio.sleep(20)
    assert await waited() == pytest.approx(GAP_S if yields else 0.0)


# Real ones


@pytest.mark.failure("B9")
@pytest.mark.parametrize("how", ["leaves", "is killed"])
async def test_a_real_foreign_gateway_is_waited_for_until_it_leaves_or_dies(path, lock, how):
    registry, order = LockRegistry(), []

    async def wait():
        async with registry.lease(path) as lease:
            order.append("granted")
            await lease.append({"n": 1})

    with peer("foreign_gateway", path, "hold") as gateway, fail_after(30):
        await eventually(lambda: gateway.said("held"), within=60)
        content = lock.read_bytes()
        with pytest.raises(LeaseTimeout, match="a foreign gateway"):
            async with registry.lease(path, wait_timeout=0.12):
                raise AssertionError("robbed")
        assert lock.read_bytes() == content
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: registry.statistics().waiting == 1)
            order.append("over")
            if how == "leaves":
                gateway.tell("leave")
                await eventually(lambda: gateway.said("left"))
            else:
                gateway.signal(signal.SIGKILL)
                await eventually(gateway.ended)
    assert order == ["over", "granted"]
    assert not lock.exists()


@pytest.mark.failure("B9", "B7")
async def test_a_real_foreign_gateway_waits_for_us_and_is_let_in(path, lock):
    registry = LockRegistry()
    with ExitStack() as stack, fail_after(30):
        async with registry.lease(path) as lease:
            content = lock.read_bytes()
            gateway = stack.enter_context(peer("foreign_gateway", path, "hold"))
            await eventually(lambda: gateway.said("waiting"), within=60)
            for n in range(20):
                await lease.append({"n": n})
            assert not gateway.said("held")
            assert lock.read_bytes() == content
        await eventually(lambda: gateway.said("held"))
        gateway.tell("leave")
        await eventually(lambda: gateway.said("left"))
    assert not lock.exists()


@pytest.mark.failure("D1", "B9")
@pytest.mark.parametrize("yields", [True, None])
async def test_a_foreign_gateway_gets_its_share_although_ours_is_greedy(path, lock, yields):
    registry, holds = LockRegistry(yield_to_foreign=yields), 4
    intervals: list[Interval] = []
    with peer("foreign_gateway", path, "hold") as first, fail_after(30):
        await eventually(lambda: first.said("held"), within=60)
        with pytest.raises(LeaseTimeout):  # so that it is known
            await hold_once(registry, path, [], wait_timeout=0)
        first.tell("leave")
        await eventually(lambda: first.said("left"))
    with peer("foreign_gateway", path, "compete", holds) as gateway, fail_after(30):
        await eventually(lambda: gateway.said("ready"), within=60)
        gateway.tell("go")
        while len(gateway.lines) < 2:
            await hold_once(registry, path, intervals)
        theirs = [(entered, left, 0) for entered, left in json.loads(gateway.lines[1])]
    assert len(theirs) == holds
    assert len(intervals) >= 1
    assert overlaps([*intervals, *theirs]) == []
    assert not lock.exists()


async def hold_once(registry, path, intervals, **options):
    async with registry.lease(path, **options) as lease:
        entered = time.monotonic_ns()
        await anyio.sleep(0.001)
        intervals.append((entered, time.monotonic_ns(), lease.epoch))


# Our own number


@pytest.fixture
def _wall(virtual, monkeypatch):
    """The wall clock goes with the virtual one."""
    real, started = time.time(), virtual.now()
    for name in ("wall", "carried_wall"):
        monkeypatch.setattr(process, name, lambda: real + virtual.now() - started)


@pytest.mark.failure("Y10", "C3")
@pytest.mark.usefixtures("_wall")
@pytest.mark.parametrize("how", ["the registry's", "the lease's", "the run's"])
async def test_an_old_lock_of_this_process_that_nothing_here_holds_is_waited_for_as_long_as_a_run_may_last(
    virtual, path, lock, how
):
    """The shape of #86004: our own number and start time, 17 minutes to go, and nobody who would remove it."""
    registry = LockRegistry(max_hold=60 if how == "the registry's" else 300, grace=2)
    lock.write_bytes(foreign(os.getpid(), created_at=-40.0, maxHoldMs=1_020_000))
    match how:
        case "the registry's":
            lease = registry.lease(path)
        case "the lease's":
            lease = registry.lease(path, max_hold=60)
        case _:
            now = virtual.now()
            lease = registry.lease_for(Fence(deadline=now + 60, end_at=now + 62), path)
    started = virtual.now()
    with capture_logs() as logs:
        async with lease:
            assert virtual.now() - started == pytest.approx(27.0, abs=0.06)  # 60 + 2 + 5, less the 40 that it is old
            assert json.loads(lock.read_bytes())["instance"] == process.me().instance
    assert [one["event"] for one in logs if one["event"] == "sidecar_reclaimed"] == ["sidecar_reclaimed"]


@pytest.mark.failure("Y10")
@pytest.mark.usefixtures("_wall")
async def test_an_old_lock_of_this_process_older_than_a_run_may_last_is_reclaimed_at_once(virtual, path, lock):
    registry = LockRegistry(max_hold=30, grace=2)
    lock.write_bytes(foreign(os.getpid(), created_at=-40.0, maxHoldMs=1_020_000))
    started = virtual.now()
    await registry.append(path, {"n": 1})
    assert virtual.now() == started


@pytest.mark.failure("Y10", "B9")
@pytest.mark.usefixtures("_wall")
async def test_another_library_of_this_process_that_holds_is_not_robbed(virtual, path, lock):
    """It keeps its lock file open while it holds, as such gateways do."""
    registry = LockRegistry(max_hold=30, grace=2)
    with open(lock, "wb") as held:  # noqa: ASYNC230 -- a file of a few bytes
        held.write(foreign(os.getpid(), created_at=-40.0, maxHoldMs=1_020_000))
        held.flush()
        with pytest.raises(LeaseTimeout):
            async with registry.lease(path, wait_timeout=120):
                raise AssertionError("robbed")
    await registry.append(path, {"n": 1})


@pytest.mark.failure("Y10", "B5")
@pytest.mark.usefixtures("_wall")
async def test_another_registry_of_this_process_that_holds_is_not_robbed_however_long(virtual, path):
    one, other = LockRegistry(max_hold=1000), LockRegistry(max_hold=1, grace=0)
    async with one.lease(path) as lease:
        with pytest.raises(LeaseTimeout):
            async with other.lease(path, wait_timeout=20):
                raise AssertionError("robbed")
        await lease.append({"n": 1})


# Plants


def plants(path: Path, choice: random.Random) -> dict[str, int]:
    """Plant a left-over beside a session if there is no lock file; whole and at once, so that nobody sees it grow."""
    kind = choice.choice(sorted(KINDS))
    seed = path.with_suffix(".seed")
    seed.write_bytes(KINDS[kind]())
    if kind == "garbage":
        os.utime(seed, (time.time() - 31, time.time() - 31))
    try:
        os.link(seed, str(path) + ".lock")
    except FileExistsError:
        return {}
    finally:
        seed.unlink()
    return {kind: 1}


_DEAD = dead()
KINDS = {
    "a dead process": lambda: foreign(_DEAD, starttime=5),
    "a reused number": lambda: foreign(os.getpid(), starttime=5),
    "garbage": lambda: b'{\n  "pid": ',
    "another boot": lambda: foreign(os.getpid(), host=process.me().host, bootId="another"),
    "lanes, dead": lambda: ours(pid=_DEAD, instance="0123456789abcdef"),
    "lanes, with a live number": lambda: ours(instance="0123456789abcdef"),
}


@pytest.mark.suite("X1")
@pytest.mark.failure("B6", "B5")
def test_holds_never_overlap_while_somebody_plants_dead_locks(tmp_path):
    path, choice, planted = tmp_path / "session.jsonl", random.Random(83265), dict.fromkeys(KINDS, 0)
    holds = 1_000 if os.environ.get("LANES_LONG") else 25
    with ExitStack() as stack:
        peers = compete(stack, path, holds=holds, seconds=0)
        while not all([one.lines, one.ended()][1] for one in peers):
            for kind, count in plants(path, choice).items():
                planted[kind] += count
            time.sleep(0.0005)  # how dense the plants are
        results = [result(one) for one in peers]
    assert [len(intervals) for intervals in results] == [holds] * PROCESSES
    check(results)
    assert min(planted.values()) > 0, planted


@pytest.mark.failure("B6")
async def test_a_plant_is_reclaimed_by_whoever_has_the_kernel_lock_only(virtual, path, lock):
    registry, elsewhere = LockRegistry(), LockRegistry()
    content = ours(instance="0123456789abcdef")
    async with registry.lease(path):
        lock.unlink()  # somebody has robbed us
        lock.write_bytes(content)
        with pytest.raises(LeaseTimeout):
            async with elsewhere.lease(path, wait_timeout=3):
                raise AssertionError("two owners")
        assert lock.read_bytes() == content
    assert lock.read_bytes() == content  # not ours: it is left to the next one
    await elsewhere.append(path, {})
    assert not lock.exists()
