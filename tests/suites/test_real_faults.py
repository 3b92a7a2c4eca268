"""Suite F2: real faults. Disks are full, directories vanish, owners die and are stopped, file systems freeze.

What takes root or a mount is done with them where they are to be had; what shows the same without is always done.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread

from locks import LeaseLost, LeaseTimeout, LockRegistry, Revoked, TranscriptError, _os
from tests.disks import must_run, run, small_disk  # noqa: F401 -- a fixture
from tests.lock_files import foreign
from tests.peers import peer
from tests.poll import eventually


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "session.jsonl")


@pytest.fixture
def lock(path):
    return Path(path + ".lock")


async def numbers(path):
    return [record["n"] for record in await LockRegistry().read(path, on_error="raise")]


# Owners that die or are stopped


@pytest.mark.failure("C1", "C8")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGABRT, "exits", "aborts"])
@pytest.mark.backends("asyncio")
async def test_the_lock_file_of_an_owner_that_ended_without_a_word_is_replaced(path, lock, how):
    registry = LockRegistry()
    told = ("faults", how, path) if isinstance(how, str) else ("holder", path, "lease", "asyncio")
    with peer(*told) as other, fail_after(30):
        await eventually(lambda: "held" in other.lines, within=60)
        if not isinstance(how, str):
            other.signal(how)
        await eventually(other.ended)
    left = lock.read_bytes()
    async with registry.lease(path, wait_timeout=0) as lease:
        assert lock.read_bytes() != left
        assert json.loads(lock.read_bytes())["epoch"] == lease.epoch
        assert json.loads(lock.read_bytes())["pid"] == os.getpid()
    assert not lock.exists()


@pytest.mark.failure("C4")
@pytest.mark.backends("asyncio", "trio")
async def test_a_creator_that_is_stopped_before_it_writes_has_the_session_and_nobody_else(path, lock):
    registry = LockRegistry()
    with peer("faults", "stopped", path) as other, fail_after(30):
        await eventually(other.stopped, within=60)
        assert lock.read_bytes() == b""
        os.utime(lock, (1, 1))  # for whoever has only the file to go by, it is a left-over
        with pytest.raises(LeaseTimeout):
            async with registry.lease(path, wait_timeout=0.1):
                raise AssertionError("two owners")
        assert lock.read_bytes() == b""
        other.signal(signal.SIGCONT)
        await eventually(lambda: other.said("held"))
        assert json.loads(lock.read_bytes())["instance"]
        other.tell("leave")
        await eventually(lambda: other.said("left"))
    assert not lock.exists()


@pytest.mark.failure("C4")
@pytest.mark.backends("asyncio", "trio")
async def test_a_creator_that_lost_its_empty_file_to_a_foreign_gateway_waits_for_it(path, lock):
    with peer("faults", "stopped", path) as other, fail_after(30):
        await eventually(other.stopped, within=60)
        lock.unlink()
        lock.write_bytes(content := foreign(os.getpid()))
        other.signal(signal.SIGCONT)
        await eventually(lambda: not other.stopped())
        with pytest.raises(LeaseTimeout):
            async with LockRegistry().lease(path, wait_timeout=0.2):
                raise AssertionError("two owners")
        assert not other.said("held")
        assert lock.read_bytes() == content
        lock.unlink()
        await eventually(lambda: other.said("held"))
        other.tell("leave")
        await eventually(lambda: other.said("left"))
    assert not lock.exists()


# What stands where the session should be


@pytest.mark.suite("F2")
@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink loop", "device"])
async def test_what_is_no_regular_file_is_no_session(path, tmp_path, kind):
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            Path(path).mkdir()  # noqa: ASYNC240 -- on the spot
        case "symlink loop":
            os.symlink(path, path)
        case "device":
            os.symlink("/dev/null", path)
    registry = LockRegistry()
    with fail_after(60):
        for entering in (registry.lease(path), registry.turn(path)):
            with pytest.raises(TranscriptError) as caught:
                async with entering:
                    raise AssertionError("granted")
            assert path in str(caught.value)
        with pytest.raises(TranscriptError):
            await registry.append(path, {"n": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["session.jsonl"]
    assert registry.statistics().sessions == 0


@pytest.mark.suite("F2")
async def test_a_session_of_a_gigabyte_is_appended_to_and_read_from_its_end(path):
    with open(path, "wb") as file:  # noqa: ASYNC230 -- a hole takes no time
        file.seek(1 << 30)
        file.write(b'\n{"n": 1}\n')
    registry = LockRegistry()
    with fail_after(60):
        position = await registry.append(path, {"n": 2})
        assert await registry.read(path, last=2) == [{"n": 1}, {"n": 2}]
    assert position.offset == os.path.getsize(path)  # noqa: ASYNC240 -- as above


@pytest.mark.suite("F2")
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_directory_that_goes_while_a_lease_is_held_takes_the_lease_with_it(tmp_path, how):
    directory, outside = tmp_path / "sessions", tmp_path / "precious"
    directory.mkdir()
    outside.write_bytes(b"precious")
    path, registry = directory / "session.jsonl", LockRegistry()

    async def hold():
        async with registry.turn(path) as turn, registry.lease(path) as lease:
            await lease.append({"n": 1})
            if how == "deleted":
                shutil.rmtree(directory)
            else:
                directory.rename(tmp_path / "before")
                directory.mkdir()
                path.write_bytes(b'{"n": 7}\n')
            for one in (lease, turn):
                with pytest.raises((LeaseLost, TranscriptError)):
                    await one.append({"n": 2})

    with fail_after(60):
        await hold()
        if how == "deleted":
            with pytest.raises(TranscriptError):
                await registry.append(path, {"n": 3})
            directory.mkdir()
        await registry.append(path, {"n": 3})
    assert await numbers(path) == ([3] if how == "deleted" else [7, 3])
    if how == "replaced":
        assert await numbers(tmp_path / "before" / "session.jsonl") == [1]
    assert [file.name for file in directory.iterdir()] == ["session.jsonl"]
    assert outside.read_bytes() == b"precious"


# What a process may not do


@pytest.fixture
def shared():
    """A directory that other users reach, with files of theirs."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        os.chmod(directory, 0o777)
        for session in ("closed", "open"):
            (directory / session).touch()
            os.chmod(directory / session, 0o666)
        yield directory
        os.chmod(directory, 0o777)


