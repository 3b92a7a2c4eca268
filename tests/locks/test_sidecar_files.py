"""The lock file on the disk: taken, found, reclaimed and removed, whatever stands in its place and whatever fails."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from locks import TranscriptError, _os, process
from locks.sidecar import lockfile, turn_note
from locks.sidecar.lockfile import Found, Written, find, path_of, release, take
from locks.sidecar.payload import parse
from tests import leaks
from tests.lock_files import ODD, TERMS, dead, foreign, ours, put
from tests.poll import eventually_sync


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    monkeypatch.setattr(lockfile, "_warned", False)
    monkeypatch.setattr(turn_note, "_failed", False)


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "session.jsonl"
    path.touch()
    return str(path)


@pytest.fixture
def lock(session):
    return Path(path_of(session))


@pytest.fixture
def other():
    """A process that lives."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def taken(got: Written | Found) -> Written:
    assert isinstance(got, Written), str(got)
    return got


def held(got: Written | Found | None) -> Found:
    assert isinstance(got, Found), str(got)
    return got


@contextmanager
def before_call(monkeypatch, name, number, act):
    """Have `act` run right before the `number`-th call of `_os.<name>`."""
    original, calls = getattr(_os, name), 0

    def call(*args):
        nonlocal calls
        calls += 1
        if calls == number:
            act()
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_os, name, call)
        yield
    assert calls >= number, f"_os.{name} was called {calls} times only"


# Taking and releasing


def test_what_is_free_is_taken_and_given_back(session, lock):
    before = leaks.descriptors()
    written = taken(take(session, TERMS))
    assert lock.read_bytes() == written.data
    assert stat.S_IMODE(lock.stat().st_mode) & 0o777 == 0o600
    assert (lock.stat().st_dev, lock.stat().st_ino) == written.file_id
    assert not os.get_inheritable(written.fd)
    read = parse(written.data)
    assert read is not None
    assert (read.pid, read.instance, read.lane, read.run_id, read.epoch) == (
        os.getpid(),
        process.me().instance,
        "session:a",
        17,
        3,
    )
    assert release(written) is None
    assert not lock.exists()
    assert leaks.descriptors() == before


def test_a_session_behind_a_symlinked_directory_has_its_lock_file_in_the_real_one(session, lock, tmp_path):
    (tmp_path / "door").symlink_to(tmp_path)
    written = taken(take(str(tmp_path / "door" / "session.jsonl"), TERMS))
    assert lock.exists()
    assert release(written) is None


def test_there_is_nothing_to_find_where_nobody_holds(session, tmp_path):
    assert find(session) is None
    assert find(str(tmp_path / "no such directory" / "session.jsonl")) is None
    assert find(session + "/below") is None


@pytest.mark.parametrize("how", ["file", "directory"])
def test_a_lock_file_that_somebody_removed_is_released_all_the_same(session, lock, tmp_path, how):
    written = taken(take(session, TERMS))
    lock.unlink()
    if how == "directory":
        Path(session).unlink()
        tmp_path.rmdir()
    assert release(written) is None


@pytest.mark.failure("B6")
@pytest.mark.parametrize("how", ["replaced", "rewritten", "longer", "symlink", "directory"])
def test_a_lock_file_that_is_somebody_elses_by_now_is_left_alone_and_said(session, lock, how):
    written = taken(take(session, TERMS))
    match how:
        case "replaced":
            lock.unlink()
            lock.write_bytes(written.data)
        case "rewritten":
            lock.write_bytes(foreign(os.getpid()))
        case "longer":
            os.truncate(lock, 5000)
        case _:
            lock.unlink()
            put(lock, how)
    before = lock.lstat()
    with capture_logs() as logs:
        assert release(written) is None
    assert (lock.lstat().st_ino, lock.lstat().st_size) == (before.st_ino, before.st_size)
    assert [one["event"] for one in logs] == ["sidecar_replaced"]
    assert logs[0]["path"] == str(lock)


# Whose it is


