"""One owner per sessions directory: who is kept out, who is named, and what no way to die leaves behind."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from locks import InvalidSession, LockRegistry, _os, process
from locks.doctor.inspection import sessions_in
from runtime.process import owner
from runtime.process.owner import NAME, Ownership, SessionsOwned, own, read_owner
from runtime.trial import verdict
from tests import blocking
from tests.peers import Peer, peer
from tests.poll import eventually, eventually_sync

LIMIT_S = 60.0


@pytest.fixture
def root(tmp_path) -> str:
    return str(tmp_path)


@pytest.fixture(params=["kernel", "filelock"])
def engine(request, monkeypatch) -> str:
    """Each way to exclude processes."""
    monkeypatch.setattr("locks.engines.choose.kernel_locks_work", lambda: request.param == "kernel")
    return str(request.param)


def taken_by_another(root: str) -> bool:
    try:
        Ownership.take(root).release()
    except SessionsOwned:
        return True
    return False


# Who is kept out


@pytest.mark.failure("G8")
def test_a_second_one_of_the_same_process_is_refused_at_once_and_told_who_the_first_is(root, engine):
    first = Ownership.take(root)
    with pytest.raises(SessionsOwned) as caught:
        Ownership.take(root)
    error = caught.value
    assert (error.root, error.pid, error.host, error.waited_s) == (root, os.getpid(), process.me().host, 0.0)
    assert error.since is not None
    assert abs(error.since - process.wall()) < LIMIT_S
    assert f"{root!r} is owned by process {os.getpid()}, this one, since 2" in str(error)
    assert ", for 0:00:" in str(error)
    assert not isinstance(error, OSError)
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)
    first.release()
    Ownership.take(root).release()


@pytest.mark.failure("G8")
def test_a_second_process_is_refused_at_once_and_told_who_the_first_is(root):
    with peer("owner", root) as other:
        eventually_sync(lambda: other.said("owned"), within=LIMIT_S)
        with pytest.raises(SessionsOwned, match=rf"is owned by process {pid_of(other)} since ") as caught:
            Ownership.take(root)
        assert caught.value.pid == pid_of(other)
        other.tell("leave")
        eventually_sync(lambda: other.said("left"), within=LIMIT_S)
        Ownership.take(root).release()  # though that process lives


def test_another_name_of_the_directory_is_the_same_directory(tmp_path, engine):
    (tmp_path / "sessions").mkdir()
    (tmp_path / "link").symlink_to("sessions")
    first = Ownership.take(str(tmp_path / "sessions"))
    assert taken_by_another(str(tmp_path / "link"))
    first.release()


def test_of_many_threads_one_becomes_the_owner(root, engine):
    barrier, kept = threading.Barrier(8), []

    def take(_) -> bool:
        barrier.wait(LIMIT_S)
        try:
            kept.append(Ownership.take(root))
        except SessionsOwned:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(take, range(8))) == [False] * 7 + [True]
    kept[0].release()


def test_the_file_names_the_owner_while_there_is_one_and_stays(root, engine):
    ownership = Ownership.take(root)
    line = Path(root, NAME).read_text()
    assert line.endswith("\n") and line.count("\n") == 1
    me = process.me()
    assert {**json.loads(line), "since": ""} == {
        "pid": me.pid,
        "starttime": me.starttime,
        "boot_id": me.boot_id,
        "host": me.host,
        "since": "",
        "sessions": root,
    }
    assert repr(ownership) == f"<Ownership of {root}, held>"
    ownership.release()
    ownership.release()
    assert Path(root, NAME).read_bytes() == b""
    assert not ownership.held
    assert read_owner(root) is None


def test_a_release_does_not_take_what_the_next_one_has(root, engine):
    first = Ownership.take(root)
    first.release()
    second = Ownership.take(root)
    first.release()
    assert taken_by_another(root)
    assert read_owner(root) is not None
    second.release()


def owner_pid(root: str) -> int | None:
    found = read_owner(root)
    return None if found is None else found.pid


def pid_of(other: Peer) -> int:
    return other._process.pid


# What an owner dies of


@pytest.mark.failure("C1", "C8", "G8")
@pytest.mark.parametrize("end", ["SIGKILL", "SIGHUP", "SIGABRT", "_exit", "abort"])
def test_whatever_the_owner_dies_of_the_next_one_starts_at_once(root, end):
    with peer("owner", root) as other:
        eventually_sync(lambda: other.said("owned"), within=LIMIT_S)
        if end.startswith("SIG"):
            other.signal(signal.Signals[end])
        else:
            other.tell(end)
        eventually_sync(other.ended, within=LIMIT_S)
    assert b'"pid"' in Path(root, NAME).read_bytes()  # its name has outlived it, and keeps nobody out
    ownership = Ownership.take(root)
    assert owner_pid(root) == os.getpid()
    ownership.release()


@pytest.mark.failure("C1")
def test_a_forked_child_does_not_own_on_when_its_parent_has_died(root):
    with peer("owner", root, "fork") as other:
        eventually_sync(lambda: other.said("owned"), within=LIMIT_S)
        eventually_sync(lambda: len(other.lines) == 2, within=LIMIT_S)
        child, _, state = next(line for line in other.lines if line != "owned").removeprefix("child: ").partition(" ")
        try:
            assert state == f"<Ownership of {root}, released>"
            assert taken_by_another(root)  # by the parent, still
            other.signal(signal.SIGKILL)
            eventually_sync(other.ended, within=LIMIT_S)
            os.kill(int(child), 0)
            Ownership.take(root).release()
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_no_descriptor_of_an_owner_reaches_another_program(root):
    ownership = Ownership.take(root)
    (fd,) = [one for one in map(int, os.listdir("/proc/self/fd")) if owner_file_is(one, root)]
    assert not os.get_inheritable(fd)
    ownership.release()


def owner_file_is(fd: int, root: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == os.path.join(root, NAME)
    except FileNotFoundError:
        return False  # that of the listing


# Waiting


@pytest.mark.failure("C6", "G8")
async def test_one_that_waits_says_for_whom_and_takes_over_when_the_owner_leaves(root):
    first = Ownership.take(root)
    with capture_logs() as lines, anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                (await own(root, 2 * LIMIT_S)).release()

            group.start_soon(wait)
            await eventually(lambda: lines, within=LIMIT_S)
            first.release()
    (line,) = lines
    assert (line["event"], line["sessions"], line["wait_s"]) == ("waiting_for_owner", root, 2 * LIMIT_S)
    assert line["owner"].startswith(f"process {os.getpid()}, this one, since 2")


async def test_waiting_ends_after_the_time_that_was_given(root, virtual):
    first, began = Ownership.take(root), virtual.now()
    with pytest.raises(SessionsOwned, match=r"; waited 5\.0 s$") as caught:
        await own(root, 5.0)
    assert caught.value.waited_s == virtual.now() - began == 5.0
    first.release()


async def test_who_does_not_wait_is_told_at_once_and_nothing_is_logged(root, virtual):
    first, began = Ownership.take(root), virtual.now()
    with capture_logs() as lines, pytest.raises(SessionsOwned):
        await own(root)
    assert (virtual.now(), lines) == (began, [])
    first.release()


async def test_a_free_directory_is_taken_without_waiting(root, virtual):
    began = virtual.now()
    ownership = await own(root, 5.0)
    assert (virtual.now(), ownership.held) == (began, True)
    ownership.release()


async def test_a_wait_that_is_cancelled_leaves_nothing(root, virtual):
    first = Ownership.take(root)
    with anyio.move_on_after(1.0) as scope:
        await own(root, 5.0)
    assert scope.cancelled_caught
    first.release()
    await virtual.settle()
    assert read_owner(root) is None  # nobody has taken it since
    assert owner._held == set()
    Ownership.take(root).release()


async def test_a_cancelled_caller_takes_nothing(root):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await own(root)
    assert scope.cancelled_caught
    assert os.listdir(root) == []


@pytest.mark.failure("C6")
@pytest.mark.backends("asyncio", "trio")
async def test_a_stopped_owner_is_waited_for_as_long_as_was_said_and_named(root):
    with peer("owner", root) as other:
        await eventually(lambda: other.said("owned"), within=LIMIT_S)
        other.signal(signal.SIGSTOP)
        await eventually(other.stopped, within=LIMIT_S)
        with anyio.fail_after(LIMIT_S), pytest.raises(SessionsOwned, match=f"process {pid_of(other)} ") as caught:
            await own(root, 0.2)
        assert caught.value.waited_s >= 0.2
        other.signal(signal.SIGKILL)  # its hard limit, say
        with anyio.fail_after(LIMIT_S):
            (await own(root, 2 * LIMIT_S)).release()


# The file


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"garbage\n",
        b"[" * 70_000,
        b'{"x":' * 10_000,
        b'{"pid": -1, "host": "h", "since": "2026-01-01T00:00:00Z", "sessions": "s"}',
        b'{"pid": 7, "host": "h", "since": "2026-01-01T00:00:00", "sessions": "s"}',
        b'{"pid": 7, "host": "h", "since": "yesterday", "sessions": "s"}',
        b'{"pid": 7, "host": "\xff", "since": "2026-01-01T00:00:00Z", "sessions": "s"}',
        b"x" * 1_000_000,
    ],
    ids=["empty", "zeros", "garbage", "brackets", "deep", "negative", "no zone", "no time", "no UTF-8", "much"],
)
def test_an_owner_whose_file_says_nothing_is_unknown_and_excludes_as_well(root, content):
    Path(root, NAME).write_bytes(content)
    first = Ownership.take(root)  # it was free, whatever stood there
    assert owner_pid(root) == os.getpid()
    Path(root, NAME).write_bytes(content)
    with pytest.raises(SessionsOwned, match=r"is owned by another process \(unknown\)$") as caught:
        Ownership.take(root)
    assert (caught.value.pid, caught.value.host, caught.value.since) == (None, None, None)
    first.release()


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"])
def test_an_owner_of_any_time_and_host_can_be_shown(root, since):
    first = Ownership.take(root)
    words = {"pid": 7, "host": "other\nhost", "since": since, "sessions": "s"}
    Path(root, NAME).write_text(json.dumps(words))
    with pytest.raises(SessionsOwned) as caught:
        Ownership.take(root)
    assert rf"process 7 on host 'other\nhost' since {since[:4]}" in str(caught.value)
    first.release()


def test_an_owner_whose_file_cannot_be_read_is_unknown(root, monkeypatch):
    first = Ownership.take(root)

    def fail(*_) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(_os, "pread", fail)
        with pytest.raises(SessionsOwned, match="unknown"):
            Ownership.take(root)
    first.release()


def test_on_a_full_disk_the_owner_is_unknown_and_never_the_one_before(root, monkeypatch):
    Path(root, NAME).write_text('{"pid": 7, "host": "h", "since": "2026-01-01T00:00:00Z", "sessions": "s"}')
    assert owner_pid(root) == 7

    def fail(*_) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(_os, "write", fail)
        first = Ownership.take(root)
    assert read_owner(root) is None
    assert taken_by_another(root)
    first.release()


def _directory(path: Path, outside: Path) -> None:
    path.mkdir()


def _symlink(path: Path, outside: Path) -> None:
    outside.write_text("precious")
    path.symlink_to(outside)


def _dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def _hard_link(path: Path, outside: Path) -> None:
    outside.write_text("precious")
    path.hardlink_to(outside)


@pytest.mark.parametrize(
    "plant, told",
    [
        (_directory, "is a directory"),
        (_symlink, "is a symbolic link"),
        (_dangling, "is a symbolic link"),
        (_fifo, "is a FIFO"),
        (_socket, "is a socket"),
        (_hard_link, "is a hard link"),
    ],
)
def test_what_is_no_file_of_its_own_is_refused_and_neither_followed_nor_written(tmp_path, plant, told):
    sessions, outside = tmp_path / "sessions", tmp_path / "outside"
    sessions.mkdir()
    plant(sessions / NAME, outside)
    before = outside.read_text() if outside.exists() else None
    with pytest.raises(
        InvalidSession, match=rf"^sessions: '.*{NAME}' cannot be used \(it {told}.*; allowed: "
    ) as caught:
        Ownership.take(str(sessions))
    assert not isinstance(caught.value, OSError)
    assert (outside.read_text() if outside.exists() else None) == before
    assert read_owner(str(sessions)) is None


def test_a_fifo_that_takes_the_place_of_the_file_meanwhile_is_refused(root, monkeypatch):
    Path(root, NAME).touch()
    real = _os.open

    def swap(path, *rest) -> int:
        os.unlink(path)
        os.mkfifo(path)
        return real(path, *rest)

    with monkeypatch.context() as swapping:
        swapping.setattr(_os, "open", swap)
        with pytest.raises(InvalidSession, match="is a FIFO"):
            Ownership.take(root)


def test_a_directory_that_is_not_there_is_refused(root):
    with pytest.raises(InvalidSession, match="No such file or directory"):
        Ownership.take(root + "/nowhere")


def test_a_file_that_is_removed_while_it_is_taken_is_made_anew(root, monkeypatch):
    real, path = _os.ofd_lock, os.path.join(root, NAME)
    removed: list[int] = []

    def lock(fd, position) -> bool:
        if not removed:
            removed.append(fd)
            os.unlink(path)
        return real(fd, position)

    with monkeypatch.context() as racing:
        racing.setattr(_os, "ofd_lock", lock)
        first = Ownership.take(root)
    assert removed
    assert taken_by_another(root)
    assert owner_pid(root) == os.getpid()
    first.release()


def test_a_kernel_that_refuses_the_lock_is_an_error_and_no_owner(root, monkeypatch):
    def fail(*_) -> bool:
        raise OSError(37, "No locks available")

    with monkeypatch.context() as broken:
        broken.setattr(_os, "ofd_lock", fail)
        with pytest.raises(InvalidSession, match="No locks available"):
            Ownership.take(root)
    Ownership.take(root).release()


async def test_nothing_that_lists_sessions_sees_the_files_of_an_owner(root, engine):
    with blocking.permitted("a look at the directory"):
        ownership = Ownership.take(root)
        await LockRegistry().append(os.path.join(root, "a.jsonl"), {"n": 1})
        try:
            assert sessions_in(root) == ["a.jsonl"]
            assert [os.path.basename(path) for path in verdict._transcripts(root)] == ["a.jsonl"]
            assert verdict.survey(root).broken == []
        finally:
            ownership.release()