@pytest.mark.suite("F2")
@pytest.mark.backends("asyncio")  # the other process does it all
async def test_who_lacks_permissions_is_told_so_at_once_and_holds_nothing(shared):
    lock = shared / "closed.lock"
    lock.write_bytes(foreign(os.getpid()))
    os.chmod(lock, 0)
    answers = {}
    with peer("faults", "user", shared / "warm-up") as other, fail_after(30):
        await eventually(lambda: other.said("ready"), within=60)

        async def ask(name, n):
            count = len(other.lines)
            other.tell(f"{name} {n}")
            await eventually(lambda: len(other.lines) > count)
            answers[n] = other.lines[-1]

        await ask("closed", 1)
        await ask("plain:closed", 2)
        os.chmod(shared, 0o555)
        await ask("open", 3)
        await ask("plain:open", 4)
        await ask("missing", 5)
        os.chmod(shared, 0o777)
        await ask("open", 6)
    forbidden = errno.EACCES
    assert answers[1].startswith(f"1: TranscriptError {forbidden}: cannot read the lock file {lock}: ")
    assert "let this user read it, or use sidecar=False" in answers[1]
    assert answers[2] == "appended 2"
    assert answers[3].startswith(f"3: TranscriptError {forbidden}: cannot create the lock file {shared / 'open.lock'}")
    assert "let this user create and remove files there, or use sidecar=False" in answers[3]
    assert answers[4] == "appended 4"
    assert answers[5].startswith(f"5: TranscriptError {forbidden}: cannot open {shared / 'missing'}: ")
    assert answers[6] == "appended 6"
    assert await numbers(shared / "open") == [4, 6]
    os.chmod(lock, 0o600)