@pytest.mark.failure("B9")
def test_a_live_foreign_owner_is_found_and_waited_for_up_to_its_own_limit(session, lock, other, virtual):
    content = foreign(other.pid, created_at=-12.3)
    lock.write_bytes(content)
    found = held(take(session, TERMS))
    assert found.foreign
    assert str(found).startswith(f"process {other.pid} (a foreign gateway) since 12.")
    assert str(found).endswith(" s more")
    assert 200 < found.remaining_s < 288
    assert found.holder.pid == other.pid
    virtual.advance(300.0)
    found = held(take(session, TERMS, found))
    assert (found.held_s, found.remaining_s) == (300.0, 0.0)
    assert lock.read_bytes() == content
    virtual.advance(0.001)
    with capture_logs() as logs:
        written = taken(take(session, TERMS, found))
    assert [(one["event"], one["holder"]) for one in logs] == [
        ("sidecar_reclaimed", f"process {other.pid} (a foreign gateway)")
    ]
    assert "maxHoldMs" in logs[0]["reason"]
    assert release(written) is None


@pytest.mark.failure("B9")
def test_a_foreign_owner_that_releases_and_takes_again_starts_afresh(session, lock, other, virtual):
    lock.write_bytes(foreign(other.pid))
    found = held(take(session, TERMS))
    virtual.advance(200.0)
    lock.unlink()
    lock.write_bytes(foreign(other.pid, created_at=5))
    virtual.advance(200.0)
    again = held(take(session, TERMS, found))
    assert again.seen_at == virtual.now()
    assert again.held_s == 0.0


@pytest.mark.failure("C2")
@pytest.mark.parametrize("why", ["dead", "another start time", "zombie", "another boot"])
def test_the_lock_of_an_owner_that_is_gone_is_reclaimed_at_once(session, lock, other, why):
    match why:
        case "dead":
            lock.write_bytes(foreign(dead(), starttime=5))
        case "another start time":
            lock.write_bytes(foreign(other.pid, starttime=5))
        case "zombie":
            lock.write_bytes(foreign(other.pid))
            assert not held(find(session)).verdict.stale
            other.kill()
            eventually_sync(lambda: held(find(session)).verdict.stale)
        case "another boot":
            me = process.me()
            lock.write_bytes(foreign(other.pid, host=me.host, bootId="another"))
    assert held(find(session)).verdict.stale
    with capture_logs() as logs:
        written = taken(take(session, TERMS))
    assert [one["event"] for one in logs if one["event"].startswith("sidecar")] == ["sidecar_reclaimed"]
    assert lock.read_bytes() == written.data
    assert release(written) is None


@pytest.mark.failure("C3")
def test_a_lock_with_our_own_number_from_before_the_restart_is_reclaimed(session, lock):
    lock.write_bytes(foreign(os.getpid(), starttime=5))
    assert release(taken(take(session, TERMS))) is None
    lock.write_bytes(ours(instance="0123456789abcdef"))
    assert release(taken(take(session, TERMS))) is None
    lock.write_bytes(foreign(os.getpid(), created_at=-100_000, starttime=None, maxHoldMs=None))
    assert release(taken(take(session, TERMS))) is None


@pytest.mark.failure("C3", "B7")
def test_a_lock_with_our_own_number_that_is_held_stays(session, lock):
    lock.write_bytes(foreign(os.getpid()))
    assert not held(take(session, TERMS)).verdict.stale
    lock.unlink()
    written = taken(take(session, TERMS))
    assert not held(find(session)).verdict.stale  # without the kernel lock, as a clean-up looks at it
    assert str(held(find(session))).startswith(f"process {os.getpid()} (run 17 on lane session:a) since ")
    assert held(find(session)).holder.run_id == 17
    assert release(written) is None


@pytest.mark.failure("C1")
def test_what_a_dead_process_of_ours_left_is_reclaimed_without_asking_how_old_it_is(session, lock, other):
    lock.write_bytes(
        ours(pid=other.pid, instance="0123456789abcdef")
    )  # that number lives: the kernel lock knows better
    with capture_logs() as logs:
        written = taken(take(session, TERMS))
    assert "does not hold the kernel lock" in logs[0]["reason"]
    assert release(written) is None


@pytest.mark.failure("B8")
@pytest.mark.parametrize("pid", [1, 7, os.getpid()], ids=["init", "7", "own"])
def test_the_holder_on_another_machine_is_not_robbed(session, lock, pid):
    content = ours(pid=pid, instance="0123456789abcdef", host="elsewhere", bootId="another", starttime=5)
    lock.write_bytes(content)
    found = held(take(session, TERMS))
    assert f"process {pid} on elsewhere (run 17 on lane session:a)" in str(found)
    assert lock.read_bytes() == content


