"""Owners of whom nothing can be known, because there is no `/proc` or it tells another story: they are waited for."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
from anyio import fail_after

from locks import _os, process
from locks.process import Shifts
from locks.sidecar.payload import Terms, encode, parse
from tests import ROOT
from tests.lock_files import foreign
from tests.namespaces import with_clocks_ahead, without_proc
from tests.peers import peer
from tests.poll import eventually


@pytest.fixture
def proc_gone():
    return without_proc()


@pytest.fixture
def clocks_ahead():
    return with_clocks_ahead(100_000)


@pytest.fixture
def masked(monkeypatch):
    """A system on which `/proc` is an empty directory. psutil, which reads it as well, finds nobody."""
    original = _os.open

    def open_(path, flags, *mode):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return original(path, flags, *mode)

    def readlink(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    def nobody(pid=None):
        raise psutil.NoSuchProcess(pid or os.getpid())

    monkeypatch.setattr(_os, "open", open_)
    monkeypatch.setattr(_os, "readlink", readlink)
    monkeypatch.setattr(psutil, "Process", nobody)
    for name in ("_me", "_shifts"):
        monkeypatch.setattr(process, name, None)


# The real thing


@pytest.mark.failure("Y3", "B9")
@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("starttime", [True, False], ids=["its start time is told", "it is not"])
async def test_without_proc_a_live_foreign_owner_is_waited_for_until_it_ends(
    path, lock, other, proc_gone, backend, starttime
):
    content = foreign(other.pid) if starttime else foreign(other.pid, starttime=None)
    lock.write_bytes(content)
    with peer("inside", path, backend, *proc_gone) as waiter, fail_after(60):
        await eventually(lambda: waiter.said("waiting"), within=30)
        assert not waiter.said("held")
        assert lock.read_bytes() == content
        other.kill()
        other.wait()
        await eventually(lambda: waiter.said("held"), within=30)


@pytest.mark.failure("Y3", "Y7", "B9")
@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_from_another_time_namespace_a_live_foreign_owner_is_waited_for(path, lock, other, clocks_ahead, backend):
    content = foreign(other.pid)
    lock.write_bytes(content)
    with peer("inside", path, backend, *clocks_ahead) as waiter, fail_after(60):
        await eventually(lambda: waiter.said("waiting"), within=30)
        assert not waiter.said("held")
        assert lock.read_bytes() == content
        other.kill()
        other.wait()
        await eventually(lambda: waiter.said("held"), within=30)


@pytest.mark.failure("Y3")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_proc_a_supervisor_works(tmp_path, proc_gone, backend):
    code = (
        "import anyio, sys\n"
        "from runtime import Supervisor\n"
        "async def answer(ctx):\n"
        "    await ctx.session.append({'n': 1})\n"
        "    return 'done'\n"
        "async def main():\n"
        "    async with Supervisor(sys.argv[1], exclusive=True) as sup:\n"
        "        print(await sup.submit('session:a', answer).result(), sup.statistics().process.threads >= 0)\n"
        "anyio.run(main, backend=sys.argv[2])\n"
    )
    command = [*proc_gone, sys.executable, "-c", code, str(tmp_path), backend]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60)
    assert "done True" in ended.stdout.splitlines(), ended.stderr


# Its twins: the seam is replaced


@pytest.mark.failure("Y3")
def test_what_cannot_be_found_in_a_proc_that_is_not_there_is_alive(masked, other):
    assert process.me().starttime is None
    assert process.is_alive(other.pid)
    assert process.starttime(other.pid) is None
    assert process.age_s() is None
    assert process.shifts() == Shifts()
    other.kill()
    other.wait()
    assert not process.is_alive(other.pid)  # the kernel itself has no such number


@pytest.mark.failure("Y3")
def test_a_zombie_that_nothing_can_tell_from_a_live_process_is_waited_for(masked, other):
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_alive(other.pid)
    other.wait()
    assert not process.is_alive(other.pid)


@pytest.mark.failure("Y3", "B8")
@pytest.mark.parametrize("says", ["1", "4711", ""])
def test_the_proc_of_another_pid_namespace_says_nothing(monkeypatch, other, says):
    """Its `self` has another number, or none; so have all others. That of `other` is a zombie there."""
    original = _os.readlink

    def readlink(path):
        if path != "/proc/self":
            return original(path)
        if not says:
            raise FileNotFoundError(2, "No such file or directory", path)
        return says

    read = process._read
    monkeypatch.setattr(_os, "readlink", readlink)
    monkeypatch.setattr(process, "_me", None)
    monkeypatch.setattr(
        process, "_read", lambda path: b"1 (x) Z " + b"0 " * 30 if path.endswith("/stat") else read(path)
    )
    assert process.starttime(other.pid) is None
    assert process.me().starttime is None
    assert process.age_s() is None
    assert process.is_alive(other.pid)
    other.kill()
    other.wait()
    assert not process.is_alive(other.pid)


@pytest.mark.failure("Y3", "Y7")
@pytest.mark.parametrize("whose", ["ours", "its"])
def test_start_times_of_different_time_namespaces_are_not_compared(monkeypatch, other, whose):
    shifted = b"monotonic 0 0\nboottime -5 500000000\n"
    read = process._read
    of = "/proc/self/timens_offsets" if whose == "ours" else f"/proc/{other.pid}/timens_offsets"
    monkeypatch.setattr(process, "_read", lambda path: shifted if path == of else read(path))
    assert process.starttime(other.pid) is None
    assert process.is_alive(other.pid)


@pytest.mark.failure("Y3", "Y7")
def test_a_lock_file_does_not_tell_a_start_time_that_readers_elsewhere_would_not_find(monkeypatch):
    told = parse(encode(Terms(None, None, 1, 1000), process.wall()))
    assert told is not None and told.starttime == process.me().starttime is not None
    monkeypatch.setattr(process, "_shifts", Shifts(boottime=5))
    monkeypatch.setattr("locks.sidecar.payload._prepared", None)
    told = parse(encode(Terms(None, None, 1, 1000), process.wall()))
    monkeypatch.setattr("locks.sidecar.payload._prepared", None)
    assert told is not None and told.starttime is None and told.pid == os.getpid()


@pytest.mark.parametrize("text", [None, b"", b"monotonic 1 2", b"monotonic x 0\nboottime 0 0\n", b"\xff\n"])
def test_offsets_that_cannot_be_read_are_none(monkeypatch, text):
    monkeypatch.setattr(process, "_shifts", None)
    monkeypatch.setattr(process, "_read", lambda path: text)
    assert process.shifts() == Shifts()


def test_offsets_are_seconds_and_nanoseconds_which_may_be_negative(monkeypatch):
    monkeypatch.setattr(process, "_shifts", None)
    monkeypatch.setattr(process, "_read", lambda path: b"monotonic  -1  500000000\nboottime  7  1\n")
    assert process.shifts() == Shifts(-500_000_000, 7_000_000_001)


def test_which_files_this_process_has_open_is_known(tmp_path):
    path = tmp_path / "file"
    path.touch()
    file_id = (path.stat().st_dev, path.stat().st_ino)
    assert not process.has_open(file_id)
    with open(path):
        assert process.has_open(file_id)
    assert not process.has_open(file_id)


def test_where_descriptors_cannot_be_listed_none_is_open(monkeypatch, tmp_path):
    path = tmp_path / "file"
    path.touch()

    def listdir(path):
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(_os, "listdir", listdir)
    with open(path):
        assert not process.has_open((path.stat().st_dev, path.stat().st_ino))


@pytest.mark.failure("Y3")
@pytest.mark.parametrize("error, lives", [(psutil.NoSuchProcess, True), (psutil.ZombieProcess, False)])
def test_elsewhere_a_process_that_psutil_does_not_find_is_asked_for_of_the_kernel(monkeypatch, other, error, lives):
    """On a system that has no `/proc` anyway, where psutil finds nobody whom it may not see."""

    def nobody(pid):
        raise error(pid)

    monkeypatch.setattr(process, "_has_proc", lambda: False)
    monkeypatch.setattr(process, "_psutil_can_tell", lambda: True)
    monkeypatch.setattr(psutil, "Process", nobody)
    assert process.is_alive(other.pid) == lives
    other.kill()
    other.wait()
    assert not process.is_alive(other.pid)
