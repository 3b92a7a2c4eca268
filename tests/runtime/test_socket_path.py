"""Where the status socket may be, and how its place is taken: nobody is robbed, and only the dead make room."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import socket
import stat
import tempfile
import threading

import anyio
import pytest

from runtime import StatusSocketError, Supervisor
from runtime.status import client, socket_path
from runtime.status.client import NoProcess, live, locate

pytestmark = pytest.mark.backends("asyncio", "trio")


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The default place, out of everybody's way."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LANES_SOCKET", raising=False)
    return tmp_path / "lanes"


def dead(path) -> None:
    """What a process leaves behind that was killed."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        one.listen()


def refused(path, why: str) -> None:
    """It cannot be there, and the error says what is wrong, and what would not be."""
    before = sorted(os.listdir(os.path.dirname(path))) if os.path.isdir(os.path.dirname(path)) else []
    with pytest.raises(StatusSocketError, match=re.escape(why)) as caught:
        socket_path.listen(str(path)).close()
    assert str(caught.value).startswith("status_socket: ")
    assert "; allowed: " in str(caught.value)
    assert caught.value.path == str(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert before == (sorted(os.listdir(os.path.dirname(path))) if before else [])


# What is there


def test_a_path_that_no_socket_can_have_is_refused_with_its_length(tmp_path):
    long = os.path.join(str(tmp_path), "x" * (108 - len(str(tmp_path)) - 1))
    assert len(long) == 108
    refused(long, "has 108 bytes")
    socket_path.listen(long[:-1]).close()


def test_a_directory_that_is_missing_or_is_none_is_refused(tmp_path):
    refused(tmp_path / "no" / "s", "has no directory")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "s", "cannot be used")


def test_what_is_no_socket_is_named_and_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (
        ("file", "a file"),
        ("directory", "a directory"),
        ("link", "a symbolic link"),
        ("fifo", "a FIFO"),
    ):
        refused(tmp_path / name, f"is {kind}, which is left alone")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_socket_of_another_user_is_left_alone_though_it_is_dead(tmp_path, monkeypatch):
    dead(tmp_path / "s")
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    refused(tmp_path / "s", f"belongs to user {mine}")


def test_a_live_server_is_named_and_left_alone(tmp_path):
    with socket_path.listen(str(tmp_path / "s")) as first:
        refused(tmp_path / "s", f"is taken by process {os.getpid()}, which is this one")
        assert stat.S_ISSOCK((tmp_path / "s").lstat().st_mode)
        first.close()
    socket_path.listen(str(tmp_path / "s")).close()


def test_another_kind_of_socket_is_left_alone(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "is taken by another program")


def test_a_server_that_does_not_come_round_to_anybody_lives_all_the_same(tmp_path):
    with (
        socket.socket(socket.AF_UNIX) as busy,
        socket.socket(socket.AF_UNIX) as one,
        socket.socket(socket.AF_UNIX) as two,
    ):
        busy.bind(str(tmp_path / "s"))
        busy.listen(0)
        for waiting in (one, two):
            waiting.setblocking(False)
            try:
                waiting.connect(str(tmp_path / "s"))
            except BlockingIOError:
                break
        refused(tmp_path / "s", "is taken by a process that does not get round to answering")


def test_a_dead_one_makes_room(tmp_path):
    dead(tmp_path / "s")
    with socket_path.listen(str(tmp_path / "s")), socket.socket(socket.AF_UNIX) as one:
        one.connect(str(tmp_path / "s"))


def test_of_many_that_find_a_dead_one_exactly_one_takes_its_place(tmp_path):
    path = str(tmp_path / "s")
    for _ in range(20):
        dead(path)
        together = threading.Barrier(4)
        got: list[socket.socket] = []
        refusals: list[str] = []

        def take(path=path, together=together, got=got, refusals=refusals) -> None:
            together.wait(30)
            try:
                got.append(socket_path.listen(path))
            except StatusSocketError as error:
                refusals.append(error.why)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)  # whoever got it can still be reached
        for listener in got:
            listener.close()
        os.unlink(path)
        assert len(got) == 1
        assert all(why.startswith(f"is taken by process {os.getpid()}") for why in refusals), refusals