@pytest.mark.suite("F2")
@pytest.mark.backends("asyncio")  # the other process does it all
async def test_who_has_no_descriptor_left_is_told_so_and_goes_on_when_there_are_some(path, tmp_path):
    with peer("faults", "descriptors", path) as other, fail_after(30):
        await eventually(other.ended, within=60)
        lines = other.lines
    assert [line.split(":")[0] for line in lines] == ["appended 1", "2", "appended 3", "4", "5", "appended 6"]
    assert all(f"TranscriptError {errno.EMFILE}" in line for line in lines if line[0] in "245")
    assert f"{path}.lock" in lines[4]
    assert await numbers(path) == [1, 3, 6]
    assert {file.name for file in tmp_path.iterdir()} == {"session.jsonl"}


# Full disks


@pytest.mark.suite("F2")
@pytest.mark.backends("asyncio")  # the other process does it all
async def test_a_line_that_breaks_off_at_a_limit_is_rolled_back(path, lock):
    with peer("faults", "size", path) as other, fail_after(30):
        await eventually(other.ended, within=60)
        lines = other.lines
    assert [line.split(":")[0] for line in lines] == [*(f"appended {n}" for n in range(3)), "3", "appended 4"]
    assert f"TranscriptError {errno.EFBIG}" in lines[3]
    assert await numbers(path) == [0, 1, 2, 4]
    assert not lock.exists()


@pytest.mark.suite("F2")
async def test_a_disk_that_is_full_in_the_middle_of_a_line_loses_nothing_that_was_acknowledged(small_disk):  # noqa: F811
    disk, fill = small_disk
    path, registry, acknowledged = disk / "session.jsonl", LockRegistry(), []
    fill(24_576)
    with fail_after(60):
        with pytest.raises(TranscriptError) as broken_off:  # noqa: PT012 -- by whichever does not fit any more
            for n in range(3):
                await registry.append(path, {"n": n, "text": "x" * 9_000})
                acknowledged.append(n)
        assert broken_off.value.errno == errno.ENOSPC
        assert acknowledged
        fill(0)
        for _ in range(2):  # not even a lock file can be written
            with pytest.raises(TranscriptError) as caught:
                await registry.append(path, {"n": 9, "text": "x" * 9_000})
            assert caught.value.errno == errno.ENOSPC
        assert await numbers(path) == acknowledged
        fill(40_000)
        await registry.append(path, {"n": 10})
    assert await numbers(path) == [*acknowledged, 10]
    assert {file.name for file in disk.iterdir()} <= {"session.jsonl", "filler"}


# Writes that hang


class Frozen:
    """A directory whose writes hang from `freeze` to `thaw`."""

    def __init__(self, directory: Path, freeze: Callable[[], object], thaw: Callable[[], object]) -> None:
        self.directory = directory
        self.freeze = freeze
        self.thaw = thaw


