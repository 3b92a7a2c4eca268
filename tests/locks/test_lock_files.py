"""The lock files that leases write: exactly while they hold, in their order with the kernel lock, each one its own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread
from structlog.testing import capture_logs

from locks import Fence, LeaseLost, LockError, LockRegistry, Revoked, Right, Superseded, TranscriptError, _os, process
from locks.sidecar import turn_note
from tests.lock_files import ODD, dead, foreign, ours, put

KEYS = ["pid", "createdAt", "maxHoldMs", "starttime", "host", "bootId", "instance", "lane", "runId", "epoch"]


@pytest.fixture
def note(path):
    return Path(turn_note.path_of(path))


@pytest.fixture
def nobody():
    """The number of a process that has ended."""
    return dead()


class Calls:
    """What was done to lock files and to the byte of the write lease, in order, each step looked at by `look`."""

    def __init__(self, monkeypatch):
        self.steps: list[str] = []
        self.made: list[bytes] = []
        """What each lock file held when it was whole: at its removal, or at the unlock."""
        self.look = lambda step: None
        originals = {name: getattr(_os, name) for name in ("open", "unlink", "ofd_lock", "ofd_unlock")}

        def note_down(step):
            self.steps.append(step)
            self.look(step)

        def open_(name, flags, *mode):
            if str(name).endswith(".lock") and flags & os.O_CREAT:
                note_down("create")
            return originals["open"](name, flags, *mode)

        def unlink(name):
            if name.endswith(".lock"):
                self.made.append(Path(name).read_bytes())
                note_down("unlink")
            originals["unlink"](name)

        def ofd_lock(fd, position):
            got = originals["ofd_lock"](fd, position)
            if got and position == _WRITE_BYTE:
                note_down("lock")
            return got

        def ofd_unlock(fd, position):
            if position == _WRITE_BYTE:
                note_down("unlock")
            originals["ofd_unlock"](fd, position)

        for name, call in {"open": open_, "unlink": unlink, "ofd_lock": ofd_lock, "ofd_unlock": ofd_unlock}.items():
            monkeypatch.setattr(_os, name, call)


_WRITE_BYTE = (1 << 62) + (1 << 61)


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


def fields_of(file: Path) -> dict:
    return json.loads(file.read_bytes())


# What it says


async def test_a_lease_says_in_its_lock_file_who_holds_since_when_and_until_when(path, lock):
    registry = LockRegistry(max_hold=300, grace=2)
    async with registry.lease(path) as lease:
        text = lock.read_text()
        fields = json.loads(text)
        assert list(fields) == KEYS
        assert text == json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        me = process.me()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", fields.pop("createdAt"))
        assert fields == {
            "pid": os.getpid(),
            "maxHoldMs": 302_000,
            "starttime": me.starttime,
            "host": me.host,
            "bootId": me.boot_id,
            "instance": me.instance,
            "lane": None,
            "runId": None,
            "epoch": lease.epoch,
        }
        await lease.append({"n": 1})
        assert lock.read_text() == text
    assert not lock.exists()


@pytest.mark.parametrize(
    "max_hold, outer, at_most_ms",
    [(10.0, math.inf, 10_500), (10.0, 7.0, 7_500), (1799.5, math.inf, 1_800_000), (math.inf, math.inf, 1_800_000)],
)
async def test_it_may_be_held_for_max_hold_and_grace_and_half_an_hour_at_most(
    virtual, path, lock, max_hold, outer, at_most_ms
):
    registry = LockRegistry(max_hold=max_hold, grace=0.5)
    with fail_after(None if outer == math.inf else outer):
        async with registry.lease(path):
            assert fields_of(lock)["maxHoldMs"] == at_most_ms


async def test_a_run_holds_until_its_fence_ends_and_is_named(virtual, path, lock):
    registry = LockRegistry()
    fence = Fence(lane="session:a", run_id=17, deadline=virtual.now() + 60, end_at=virtual.now() + 65)
    async with registry.lease_for(fence, path):
        fields = fields_of(lock)
    assert (fields["lane"], fields["runId"], fields["maxHoldMs"]) == ("session:a", 17, 65_000)


async def test_waiting_eats_nothing_of_what_a_lock_file_allows(virtual, path, lock):
    registry = LockRegistry(max_hold=300, grace=2)

    async def wait():
        async with registry.lease(path):
            assert fields_of(lock)["maxHoldMs"] == 302_000

    async with create_task_group() as group, registry.lease(path):
        group.start_soon(wait)
        await anyio.sleep(100)


@pytest.mark.usefixtures("notes_at_once")
async def test_a_turn_has_a_note_and_its_appends_have_lock_files(path, lock, note, calls):
    registry = LockRegistry()
    async with registry.turn(path) as turn:
        assert list(fields_of(note)) == KEYS
        assert fields_of(note)["epoch"] == turn.epoch
        assert not lock.exists()
        await turn.append({"n": 1})
        await to_thread.run_sync(turn.append_sync, {"n": 2})
        assert not lock.exists()
    assert calls.steps == ["lock", "create", "unlink", "unlock"] * 2
    assert not note.exists()


async def test_a_momentary_append_has_a_lock_file(path, lock, calls):
    await LockRegistry().append(path, {"n": 1})
    assert calls.steps == ["lock", "create", "unlink", "unlock"]
    assert list(json.loads(calls.made[0])) == KEYS


@pytest.mark.parametrize("options", [{"sidecar": False}, {"engine": "none"}], ids=["no sidecar", "in-process only"])
async def test_a_registry_without_lock_files_makes_none(path, tmp_path, calls, options):
    registry = LockRegistry(**options)
    async with registry.turn(path), registry.lease(path, supersede=True) as lease:
        await lease.append({"n": 1})
        assert [file.name for file in tmp_path.iterdir()] == ["session.jsonl"]
    await registry.append(path, {"n": 2})
    assert not {"create", "unlink"} & set(calls.steps)


# For how long it is there


@pytest.mark.failure("A2", "A3")
@pytest.mark.parametrize("how", ["returned", "raised", "cancelled", "expired", "revoked", "overstayed", "run ended"])
async def test_it_is_gone_when_the_lease_has_ended_however_it_ends(virtual, path, lock, tmp_path, how):
    registry = LockRegistry(max_hold=10, grace=2)
    fence = Fence(lane="session:a", run_id=17)
    with CancelScope() as outer, suppress(LockError, KeyError):
        async with registry.turn(path), registry.lease_for(fence, path):
            assert lock.exists()
            match how:
                case "raised":
                    raise KeyError
                case "cancelled":
                    outer.cancel()
                case "revoked":
                    registry.revoke(path, "by hand")
                case "overstayed":
                    virtual.advance(12.5)
                case "run ended":
                    registry.arbiter.end(fence)
            if how != "returned":
                await anyio.sleep(100)
    assert [file.name for file in tmp_path.iterdir()] == ["session.jsonl"]
    assert registry.statistics().sessions == 0


@pytest.mark.failure("B1")
async def test_who_supersedes_has_a_lock_file_of_its_own(virtual, path, lock, calls):
    registry = LockRegistry()
    loser_said = None

    async def lose():
        async with registry.lease(path):
            nonlocal loser_said
            loser_said = lock.read_bytes()
            started.set()
            await anyio.sleep(100)

    async def run():
        with pytest.raises(Superseded):
            await lose()

    started = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        async with registry.lease(path, supersede=True) as winner:
            assert fields_of(lock)["epoch"] == winner.epoch
            assert calls.made == [loser_said]
            await virtual.settle()  # the loser has left
            assert fields_of(lock)["epoch"] == winner.epoch
    assert calls.steps == ["lock", "create", "unlink", "create", "unlink", "unlock"]


async def test_who_supersedes_nobody_is_granted_at_once(path):
    with fail_after(60):
        async with LockRegistry().lease(path, supersede=True, wait_timeout=0):
            pass


async def test_each_lease_has_a_lock_file_of_its_own_and_none_is_rewritten(path, lock, calls):
    registry, kept = LockRegistry(), []

    async def hold():
        async with registry.lease(path) as lease:
            kept.append((file := lock.open("rb"), lock.read_bytes()))
            assert fields_of(lock)["epoch"] == lease.epoch
            assert os.fstat(file.fileno()).st_ino == lock.stat().st_ino
            await anyio.lowlevel.checkpoint()

    with fail_after(60):
        async with create_task_group() as group, registry.lease(path):
            for _ in range(3):
                group.start_soon(hold)
            while registry.statistics().waiting < 3:
                await anyio.lowlevel.checkpoint()
    # Handed on in this process, the kernel lock is kept and the files are not.
    assert calls.steps == ["lock", *["create", "unlink"] * 4, "unlock"]
    for file, content in kept:
        with file:
            assert os.fstat(file.fileno()).st_nlink == 0
            assert file.read() == content
    assert len({content for _, content in kept}) == 3


# The order


async def test_a_lease_is_fenced_before_its_file_goes_and_the_file_goes_before_the_lock(path, calls):
    registry = LockRegistry()
    order: list[str] = []

    def look(step):
        with suppress(NameError):
            try:
                lease.check()
            except LeaseLost:
                step += ", fenced"
        order.append(step)

    calls.look = look
    async with registry.lease(path) as lease:
        pass
    assert order == ["lock", "create", "unlink, fenced", "unlock, fenced"]


@pytest.mark.parametrize("how", ["uncontended", "handed on", "superseded", "revoked", "failing"])
async def test_the_mutex_of_the_file_is_free_while_its_lock_file_is_seen_to(path, calls, monkeypatch, how):
    registry = LockRegistry()
    looked = 0

    def look(step):
        nonlocal looked
        if step in ("create", "unlink"):
            entry = registry.arbiter.files.find(path)
            assert entry is not None
            assert not any(queue.mutex.locked() for queue in entry.queues.values())
            looked += 1
            if how == "failing":
                raise OSError(5, "planted")

    async def hold(**options):
        with suppress(LeaseLost, TranscriptError):
            async with registry.lease(path, **options):
                await anyio.lowlevel.checkpoint()
                if how == "revoked":
                    registry.revoke(path, "by hand")
                    await anyio.sleep(1)

    calls.look = look
    async with create_task_group() as group:
        group.start_soon(hold)
        if how != "uncontended":
            group.start_soon(lambda: hold(supersede=how == "superseded"))
    assert looked >= 2


# What is in its place


@pytest.mark.failure("C2", "C3")
@pytest.mark.parametrize("whose", ["dead", "another start time", "another boot", "ours, from before", "ours, alive"])
async def test_what_a_process_that_is_gone_left_behind_is_replaced(path, lock, nobody, whose):
    lock.write_bytes(
        {
            "dead": foreign(nobody, starttime=5),
            "another start time": foreign(os.getppid(), starttime=5),
            "another boot": foreign(os.getppid(), host=process.me().host, bootId="another"),
            "ours, from before": ours(instance="0123456789abcdef"),
            "ours, alive": ours(pid=os.getppid(), instance="0123456789abcdef"),
        }[whose]
    )
    async with LockRegistry().lease(path, wait_timeout=0) as lease:
        assert fields_of(lock)["epoch"] == lease.epoch
    assert not lock.exists()


@pytest.mark.failure("C3", "B7")
async def test_what_another_registry_of_this_process_holds_is_neither_taken_nor_removed(virtual, path, lock):
    registry, other = LockRegistry(), LockRegistry()
    async with registry.lease(path):
        content = lock.read_bytes()
        for supersede in (False, True):
            with pytest.raises(LockError):
                async with other.lease(path, wait_timeout=1, supersede=supersede):
                    raise AssertionError("two owners")
        assert other.arbiter.acquire_nowait(path, Right.WRITE, other.arbiter.new_claim()) is False
        async with other.turn(path):
            pass
        assert lock.read_bytes() == content
    assert not lock.exists()


@pytest.mark.failure("C4")
async def test_an_empty_file_is_replaced_after_30_seconds_and_nobody_holds_before(virtual, path, lock):
    lock.touch()
    started = virtual.now()
    async with LockRegistry().lease(path):
        assert 30.0 < virtual.now() - started <= 30.1
    assert not lock.exists()


@pytest.mark.suite("F2")
@pytest.mark.failure("C4")
@pytest.mark.parametrize("kind", ODD)
async def test_what_is_no_lock_file_is_told_to_everybody_who_waits_at_once(virtual, path, lock, kind):
    registry, elsewhere = LockRegistry(), LockRegistry()
    started, told = virtual.now(), []

    async def wait(one):
        with pytest.raises(TranscriptError, match="no lock file can be judged") as caught:
            async with one.lease(path):
                raise AssertionError("granted")
        assert str(lock) in str(caught.value) and "sidecar=False" in str(caught.value)
        assert caught.value.path == str(lock)
        told.append(one)

    async with create_task_group() as group:
        async with registry.lease(path):
            for _ in range(3):
                group.start_soon(wait, registry)
            await virtual.settle()
            lock.unlink()
            put(lock, kind)
        await virtual.settle()
        assert told == [registry] * 3
        assert virtual.now() == started
        group.start_soon(wait, elsewhere)  # the kernel lock was given back
    before = lock.lstat()
    assert virtual.now() == started
    assert (before.st_ino, before.st_size) == (lock.lstat().st_ino, lock.lstat().st_size)
    assert all(one.statistics().sessions == 0 for one in (registry, elsewhere))
    async with registry.turn(path) as turn:  # a note stands beside it, and decides nothing
        with pytest.raises(TranscriptError):
            await turn.append({"n": 1})


# What goes wrong


@pytest.mark.failure("C7")
async def test_a_removal_that_fails_three_times_is_tried_again(path, lock, calls):
    registry, failures = LockRegistry(), [OSError(16, "busy")] * 3

    def look(step):
        if step == "unlink" and failures:
            raise failures.pop()

    calls.look = look
    async with registry.lease(path):
        pass
    assert not lock.exists()
    assert calls.steps[-2:] == ["unlink", "unlock"]


@pytest.mark.failure("C7")
async def test_a_lock_file_that_cannot_be_removed_is_said_and_lets_nobody_hold_under_its_name(path, lock, calls):
    """What is on the disk says that another lease holds. To hold beside it would make the disk lie."""
    registry = LockRegistry()

    def look(step):
        if step == "unlink":
            raise PermissionError(1, "Operation not permitted")

    calls.look = look
    with capture_logs() as logs, fail_after(60):
        async with registry.lease(path) as lease:
            await lease.append({"n": 1})
        assert [(one["event"], one["path"]) for one in logs] == [("sidecar_left", path)]
        left = lock.read_bytes()
        for _ in range(2):
            with pytest.raises(TranscriptError, match="let this user create and remove files there") as caught:
                await registry.append(path, {"n": 2})
            assert caught.value.path == str(lock)
            assert caught.value.errno == 1
        assert lock.read_bytes() == left
        assert registry.statistics().sessions == 0
        calls.look = lambda step: None
        await LockRegistry().append(path, {"n": 3})
    assert not lock.exists()
    assert [record["n"] for record in await registry.read(path)] == [1, 3]


@pytest.mark.failure("C7")
@pytest.mark.parametrize("code", [13, 28])
async def test_who_cannot_write_a_lock_file_holds_nothing_and_the_others_wait_for_nobody(path, lock, calls, code):
    registry, elsewhere = LockRegistry(), LockRegistry()

    def look(step):
        if step == "create":
            raise OSError(code, os.strerror(code))

    async def wait(one):
        with pytest.raises(TranscriptError, match=re.escape(str(lock))) as caught:
            await one.append(path, {"n": 1})
        assert caught.value.errno == code

    calls.look = look
    with fail_after(60):
        async with create_task_group() as group:
            for one in (registry, registry, elsewhere):
                group.start_soon(wait, one)
    assert registry.statistics().sessions == elsewhere.statistics().sessions == 0


@pytest.mark.failure("B6", "A3")
async def test_what_was_taken_away_from_a_frozen_loop_is_not_removed_when_it_thaws(virtual, path, lock):
    """The steward has unlocked; another owner, which this loop knows nothing of, has reclaimed our lock file."""
    registry, other = LockRegistry(max_hold=1, grace=1), LockRegistry()
    claim = other.arbiter.new_claim()
    with pytest.raises(Revoked):  # noqa: PT012 -- raised by leaving the block
        async with registry.lease(path) as lease:
            mine = lock.read_bytes()
            virtual.advance(2.5)  # the loop stands still
            with pytest.raises(LeaseLost):
                lease.append_sync({"n": 1})
            assert lock.read_bytes() == mine
            assert other.arbiter.acquire_nowait(path, Right.WRITE, claim)
            theirs = lock.read_bytes()
            assert theirs != mine
            await anyio.lowlevel.checkpoint()
    assert lock.read_bytes() == theirs
    other.arbiter.release(claim)
    assert not lock.exists()


@pytest.mark.failure("B6", "A3")
async def test_what_was_taken_away_and_wanted_by_nobody_is_removed_when_the_loop_thaws(virtual, path, lock):
    registry = LockRegistry(max_hold=1, grace=1)
    with pytest.raises(Revoked):  # noqa: PT012 -- raised by leaving the block
        async with registry.lease(path):
            virtual.advance(2.5)
            assert lock.exists()
            await anyio.lowlevel.checkpoint()
    assert not lock.exists()


@pytest.mark.failure("B6")
@pytest.mark.usefixtures("notes_at_once")
async def test_a_forked_child_leaves_its_parents_lock_files_and_has_closed_its_copies(path, lock, note):
    registry = LockRegistry()
    async with registry.turn(path), registry.lease(path):
        content, named = lock.read_bytes(), note.read_bytes()
        child = _fork(lambda: [os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()])
        assert not [name for name in child if "session.jsonl" in name]
        assert lock.read_bytes() == content
        assert note.read_bytes() == named
    assert not lock.exists()


def _descriptors():
    return [fd for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")]


def _fork(act):
    """What `act` returns in a forked child; it ends without any clean-up, and after it."""
    ours_, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    with open(ours_, "rb") as told:
        return json.loads(told.read())


async def test_a_program_that_is_started_while_a_lease_is_held_inherits_nothing(path, lock):
    registry = LockRegistry()
    async with registry.turn(path), registry.lease(path):
        started = await to_thread.run_sync(
            lambda: subprocess.run(["ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)  # noqa: PLW1510 -- its listing is looked at
        )
    assert "pipe:" in started.stdout
    assert "session.jsonl" not in started.stdout
