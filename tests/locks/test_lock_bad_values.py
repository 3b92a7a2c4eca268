"""What the lock layer refuses at the call: the error names field, value and what is allowed; nothing was done."""

from __future__ import annotations

import json
import math
import re

import anyio
import pytest
from anyio import create_task_group

from locks import DeadlockError, Fence, Holder, InvalidSession, LeaseTimeout, LockRegistry
from locks.sidecar.payload import Terms, encode, parse

NAN = math.nan


class Words(str):
    """A subclass, as some frameworks use for their ids."""

    __slots__ = ()


def each(name, values):
    return pytest.mark.parametrize(name, values, ids=[f"{type(value).__name__} {value!s:.12}" for value in values])


def refuses(field, value):
    shown = re.escape(f"{value!r:.80}")
    return pytest.raises(ValueError, match=rf"^{field}: {shown} .*; allowed: .+")


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


refused_at_once = pytest.mark.backends("asyncio")
"""Refused before anything is awaited: no event loop makes a difference. Its canaries run on each loop: a fence that is
none (a call), a stream from no position (awaited), a place that is none (within a lease)."""


def nothing_done(registry, directory):
    now = registry.statistics()
    return (now.sessions, now.held, now.waiting) == (0, 0, 0) and not list(directory.iterdir())


# Options

NO_DURATIONS = ["5", None, True, False, NAN, -1, -0.001, -math.inf, 1j, [1]]
NO_FLAGS = ["no", "", 0, 1, [], 1.0]


@pytest.mark.parametrize("option", ["max_hold", "grace"])
@each("value", NO_DURATIONS)
def test_an_option_that_is_no_duration_is_refused(option, value):
    with refuses(option, value):
        LockRegistry(**{option: value})


@pytest.mark.parametrize("option", ["max_hold", "grace"])
@each("value", [0, 0.0, 5, 2.5, math.inf])
def test_an_option_that_is_a_duration_is_taken(option, value):
    assert getattr(LockRegistry(**{option: value}), option) == value


@pytest.mark.parametrize("option", ["sidecar", "allow_network_fs", "yield_to_foreign"])
@each("value", [*NO_FLAGS, None])
def test_an_option_that_is_no_flag_is_refused(option, value):
    if option == "yield_to_foreign" and value is None:
        LockRegistry(yield_to_foreign=None)  # the one that may be undecided
        return
    with refuses(option, value):
        LockRegistry(**{option: value})


# Leases


@refused_at_once
@pytest.mark.parametrize("right", ["lease", "turn"])
@pytest.mark.parametrize("field", ["wait_timeout", "max_hold", "idle_timeout"])
@each("value", [value for value in NO_DURATIONS if value is not None])
async def test_a_limit_that_is_no_duration_is_refused_at_the_call(registry, tmp_path, right, field, value):
    with refuses(field, value):
        getattr(registry, right)(tmp_path / "a", **{field: value})
    assert nothing_done(registry, tmp_path)


@refused_at_once
@pytest.mark.parametrize("right", ["lease", "turn"])
@each("value", ["me", b"me", 17, {"lane": "a"}, Holder])
async def test_a_holder_that_is_none_is_refused_at_the_call(registry, tmp_path, right, value):
    with refuses("holder", value):
        getattr(registry, right)(tmp_path / "a", holder=value)
    assert nothing_done(registry, tmp_path)


@refused_at_once
@pytest.mark.parametrize("right", ["lease", "turn"])
@each("value", [*NO_FLAGS, None])
async def test_a_supersede_that_is_no_flag_is_refused_at_the_call(registry, tmp_path, right, value):
    with refuses("supersede", value):
        getattr(registry, right)(tmp_path / "a", supersede=value)
    assert nothing_done(registry, tmp_path)


@each("value", [None, "run", Holder(run_id=1)])
async def test_a_fence_that_is_none_is_refused_at_the_call(registry, tmp_path, value):
    with refuses("fence", value):
        registry.lease_for(value, str(tmp_path / "a"))
    assert nothing_done(registry, tmp_path)


@each("value", [NAN, "5", None, True, 1j])
async def test_an_end_that_is_no_instant_is_refused_and_the_lease_goes_on(registry, tmp_path, value, virtual):
    async with registry.lease(tmp_path / "a") as lease:
        before = lease.deadline
        with refuses("at", value):
            lease.end_by(value)
        await anyio.sleep(1)  # the block was not cancelled
        assert lease.deadline == before
        await lease.append({"n": 1})