@pytest.mark.failure("C4")
@pytest.mark.parametrize("content", [b"", b'{\n  "pid": 47', b"\0" * 300, b"[]"])
def test_an_empty_or_half_written_file_is_reclaimed_after_a_grace(session, lock, content, virtual):
    lock.write_bytes(content)
    found = held(take(session, TERMS))
    assert str(found).startswith("an unreadable lock file since ")
    assert found.holder.pid == 0
    virtual.advance(30.0)
    found = held(take(session, TERMS, found))
    virtual.advance(0.001)
    assert release(taken(take(session, TERMS, found))) is None
    lock.write_bytes(content)
    os.utime(lock, (process.wall() - 31, process.wall() - 31))
    assert release(taken(take(session, TERMS))) is None


@pytest.mark.failure("C1", "C4")
def test_what_a_process_of_ours_left_empty_is_reclaimed_at_once_under_the_kernel_lock(session, lock, monkeypatch):
    """Killed between creating and writing it: from the first instant it is marked as one of ours."""

    def killed():
        raise KeyboardInterrupt

    with (
        before_call(monkeypatch, "write", 1, killed),
        before_call(monkeypatch, "unlink", 1, killed),
        pytest.raises(KeyboardInterrupt),
    ):
        take(session, TERMS)
    assert lock.read_bytes() == b""
    assert not held(find(session)).verdict.stale  # who only looks cannot know that nobody is about to write it
    assert release(taken(take(session, TERMS))) is None


@pytest.mark.failure("C4")
def test_a_creator_that_was_stopped_before_it_wrote_does_not_hold_what_another_took(session, lock, other, monkeypatch):
    content = foreign(other.pid)

    def rob():
        assert lock.read_bytes() == b""
        lock.unlink()
        lock.write_bytes(content)

    before = leaks.descriptors()
    with before_call(monkeypatch, "write", 1, rob):
        found = held(take(session, TERMS))
    assert found.data == lock.read_bytes() == content
    assert leaks.descriptors() == before


@pytest.mark.failure("C5")
@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_wall_clock_that_is_set_neither_robs_nor_wedges(session, lock, other, virtual, monkeypatch, step):
    wall = process.wall
    lock.write_bytes(foreign(other.pid))
    monkeypatch.setattr(process, "wall", lambda: wall() + step)
    found = held(take(session, TERMS))
    lock.unlink()
    lock.write_bytes(foreign(other.pid))  # by the new time
    found = held(take(session, TERMS, found))
    virtual.advance(300.0)
    found = held(take(session, TERMS, found))
    virtual.advance(0.001)
    assert release(taken(take(session, TERMS, found))) is None


# Reclaiming


@pytest.mark.failure("B6")
@pytest.mark.parametrize("how", ["replaced", "rewritten in place"])
def test_what_is_to_be_reclaimed_is_looked_at_again_before_it_is_removed(session, lock, other, monkeypatch, how):
    """A successor's fresh lock appears between the judgement and the removal."""
    lock.write_bytes(foreign(other.pid, starttime=5))
    fresh = foreign(other.pid)

    def succeed():
        if how == "replaced":
            lock.unlink()
        lock.write_bytes(fresh)

    looks = 0

    def open_(path, flags, *mode, original=_os.open):
        nonlocal looks
        if path == str(lock) and not flags & os.O_EXCL:
            looks += 1
            if looks == 2:
                succeed()
        return original(path, flags, *mode)

    monkeypatch.setattr(_os, "open", open_)
    found = held(take(session, TERMS))
    assert looks >= 2
    assert found.data == lock.read_bytes() == fresh


@pytest.mark.failure("B6")
def test_a_stale_lock_that_goes_by_itself_while_it_is_judged_is_no_obstacle(session, lock, monkeypatch):
    lock.write_bytes(foreign(dead(), starttime=5))
    with before_call(monkeypatch, "kill", 1, lock.unlink):
        assert release(taken(take(session, TERMS))) is None


def test_something_that_creates_and_removes_it_all_the_time_is_an_error_and_no_endless_loop(session, lock, monkeypatch):
    def create(path, flags, mode=0o777, *, original=_os.open):
        if flags & os.O_EXCL:
            raise FileExistsError(errno.EEXIST, "File exists", path)
        return original(path, flags, mode)

    monkeypatch.setattr(_os, "open", create)
    with pytest.raises(TranscriptError, match="keeps creating and removing"):
        take(session, TERMS)


@pytest.mark.failure("C7")
def test_a_removal_that_fails_three_times_is_repeated(session, lock, monkeypatch):
    fail_first(monkeypatch, "unlink", 3, errno.EBUSY)
    assert release(taken(take(session, TERMS))) is None
    assert not lock.exists()


