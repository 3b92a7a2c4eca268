"""Child processes that are forks: what a test may take for granted of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from tests import forks, leaks
from tests.poll import eventually_sync

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children are forked on Linux only")


def test_a_fork_has_streams_directory_environment_and_descriptors_of_its_own(tmp_path):
    heard, theirs = os.pipe()
    command = ["-m", "tests.children.shown", str(theirs), "b"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    env = {**os.environ, "SHOWN": "yes"}
    with forks.Forked(command, cwd=tmp_path, env=env, pass_fds=[theirs], text=True, **pipes) as child:
        os.close(theirs)
        stdout, stderr = child.communicate("said")
    with os.fdopen(heard) as pipe:
        assert pipe.read() == "through the pipe"
    arguments, cwd, shown, name, said = json.loads(stdout)
    assert arguments[1:] == [command[2], "b"] and (cwd, shown) == (str(tmp_path), "yes")
    assert (name, said, stderr) == ("__main__", "said", "error\n")
    assert child.returncode == 7


def test_what_kills_a_fork_and_what_it_raises_is_told_as_of_any_child():
    with forks.Forked(["-m", "tests.children.holder"], stderr=subprocess.PIPE, text=True) as child:
        _, stderr = child.communicate()
    assert child.returncode == 1
    assert stderr.endswith("IndexError: list index out of range\n")
    with forks.Forked(["-m", "tests.children.shown", "-1"], stdin=subprocess.PIPE) as child:
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        eventually_sync(lambda: child.poll() is not None)
    assert child.returncode == -signal.SIGKILL


def test_whatever_the_first_test_has_set_the_others_children_are_forks(monkeypatch):
    started = forks._running
    monkeypatch.setattr(forks, "_running", None)
    with monkeypatch.context() as first:
        first.setenv("LANES_STORE", "postgresql://h/x")
        first.setenv("PYTHONPATH", "elsewhere")
        assert not forks.can_be_forked()
    assert forks.can_be_forked()
    assert forks._running is not None and forks._running is not started
    forks._running.close()


def test_a_fork_that_is_left_behind_is_a_leak(monkeypatch):
    monkeypatch.setattr(leaks, "ENDS_WITHIN", 0.0)
    before = leaks.Look()
    with forks.Forked(["-m", "tests.children.shown", "-1"], stdin=subprocess.PIPE) as child:
        assert f"leaked processes: {child.pid}" in leaks.complaints(before)
        child.kill()
        child.wait()


def test_a_variable_that_a_test_leaves_behind_is_one(monkeypatch):
    before = leaks.Look()
    monkeypatch.setenv("LANES_WEB_TOKEN", "x" * 16)
    assert leaks.complaints(before) == ["changed variables: LANES_WEB_TOKEN"]


@pytest.mark.parametrize("changed", [{"PYTHONPATH": "elsewhere"}, {"NO_COLOR": "1"}], ids=list)
def test_what_is_read_at_the_start_of_a_python_is_not_given_to_a_fork(changed, monkeypatch):
    assert forks.can_be_forked({**os.environ, "SHOWN": "1"})
    assert not forks.can_be_forked({**os.environ, **changed})
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    assert not forks.can_be_forked()