@pytest.mark.parametrize("right", ["lease", "turn"])
@each("value", [5, "5", True, (5, (1, 2))])
async def test_a_place_that_is_no_position_is_refused_and_the_file_stands(registry, tmp_path, right, value):
    path = tmp_path / "a"
    await registry.append(path, {"n": 1})
    async with getattr(registry, right)(path) as lease:
        with refuses("through", value):
            await lease.replace([], through=value)
        assert await lease.read() == [{"n": 1}]
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


async def test_a_lease_that_was_not_entered_has_no_deadline_as_it_has_nothing_else(registry, tmp_path):
    lease = registry.lease(tmp_path / "a")
    for name in ("deadline", "epoch", "holder", "acquired_at", "lost"):
        with pytest.raises(RuntimeError, match="inside `async with`"):
            getattr(lease, name)
    assert nothing_done(registry, tmp_path)


# Paths

NO_PATHS = [5, None, b"bytes", "", "a\0b", "a\ud83d", ["a"], True]


@refused_at_once
@pytest.mark.parametrize("call", ["lease", "turn", "revoke"])
@each("path", NO_PATHS)
async def test_what_can_name_no_transcript_is_refused_before_anything_is_awaited(registry, tmp_path, call, path):
    more = ("a reason",) if call == "revoke" else ()
    shown = re.escape(f"{path!r:.80}")
    with pytest.raises(InvalidSession, match=rf"^path: {shown} cannot name a transcript; allowed: a non-empty"):
        getattr(registry, call)(path, *more)
    assert nothing_done(registry, tmp_path)


@refused_at_once
@pytest.mark.parametrize("call", ["append", "read", "stream"])
@each("path", NO_PATHS)
async def test_what_can_name_no_transcript_is_refused_by_what_is_awaited(registry, tmp_path, call, path):
    shown = re.escape(f"{path!r:.80}")
    calls = {
        "append": lambda: registry.append(path, {}),
        "read": lambda: registry.read(path),
        "stream": lambda: anext(registry.stream(path)),
    }
    with pytest.raises(InvalidSession, match=rf"^path: {shown} cannot name a transcript; allowed: a non-empty"):
        await calls[call]()
    assert nothing_done(registry, tmp_path)


# Reading


@refused_at_once
@each("value", ["5", 1.5, True, False, -1, NAN, math.inf, [5]])
@pytest.mark.parametrize("exists", [True, False])
async def test_a_count_that_is_no_whole_number_is_refused(registry, tmp_path, value, exists):
    path = tmp_path / "a"
    if exists:
        path.write_bytes(b'{"n":1}\n' * 50_000)  # more than is read on the loop
    with refuses("last", value):
        await registry.read(path, last=value)
    assert registry.statistics().sessions == 0


@refused_at_once
@each("value", ["x", None, True, ["skip"], "Raise"])
async def test_an_unknown_on_error_is_refused(registry, tmp_path, value):
    with refuses("on_error", value):
        await registry.read(tmp_path / "a", on_error=value)
    with refuses("on_error", value):
        await anext(registry.stream(tmp_path / "a", on_error=value))
    assert nothing_done(registry, tmp_path)


@each("value", [5, "5", True])
async def test_a_stream_from_no_position_is_refused(registry, tmp_path, value):
    with refuses("after", value):
        await anext(registry.stream(tmp_path / "a", after=value))
    assert nothing_done(registry, tmp_path)


# Names

NO_RUN_IDS = [True, False, 1.5, "", b"r-17", object, ["r"]]


@pytest.mark.parametrize("kind", [Holder, Fence])
@each("value", NO_RUN_IDS)
def test_a_run_id_that_is_neither_number_nor_text_is_refused(kind, value):
    with refuses("run_id", value):
        kind(run_id=value)


@pytest.mark.parametrize("kind", [Holder, Fence])
@pytest.mark.parametrize("value", [10**100, -(10**100), 10**5000], ids=["large", "small", "not even printable"])
def test_a_run_id_that_no_lock_file_has_room_for_is_refused(kind, value):
    with pytest.raises(ValueError, match=r"^run_id: that number names no run; allowed: a whole number of up to 100"):
        kind(run_id=value)