@pytest.mark.failure("C7")
def test_a_removal_that_fails_for_ever_is_reported_and_the_next_one_reclaims(session, lock, monkeypatch):
    before = leaks.descriptors()
    with monkeypatch.context() as patch:
        tried = fail_first(patch, "unlink", 10**6, errno.EPERM)
        error = release(taken(take(session, TERMS)))
        assert isinstance(error, OSError) and error.errno == errno.EPERM
        assert error.__traceback__ is None
        assert len(tried) == 4
        assert lock.exists()
        with pytest.raises(PermissionError):
            take(session, TERMS)  # still
        assert lock.exists()
    assert leaks.descriptors() == before
    assert release(taken(take(session, TERMS))) is None
    assert not lock.exists()


# What cannot be judged


@pytest.mark.suite("F2")
@pytest.mark.failure("C4")
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_small_regular_file_is_an_error_that_says_what_to_do_and_is_never_free(
    session, lock, tmp_path, kind
):
    put(lock, kind)
    before, names = lock.lstat(), sorted(os.listdir(tmp_path))
    for attempt in (lambda: find(session), lambda: take(session, TERMS), lambda: find(session, locked=True)):
        with pytest.raises(TranscriptError, match="move it away, or use sidecar=False") as caught:
            attempt()
        assert caught.value.path == str(lock)
        assert str(lock) in str(caught.value)
    after = lock.lstat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert sorted(os.listdir(tmp_path)) == names
    if kind == "symlink":
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_4096_bytes_are_judged_and_one_more_is_not(session, lock, other):
    content = foreign(other.pid)
    lock.write_bytes(content.ljust(4096))
    assert held(take(session, TERMS)).holder.pid == other.pid
    lock.write_bytes(content.ljust(4097))
    with pytest.raises(TranscriptError, match="larger than 4096 bytes"):
        take(session, TERMS)


@pytest.mark.suite("F1")
@pytest.mark.parametrize("name", ["open", "fstat", "pread"])
def test_a_lock_file_that_cannot_be_read_is_an_error_and_not_free(session, lock, other, monkeypatch, name):
    lock.write_bytes(foreign(other.pid))
    fail_first(monkeypatch, name, 1, errno.EIO)
    with pytest.raises(TranscriptError, match="cannot read the lock file") as caught:
        find(session)
    assert caught.value.errno == errno.EIO
    assert lock.exists()


# Failing calls


def fail_first(patch, name, times, code):
    """Have the first `times` calls of `_os.<name>` fail; returns the list of failures so far."""
    original = getattr(_os, name)
    failed: list[str] = []

    def call(*args):
        if len(failed) >= times:
            return original(*args)
        failed.append(name)
        if name == "close":
            original(*args)  # as the kernel does: the descriptor is gone in any case
        raise OSError(code, os.strerror(code))

    patch.setattr(_os, name, call)
    return failed


@pytest.mark.suite("F1")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EINTR, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("planted", ["nothing", "a dead owner"])
def test_the_failure_of_the_nth_system_call_leaves_nothing_behind(session, lock, tmp_path, monkeypatch, code, planted):
    names = ["open", "fstat", "pread", "write", "close", "unlink", "kill"]
    originals = {name: getattr(_os, name) for name in names}
    calls: list[str] = []
    number, fired = 0, set()
    gone = dead()

    def failing(name):
        def call(*args):
            calls.append(name)
            if len(calls) != number:
                return originals[name](*args)
            fired.add(name)
            if name == "close":
                originals[name](*args)
            raise OSError(code, os.strerror(code))

        return call

    before = leaks.descriptors()
    while True:
        number, calls = number + 1, []
        stale = planted == "a dead owner"
        if stale:
            lock.write_bytes(foreign(gone, starttime=5))
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(_os, name, failing(name))
            try:
                got = take(session, TERMS)
            except (OSError, TranscriptError):
                assert not lock.exists() or lock.read_bytes() != b""
            else:
                if isinstance(got, Written):
                    assert release(got) is None
        assert leaks.descriptors() == before
        left = find(session)
        assert left is None or (stale and left.foreign)  # untouched, at worst
        assert release(taken(take(session, TERMS))) is None  # trying again works
        assert os.listdir(tmp_path) == ["session.jsonl"]
        if number > len(calls):
            break
    assert fired >= {"open", "fstat", "pread", "write", "close", "unlink"}
    assert ("kill" in fired) == (planted == "a dead owner")