@contextmanager
def frozen_disk(tmp_path):
    """A file system of its own, in a file."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    if not (run("mkfs.ext4", "-q", "-F", image) and run("mount", "-o", "loop", image, disk)):
        yield None
        return
    try:
        yield Frozen(disk, partial(must_run, "fsfreeze", "-f", disk), partial(run, "fsfreeze", "-u", disk))
    finally:
        run("fsfreeze", "-u", disk)
        assert run("umount", disk)


@contextmanager
def frozen_seam(tmp_path, monkeypatch):
    """The write of a long line hangs in a thread, as it does on a frozen file system."""
    hanging, write = threading.Event(), _os.write
    hanging.set()

    def slow(fd, data):
        if len(data) > 4096:
            hanging.wait()
        return write(fd, data)

    monkeypatch.setattr(_os, "write", slow)
    try:
        yield Frozen(tmp_path, hanging.clear, hanging.set)
    finally:
        hanging.set()


@functools.cache
def can_freeze() -> bool:
    with tempfile.TemporaryDirectory() as place, frozen_disk(Path(place)) as frozen:
        return frozen is not None and all(run("fsfreeze", how, frozen.directory) for how in ("-f", "-u"))


@pytest.fixture(params=["played", "real"] if can_freeze() else ["played"])
def frozen(request, tmp_path, monkeypatch):
    with ExitStack() as stack:
        disk = frozen_disk(tmp_path) if request.param == "real" else frozen_seam(tmp_path, monkeypatch)
        frozen = stack.enter_context(disk)
        assert frozen is not None
        rescue = threading.Timer(120, frozen.thaw)  # lest a failing test hang with the file system
        rescue.start()
        stack.callback(rescue.join)
        stack.callback(rescue.cancel)
        yield frozen


@pytest.mark.suite("F2")
@pytest.mark.failure("F7")
@pytest.mark.backends("asyncio", "trio")
async def test_a_write_that_hangs_keeps_its_own_session_only(frozen, path):
    registry = LockRegistry(max_hold=0.1, grace=0.1)
    stuck, ends = frozen.directory / "stuck.jsonl", list[str]()

    async def hang():
        try:
            async with registry.lease(stuck) as lease:
                await to_thread.run_sync(frozen.freeze)
                with CancelScope(shield=True):
                    await to_thread.run_sync(lease.append_sync, {"n": 1, "text": "x" * 10_000})
                ends.append("appended")
                await anyio.sleep(10)
        except LeaseLost as error:
            ends.append(type(error).__name__)

    async def overstay():
        with pytest.raises(Revoked):  # noqa: PT012 -- raised by leaving the block
            async with registry.lease(path) as lease:
                with CancelScope(shield=True):
                    await eventually(lambda: lease.lost)

    with fail_after(60):
        async with create_task_group() as group:
            group.start_soon(hang)
            await eventually(lambda: pending(registry, stuck))
            # The steward came for the session that hangs, could not have it, and goes on with the others.
            await overstay()
            with CancelScope() as scope:
                async with create_task_group() as waiters:
                    waiters.start_soon(_wait, registry, stuck)
                    waiters.start_soon(_wait, registry, stuck)
                    await eventually(lambda: registry.statistics().waiting == 2)
                    scope.cancel()
            assert registry.statistics().waiting == 0
            assert registry.statistics().held == 1
            with pytest.raises(LeaseTimeout):
                async with registry.lease(stuck, wait_timeout=0.01):
                    raise AssertionError("two owners")
            await registry.append(path, {"n": 2})
            assert ends == []
            await to_thread.run_sync(frozen.thaw)
        assert ends[-1] == "Revoked"
        await registry.append(stuck, {"n": 3})
    assert await numbers(stuck) == [1, 3]
    assert {file.name for file in frozen.directory.iterdir()} & {"stuck.jsonl.lock", "stuck.jsonl.torn"} == set()


@pytest.mark.suite("F2")
@pytest.mark.failure("F7", "A3")
@pytest.mark.backends("asyncio")
async def test_a_process_whose_loop_hangs_in_a_write_gives_its_other_sessions_away(frozen, path):
    registry = LockRegistry()
    stuck = frozen.directory / "stuck.jsonl"
    real = os.path.ismount(frozen.directory)  # noqa: ASYNC240 -- on the spot
    with peer("faults", "hangs", stuck, path, "real" if real else "played") as other, fail_after(60):
        await eventually(lambda: other.said("held"), within=60)
        await to_thread.run_sync(frozen.freeze)
        other.tell("write")
        async with registry.lease(path) as lease:  # it goes on only when we say so
            await lease.append({"n": 2})
            with CancelScope() as scope:
                async with create_task_group() as waiters:
                    waiters.start_soon(_wait, registry, stuck)
                    waiters.start_soon(_wait, registry, stuck)
                    await eventually(lambda: registry.statistics().waiting == 2)
                    scope.cancel()
            assert registry.statistics().sessions == 1
            assert not other.said("appended")
            await to_thread.run_sync(frozen.thaw)
            other.tell("go on")
            await eventually(other.ended)
            assert other.lines == ["held", "appended", "Revoked"]
            lease.check()
    assert await numbers(stuck) == [1]
    assert await numbers(path) == [2]


async def _wait(registry, path):
    async with registry.lease(path):
        raise AssertionError("two owners")


def pending(registry, path):
    """Whether the steward came and could not have the file's mutex."""
    entry = registry.arbiter.files.find(str(path))
    return entry is not None and any(
        queue.holder is not None and queue.holder.revoke_pending is not None for queue in entry.queues.values()
    )
