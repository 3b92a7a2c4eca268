"""A program without standard streams: no file, socket or pipe of ours takes their numbers, nothing printed gets in."""

from __future__ import annotations

import errno
import json
import os
import socket
from contextlib import contextmanager

import pytest
from anyio import fail_after

from locks import _os
from tests.peers import peer
from tests.poll import eventually

NOISE = b"NOISE of some library"


@pytest.mark.failure("Z8")
@pytest.mark.parametrize("closed, when", [("12", "early"), ("0", "early"), ("012", "late"), ("12", "late")])
@pytest.mark.backends("asyncio", "trio")
async def test_what_a_program_prints_without_standard_streams_gets_into_no_file(
    tmp_path, closed, when, anyio_backend_name
):
    sessions, report = tmp_path / "sessions", tmp_path / "report"
    sessions.mkdir()
    with peer("streamless", sessions, closed, when, anyio_backend_name, report) as other, fail_after(60):
        await eventually(other.ended, within=55)
    assert report.read_text().splitlines() == ["done"]
    assert {file.name for file in sessions.iterdir()} >= {"plain-0.jsonl", "plain-0.jsonl.torn", "trace.json"}
    for file in sessions.iterdir():
        assert NOISE not in file.read_bytes(), file
        if file.suffix == ".jsonl":
            for line in file.read_bytes().splitlines():
                json.loads(line)


@contextmanager
def no_standard_streams():
    """This process without standard streams, and without knowing that yet."""
    kept = [os.dup(number) for number in range(3)]
    was_exposed, _os._exposed = _os._exposed, False
    for number in range(3):
        os.close(number)
    try:
        yield
    finally:
        for number, fd in enumerate(kept):
            os.dup2(fd, number)
            os.close(fd)
        _os._exposed = was_exposed


def free():
    """The numbers of standard streams that are free."""
    return [number for number in range(3) if not os.path.lexists(f"/proc/self/fd/{number}")]


@pytest.mark.failure("Z8")
def test_whatever_the_seam_opens_is_above_the_standard_streams_and_leaves_them_closed(tmp_path):
    paths = [str(tmp_path / name) for name in "ab"]
    with no_standard_streams():
        files = [_os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600) for path in paths]
        files += [_os.dup(files[0]), _os.open(str(tmp_path), os.O_RDONLY)]
        sockets = [_os.unix_socket(socket.SOCK_STREAM) for _ in range(2)]
        found = [*files, *(one.fileno() for one in sockets)]
        left = free()
        inherited = [fd for fd in found if os.get_inheritable(fd)]
        same = os.path.samestat(os.fstat(files[0]), os.fstat(files[2]))
        for one in sockets:
            one.close()
        for fd in files:
            os.close(fd)
    assert min(found) > 2
    assert left == [0, 1, 2]
    assert (inherited, same) == ([], True)


@pytest.mark.failure("Z8")
def test_a_descriptor_that_cannot_be_moved_up_is_closed_and_what_was_made_for_it_is_gone(tmp_path, monkeypatch):
    def refuse(_fd):
        raise OSError(errno.EMFILE, "Too many open files")

    error, path = None, str(tmp_path / "a.lock")
    with no_standard_streams(), monkeypatch.context() as patch:
        patch.setattr(os, "dup", refuse)
        try:
            _os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as refusal:
            error = refusal
        left = free()
    assert error is not None
    assert error.errno == errno.EMFILE
    assert (left, os.listdir(tmp_path)) == ([0, 1, 2], [])


@pytest.mark.failure("Z8")
def test_the_numbers_stay_taken_while_another_thread_needs_them_and_a_stream_that_was_opened_again_is_left(tmp_path):
    log = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    with no_standard_streams():
        first, second = _os.standard_streams_taken(), _os.standard_streams_taken()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        opened = os.open(tmp_path / "session", os.O_RDWR | os.O_CREAT)
        os.dup2(log, 1)  # the program opens a stream again
        second.__exit__(None, None, None)
        left, leads_to = free(), os.readlink("/proc/self/fd/1")
        os.close(opened)
    os.close(log)
    assert opened > 2
    assert (left, leads_to) == ([0, 2], str(tmp_path / "log"))