@pytest.mark.suite("F1")
@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_short_write_is_an_error_and_leaves_nothing_behind(session, lock, monkeypatch, length):
    write, before = _os.write, leaks.descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(_os, "write", lambda fd, data: write(fd, data[:length]))
        with pytest.raises(OSError, match=f"only {length} of") as caught:
            take(session, TERMS)
    assert caught.value.errno == errno.ENOSPC
    assert not lock.exists()
    assert leaks.descriptors() == before


@pytest.mark.suite("F1")
def test_what_cannot_be_removed_after_a_failed_write_is_said(session, lock, monkeypatch):
    fail_first(monkeypatch, "unlink", 10**6, errno.EROFS)
    fail_first(monkeypatch, "write", 1, errno.EIO)
    with capture_logs() as logs, pytest.raises(OSError, match=os.strerror(errno.EIO)):
        take(session, TERMS)
    assert [(one["event"], one["path"]) for one in logs] == [("sidecar_left", str(lock))]


def test_a_name_that_is_too_long_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="too long"):
        take(str(tmp_path / ("x" * 252)), TERMS)


# Robbery


@pytest.mark.parametrize("argv, warns", [(["python", "-m", "x"], 1), (["python", "-X", "openclaw", "-m", "x"], 0)])
def test_a_foreign_gateway_is_reason_to_say_once_how_not_to_be_robbed(session, lock, other, monkeypatch, argv, warns):
    monkeypatch.setattr(sys, "orig_argv", argv)
    with capture_logs() as logs:
        lock.write_bytes(ours(host="elsewhere", bootId="another"))
        held(take(session, TERMS))
        assert logs == []
        lock.write_bytes(foreign(other.pid))
        for _ in range(3):
            held(take(session, TERMS))
    assert [one["event"] for one in logs] == ["foreign_gateway_seen"] * warns
    assert all("python -X openclaw -m" in one["hint"] and one["log_level"] == "warning" for one in logs)


# The note about the turn


def test_the_note_names_who_conducts_the_session_and_is_overwritten_in_place(session):
    path = Path(turn_note.path_of(session))
    assert turn_note.read(session) is None
    assert turn_note.write(session, TERMS._replace(lane="x" * 200))
    assert turn_note.write(session, TERMS)
    read = turn_note.read(session)
    assert read is not None
    assert (read.lane, read.run_id, read.pid) == ("session:a", 17, os.getpid())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    turn_note.remove(session)
    turn_note.remove(session)
    assert not path.exists()


@pytest.mark.suite("F2")
@pytest.mark.parametrize("kind", ODD)
def test_what_stands_in_the_place_of_the_note_harms_nobody(session, tmp_path, kind):
    path = Path(turn_note.path_of(session))
    put(path, kind)
    with capture_logs() as logs:
        assert turn_note.read(session) is None
        if kind == "huge":
            assert turn_note.write(session, TERMS)  # a regular file: it is overwritten
            assert turn_note.read(session) is not None
            return
        assert not turn_note.write(session, TERMS)
        assert not turn_note.write(session, TERMS)
    assert [one["event"] for one in logs] == ["turn_note_failed"]
    assert logs[0]["path"] == str(path)
    if kind == "symlink":
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_a_fifo_that_somebody_reads_gets_no_note(session):
    path = Path(turn_note.path_of(session))
    put(path, "fifo")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert not turn_note.write(session, TERMS)
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


@pytest.mark.suite("F1")
@pytest.mark.parametrize("name", ["open", "fstat", "write", "close", "unlink", "pread"])
def test_a_failing_call_makes_no_note_and_no_error(session, monkeypatch, name):
    before = leaks.descriptors()
    failed = fail_first(monkeypatch, name, 1, errno.EIO)
    worked = turn_note.write(session, TERMS)
    turn_note.read(session)
    turn_note.remove(session)
    assert failed == [name]
    assert worked == (name in ("unlink", "pread"))
    assert leaks.descriptors() == before
    assert turn_note.write(session, TERMS)
    assert turn_note.read(session) is not None


def test_garbage_in_the_place_of_the_note_says_nothing(session):
    Path(turn_note.path_of(session)).write_bytes(b"\xff" * 100)
    assert turn_note.read(session) is None


def test_the_words_for_a_holder_without_a_run(session, lock):
    lock.write_bytes(ours(runId=None, lane=None))
    assert held(find(session)).who == f"process {os.getpid()} (lanes)"
    found = replace(held(find(session)), payload=None)
    assert not found.foreign
