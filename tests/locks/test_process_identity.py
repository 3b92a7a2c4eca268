"""Which process this is, and whether another one lives: numbers that are used again, zombies, forks, other users."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil
import pytest

from locks import _os, process
from tests.poll import eventually_sync


@contextmanager
def child(*command: str):
    """A process that lives until its input ends, and is waited for."""
    with subprocess.Popen(command or [sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def said_by(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture
def no_proc(monkeypatch):
    """A system without `/proc`."""
    monkeypatch.setattr(process, "_read", lambda path: None)
    monkeypatch.setattr(process, "_me", None)


def test_this_process_is_named_once_and_completely():
    me = process.me()
    assert me is process.me()
    assert me.pid == os.getpid()
    assert me.host == os.uname().nodename
    assert me.boot_id is not None and len(me.boot_id) == 36
    assert len(me.instance) == 16 and int(me.instance, 16) >= 0
    assert process.is_alive(me.pid)


def test_the_start_time_is_the_one_that_the_kernel_states():
    with child() as other:
        ticks = process.starttime(other.pid)
        assert ticks is not None
        started_at = psutil.boot_time() + ticks / os.sysconf("SC_CLK_TCK")
        assert abs(started_at - psutil.Process(other.pid).create_time()) < 2


def test_the_age_of_this_process_is_that_since_its_start():
    age = process.age_s()
    assert age is not None
    assert abs(age - (time.time() - psutil.Process().create_time())) < 2


def test_a_name_with_parentheses_and_blanks_does_not_shift_the_fields(tmp_path):
    hostile = tmp_path / "x) Z 1 (y"
    hostile.symlink_to(os.path.realpath(sys.executable))
    with child(str(hostile), "-I", "-S", "-c", "input()") as other:
        eventually_sync(lambda: "x) Z" in psutil.Process(other.pid).name())
        assert process.is_alive(other.pid)
        assert process.starttime(other.pid) is not None


@pytest.mark.failure("C2")
def test_a_zombie_is_dead_before_anybody_has_waited_for_it():
    with child() as other:
        assert process.is_alive(other.pid)
        other.kill()
        eventually_sync(lambda: not process.is_alive(other.pid))
        os.kill(other.pid, 0)  # for a signal, it is still there
    assert not process.is_alive(other.pid)


@pytest.mark.parametrize("pid", [0, -1, 1 << 31, 1 << 64])
def test_what_cannot_be_a_number_of_a_process_is_not_alive(pid):
    assert not process.is_alive(pid)


def test_a_process_that_may_not_be_asked_and_is_hidden_is_alive(monkeypatch):
    def kill(pid, signal):
        raise PermissionError(1, "Operation not permitted")

    def hidden(path, flags):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(_os, "kill", kill)
    monkeypatch.setattr(_os, "open", hidden)
    assert process.is_alive(4711)
    assert process.starttime(4711) is None


def test_another_users_zombie_is_dead(monkeypatch):
    def kill(pid, signal):
        raise PermissionError(1, "Operation not permitted")

    with child() as other:
        other.kill()
        monkeypatch.setattr(_os, "kill", kill)
        eventually_sync(lambda: not process.is_alive(other.pid))


def test_a_process_that_ends_while_it_is_looked_at_has_no_start_time(monkeypatch):
    def pread(fd, length, offset):
        raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(_os, "pread", pread)
    assert process.starttime(os.getpid()) is None


@pytest.mark.parametrize("text", [b"", b"7", b"7 (x)", b"7 (x) S 1", b"7 (x) " + b"S " * 30])
def test_a_stat_line_that_is_not_one_has_no_start_time(monkeypatch, text):
    monkeypatch.setattr(process, "_read", lambda path: text)
    assert process.starttime(7) is None


@pytest.mark.failure("B8")
def test_a_forked_child_is_another_instance():
    before, in_child, after = said_by(
        "import os\n"
        "from locks.process import me\n"
        "def say(): os.write(1, f'{me().pid}/{me().instance}\\n'.encode())\n"
        "say()\n"
        "if os.fork() == 0:\n"
        "    say()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "say()\n"
    )
    assert after == before
    assert not set(in_child.split("/")) & set(before.split("/"))


def test_an_exec_keeps_number_and_start_time_but_not_the_instance():
    show = "from locks import process; me = process.me(); print(me.pid, me.starttime, me.instance, flush=True)"
    pid, ticks, instance, *after = said_by(
        f"import os, sys\n{show}\nos.execv(sys.executable, [sys.executable, '-c', {show!r}])"
    )
    assert after[:2] == [pid, ticks]
    assert after[2] != instance


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = "{'psutil', 'structlog', 'json'}"
    code = f"import sys; from locks.sidecar import lockfile, turn_note; print(*sys.modules.keys() & {heavy})"
    assert said_by(code) == []


def test_without_proc_a_process_has_no_start_time_and_its_life_is_still_known(no_proc):
    assert process.me().starttime is None
    assert process.me().boot_id is None
    assert process.is_alive(os.getpid())
    with child() as other:
        assert process.is_alive(other.pid)
        other.kill()
        eventually_sync(lambda: not process.is_alive(other.pid))
    assert not process.is_alive(other.pid)
    age = process.age_s()
    assert age is not None and age > 0


def test_without_proc_a_process_that_may_not_be_asked_is_alive(no_proc, monkeypatch):
    def refused(pid=None):
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", refused)
    assert process.is_alive(4711)
    assert process.age_s() is None


def test_the_carried_wall_clock_does_not_follow_one_that_is_set(monkeypatch):
    before = process.carried_wall()
    assert abs(before - time.time()) < 60
    monkeypatch.setattr(process, "wall", lambda: 0.0)
    assert process.carried_wall() >= before