def test_a_directory_that_somebody_keeps_locked_is_given_up_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(socket_path, "_TRIES", 3)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        refused(tmp_path / "s", "somebody keeps")
        assert not socket_path.remove_dead(str(tmp_path / "s"))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "given, why",
    [
        ("", "is no path"),
        ("a\0b", "is no path"),
        ("\ud800", "is no path"),
        (5, "is no path"),
        (b"s", "is no path"),
    ],
    ids=range(5),
)
def test_what_is_no_path_is_refused(given, why):
    with pytest.raises(StatusSocketError, match=why):
        socket_path.path_for(given)


async def test_a_supervisor_whose_socket_cannot_be_had_does_not_start(tmp_path):
    (tmp_path / "s").write_text("mine")
    with pytest.raises(StatusSocketError, match="is a file"):
        async with Supervisor(tmp_path / "sessions", status_socket=tmp_path / "s"):
            raise AssertionError("it must not start")
    assert (tmp_path / "s").read_text() == "mine"


# The default place


def test_the_default_place_is_that_of_the_session_or_else_in_the_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for nothing in ("", "relative", str(tmp_path / "missing")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", nothing)
        assert socket_path.default_directory() == str(tmp_path / f"lanes-{os.geteuid()}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert socket_path.default_directory() == str(tmp_path / "lanes")


def test_it_is_made_for_its_owner_only(directory):
    assert socket_path.path_for(True) == str(directory / f"{os.getpid()}.sock")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_place_that_is_not_ours_alone_is_refused(directory, tmp_path, monkeypatch):
    def is_refused(why: str) -> None:
        with pytest.raises(StatusSocketError, match=why):
            socket_path.path_for(True)
        with pytest.raises(NoProcess, match=why):
            live()

    directory.write_text("")
    is_refused("is a file")
    directory.unlink()
    (tmp_path / "elsewhere").mkdir()
    directory.symlink_to(tmp_path / "elsewhere")
    is_refused("is a symbolic link")
    directory.unlink()
    directory.mkdir()
    directory.chmod(0o770)
    is_refused("has mode 0770")
    directory.chmod(0o700)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    is_refused(f"belongs to user {mine}")


# Finding a process


async def test_the_only_process_is_found_and_dead_ones_are_cleared_away(directory, tmp_path):
    with pytest.raises(NoProcess, match="no process is found in"):
        locate(None)
    async with Supervisor(tmp_path / "a", status_socket=True):
        dead(directory / "1.sock")
        (directory / "notes").write_text("mine")
        found = await anyio.to_thread.run_sync(live)
        assert [(one.pid, one.sessions) for one in found] == [(os.getpid(), str(tmp_path / "a"))]
        (link,) = directory.glob("*.at")
        assert sorted(os.listdir(directory)) == sorted([f"{os.getpid()}.sock", link.name, "notes"])
        assert await anyio.to_thread.run_sync(locate, None) == str(directory / f"{os.getpid()}.sock")
    assert os.listdir(directory) == ["notes"]


async def test_of_several_processes_one_is_to_be_named(directory, tmp_path):
    async with (
        Supervisor(tmp_path / "a", status_socket=True),
        Supervisor(tmp_path / "b", status_socket=directory / "b.sock"),
    ):
        with pytest.raises(NoProcess) as caught:
            await anyio.to_thread.run_sync(locate, None)
    told = str(caught.value)
    assert told.startswith(f"2 processes are found: name one, --socket {directory}/…: ")
    assert f"{os.getpid()}.sock of process {os.getpid()} ({tmp_path / 'a'})" in told
    assert f"b.sock of process {os.getpid()} ({tmp_path / 'b'})" in told


def test_a_process_that_does_not_answer_is_found_and_said_to_be_silent(directory, monkeypatch):
    monkeypatch.setattr(client, "_FOUND_WITHIN_S", 0.05)
    directory.mkdir(mode=0o700)
    with socket_path.listen(str(directory / "7.sock")):
        (found,) = live()
    assert (found.pid, found.sessions) == (os.getpid(), None)


def test_what_is_given_goes_before_what_the_environment_says(directory, monkeypatch):
    monkeypatch.setenv("LANES_SOCKET", "/there")
    assert (locate(None), locate("/here")) == ("/there", "/here")
    monkeypatch.setenv("LANES_SOCKET", "x" * 200)
    with pytest.raises(NoProcess, match=r"\$LANES_SOCKET: .* has 200 bytes"):
        locate(None)