@pytest.mark.parametrize("kind", [Holder, Fence])
@each("value", [object, 7, True, b"main", ["main"]])
def test_a_lane_that_is_no_text_is_refused(kind, value):
    with refuses("lane", value):
        kind(lane=value)


@pytest.mark.parametrize("field, value", [("task", 7), ("task", b"t"), ("pid", "7"), ("pid", None), ("pid", True)])
def test_a_holder_that_could_not_be_written_down_is_refused(field, value):
    with refuses(field, value):
        Holder(**{field: value})


RUN_IDS = [0, 17, -3, 10**100 - 1, "r-17", "17", 'a"b\\c\n', "läufe", Words("r-17")]


@pytest.mark.parametrize("right", ["lease", "turn"])
@each("run_id", RUN_IDS)
@pytest.mark.usefixtures("notes_at_once")
async def test_a_lock_file_says_the_run_id_as_it_is_number_or_text(tmp_path, right, run_id, virtual):
    path = tmp_path / "a"
    async with getattr(LockRegistry(), right)(path, holder=Holder(lane="main", run_id=run_id)):
        beside = tmp_path / ("a.lock" if right == "lease" else "a.turn")
        assert json.loads(beside.read_bytes())["runId"] == run_id
        with pytest.raises(LeaseTimeout) as caught:
            async with getattr(LockRegistry(), right)(path, wait_timeout=0.2):
                pass
    holder = caught.value.holder
    assert holder is not None
    assert (holder.lane, holder.run_id) == ("main", run_id)
    assert f"run {run_id} on lane main" in str(caught.value)


async def test_a_fence_with_a_text_for_a_run_id_is_written_down_like_a_holder(tmp_path):
    path = tmp_path / "a"
    async with LockRegistry().lease_for(Fence(run_id="r-17"), str(path)) as lease:
        assert json.loads((tmp_path / "a.lock").read_bytes())["runId"] == "r-17"
        assert str(lease.holder) == f"run r-17 (pid {lease.holder.pid})"


@each("run_id", ["x" * 5000, "\0" * 5000, "😀" * 5000, '"' * 5000, "\udc80" * 5000])
def test_a_run_id_of_excessive_length_is_cut_so_that_readers_take_the_file(run_id):
    data = encode(Terms("\0" * 5000, run_id, 3, 1), 0.0)
    assert len(data) <= 4096
    read = parse(data)
    assert read is not None
    assert isinstance(read.run_id, str)
    assert len(read.run_id) >= 60
    assert read.epoch == 3


def test_half_of_a_surrogate_pair_in_a_run_id_is_replaced():
    read = parse(encode(Terms(None, "a\ud83db", 3, 1), 0.0))
    assert read is not None
    assert read.run_id == "a?b"


@pytest.mark.parametrize(
    "written, run_id",
    [("17", 17), ('"r-17"', "r-17"), ('""', None), ("true", None), ("1.5", None), ("9" * 101, None), ("[1]", None)],
)
def test_a_run_id_that_is_read_can_always_be_named(written, run_id):
    read = parse(f'{{"pid": 7, "runId": {written}}}'.encode())
    assert read is not None
    assert read.run_id == run_id
    assert Holder(read.lane, read.run_id, read.pid or 0).run_id == run_id


# Deadlocks between tasks of one name


@pytest.mark.failure("E4")
@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_a_ring_of_tasks_of_one_name_is_told_by_the_leases_that_they_hold(registry, tmp_path, right, virtual):
    take, go = getattr(registry, right), Holder(task="go")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    epochs = {}
    both = anyio.Event()

    async def patient():
        async with take(first, holder=go) as held:
            epochs["patient"] = held.epoch
            await both.wait()
            async with take(second, holder=go):
                pass

    async with create_task_group() as group:
        group.start_soon(patient)
        await virtual.settle()
        async with take(second, holder=go) as held:
            epochs["late"] = held.epoch
            both.set()
            await virtual.settle()
            with pytest.raises(DeadlockError) as caught:
                await take(first, holder=go).__aenter__()
    patient_one, late_one = f"{go} [epoch {epochs['patient']}]", f"{go} [epoch {epochs['late']}]"
    assert str(caught.value) == (
        f"waiting for {first} would never end: {late_one} waits for {first}, which {patient_one} holds; "
        f"{patient_one} waits for {second}, which {late_one} holds"
    )
    assert caught.value.chain == ((go, first, go), (go, second, go))
