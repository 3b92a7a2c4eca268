"""What stands in a directory of sessions, what is said to be wrong with it, and what mending does about it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from anyio import create_task_group, to_thread

from locks import LockRegistry, Right, _os, process
from locks.doctor import inspection
from locks.doctor.findings import MOST_BROKEN, Kind, State
from locks.doctor.inspection import inspect, sessions_in
from locks.doctor.mending import mend
from locks.engines.kernel import KernelLock
from locks.rights.open_file import Entry
from locks.sidecar import lockfile
from tests.poll import eventually
from tests.sessions_on_disk import DEAD, RECORD, beside, everything, foreign, holding, ours


@pytest.fixture
def session(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(RECORD)
    return str(path)


def looked_at(path: str):
    seen = inspect(path)
    assert seen is not None
    return seen


def kinds(path: str) -> list[tuple[Kind, bool, bool]]:
    return [(one.kind, one.wrong, one.mendable) for one in looked_at(path).findings]


def said(path: str) -> str:
    return "; ".join(one.text for one in looked_at(path).findings)


# What is found


def test_a_sound_session_has_nothing_to_say(session):
    Path(session).write_bytes(b'{"lanes.session": "agent:k", "format": 1}\n' + RECORD * 3)
    seen = looked_at(session)
    assert (seen.records, seen.key, seen.size, seen.findings) == (3, "agent:k", os.stat(session).st_size, [])
    assert (seen.turn.state, seen.write.state) == (State.FREE, State.FREE)


def test_sessions_are_found_by_all_that_belongs_to_them_in_order(tmp_path):
    for name in ["b.jsonl", "a.jsonl.lock", "c.jsonl.turn", "c.jsonl.write.flock", "d.jsonl.new", "e.jsonl.torn"]:
        (tmp_path / name).touch()
    for other in ["sessions.json.lock", "x.jsonl.lock.bak", "notes"]:
        (tmp_path / other).touch()
    assert sessions_in(str(tmp_path)) == [f"{letter}.jsonl" for letter in "abcde"]


def test_nothing_is_said_about_what_has_gone_meanwhile(session):
    os.unlink(session)
    assert inspect(session) is None


def test_broken_lines_are_named_up_to_a_number_and_counted(session):
    Path(session).write_bytes(RECORD + b"[1]\n" + b"bad\n" * 10)
    seen = looked_at(session)
    assert (seen.records, seen.broken_count, len(seen.broken)) == (1, 11, MOST_BROKEN)
    assert (seen.broken[0].number, seen.broken[0].offset, seen.broken[0].reason) == (2, 9, "not a JSON object")
    assert kinds(session) == [(Kind.BROKEN, True, False)]
    assert "11 lines (2, 3, 4, 5, 6, …), the first at byte 9" in said(session)


@pytest.mark.parametrize("tail, whole", [(b'{"n": 2}', True), (b'{"n": ', False), (b"[1]", False)])
@pytest.mark.failure("H1")
def test_a_tail_is_a_record_without_its_newline_or_torn(session, tail, whole):
    beside(session, "", RECORD + tail)
    found = looked_at(session).tail
    assert found is not None
    assert (found.size, found.whole) == (len(tail), whole)


@pytest.mark.parametrize("planted", ["symlink", "directory", "fifo", "huge"])
@pytest.mark.parametrize("end", [".lock", ".turn"])
def test_what_is_no_lock_file_is_said_to_be_none_and_stays(session, planted, end):
    path = Path(session + end)
    {
        "symlink": lambda: path.symlink_to("elsewhere"),
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "huge": lambda: path.write_bytes(b"x" * 5000),
    }[planted]()
    beside(session, "", RECORD + b"torn")
    before = everything(os.path.dirname(session))
    assert (Kind.NO_LOCK_FILE, True, False) in kinds(session)
    if end == ".lock":
        assert mend(session).left
        assert everything(os.path.dirname(session)) == before
    else:
        assert mend(session).done
        assert path.name in os.listdir(os.path.dirname(session))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_opened(tmp_path, make):
    make(tmp_path / "a.jsonl")
    assert kinds(str(tmp_path / "a.jsonl")) == [(Kind.NO_FILE, True, False)]


def test_symbolic_links_are_told_and_never_mended_through(tmp_path, session):
    beside(session, "", RECORD + b"torn")
    for name, target in [("link", "a.jsonl"), ("loop", "loop.jsonl"), ("dangling", "nothing")]:
        (tmp_path / f"{name}.jsonl").symlink_to(target)
    before = everything(tmp_path)
    assert kinds(str(tmp_path / "link.jsonl")) == [(Kind.SYMLINK, False, False), (Kind.TAIL, True, False)]
    for name in ("loop", "dangling"):
        assert kinds(str(tmp_path / f"{name}.jsonl")) == [(Kind.SYMLINK, False, False), (Kind.UNREADABLE, True, False)]
    for name in ("link", "loop", "dangling"):
        assert mend(str(tmp_path / f"{name}.jsonl")).left
    assert everything(tmp_path) == before


def test_hard_links_and_kept_tails_are_told_but_not_wrong(session, tmp_path):
    os.link(session, tmp_path / "b.jsonl")
    beside(session, ".torn", b"torn\n")
    assert kinds(session) == [(Kind.HARD_LINKS, False, False), (Kind.TORN, False, False)]
    assert looked_at(session).links == 2


def test_looking_opens_nothing_for_writing_and_changes_nothing(session, tmp_path, monkeypatch):
    beside(session, "", RECORD + b"torn")
    for end, data in [(".lock", foreign(DEAD)), (".turn", ours(pid=DEAD)), (".new", b"x")]:
        beside(session, end, data)
        beside(str(tmp_path / "orphan.jsonl"), end, data)
    before, flags = everything(tmp_path), []
    opening = _os.open

    def watched(path, how, *mode):
        flags.append(how)
        return opening(path, how, *mode)

    monkeypatch.setattr(_os, "open", watched)
    for name in sessions_in(str(tmp_path)):
        assert looked_at(str(tmp_path / name)).mendable
    assert len(flags) > 5
    assert not any(how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) for how in flags)
    assert everything(tmp_path) == before


# What is mended


def mended(path: str) -> str:
    """Mend it, and find nothing wrong any more; what was done, in words."""
    assert looked_at(path).mendable
    found = mend(path)
    assert found.left == []
    afterwards = inspect(path)
    assert afterwards is None or not afterwards.wrong
    return "; ".join(found.done)


@pytest.mark.failure("C2", "C3")
@pytest.mark.parametrize(
    "data",
    [
        foreign(DEAD),
        foreign(createdAt="2020-01-01T00:00:00.000Z"),
        ours(pid=DEAD),
        ours(starttime=1),
        ours(instance="another"),
        ours(),
        ours(bootId="another"),
    ],
    ids=["dead", "old", "ours, dead", "number reused", "another instance", "mine, not held", "another boot"],
)
def test_a_lock_file_of_nobody_is_removed(session, data):
    beside(session, ".lock", data)
    assert kinds(session) == [(Kind.STALE_LOCK, False, True)]
    assert "removed the stale lock file" in mended(session)
    assert os.listdir(os.path.dirname(session)) == ["a.jsonl"]
    assert Path(session).read_bytes() == RECORD


@pytest.mark.failure("B9", "C4")
@pytest.mark.parametrize(
    "data", [foreign(), foreign(1), b"", ours(host="there", bootId="there")], ids=["alive", "init", "empty", "away"]
)
def test_a_lock_file_that_may_be_somebodys_keeps_the_session_as_it_is(session, data):
    beside(session, ".lock", data)
    beside(session, "", RECORD + b"torn")
    beside(session, ".new", b"x")
    beside(session, ".turn", ours(pid=DEAD))
    before = everything(os.path.dirname(session))
    seen = looked_at(session)
    assert (seen.held, seen.wrong) == (True, False)
    found = mend(session)
    assert (found.done, len(found.left)) == ([], 1)
    assert everything(os.path.dirname(session)) == before


@pytest.mark.failure("C4")
def test_an_unreadable_lock_file_is_removed_after_its_grace(session):
    beside(session, ".lock", b'{"pid": 1')
    os.utime(session + ".lock", (process.wall() - 31,) * 2)
    assert "unreadable" in mended(session)


def test_a_note_of_a_turn_and_a_new_file_that_nobody_needs_are_removed(session):
    beside(session, ".turn", ours())
    beside(session, ".new", b"half")
    assert kinds(session) == [(Kind.STALE_TURN, False, True), (Kind.LEFT_OVER, True, True)]
    assert mended(session) == (
        f"removed the note of a turn of process {os.getpid()} (run 7 on lane main); removed a.jsonl.new (4 bytes)"
    )
    assert os.listdir(os.path.dirname(session)) == ["a.jsonl"]


@pytest.mark.failure("H1")
def test_a_torn_tail_is_moved_and_a_whole_one_sealed(session):
    beside(session, "", RECORD + b"torn")
    assert mended(session) == "moved its torn last 4 bytes to a.jsonl.torn"
    assert (Path(session).read_bytes(), Path(session + ".torn").read_bytes()) == (RECORD, b"torn\n")
    beside(session, "", RECORD + RECORD[:-1])
    assert mended(session) == "gave its last record the newline that it lacked"
    assert Path(session).read_bytes() == RECORD * 2


def test_broken_lines_stay(session):
    beside(session, "", RECORD + b"bad\n" + RECORD + b"torn")
    assert mend(session).done == ["moved its torn last 4 bytes to a.jsonl.torn"]
    assert Path(session).read_bytes() == RECORD + b"bad\n" + RECORD
    assert kinds(session)[0] == (Kind.BROKEN, True, False)


def test_what_is_left_of_a_session_is_removed_without_making_one(session, tmp_path):
    os.unlink(session)
    beside(session, ".lock", foreign(DEAD))
    beside(session, ".turn", ours(pid=DEAD))
    assert kinds(session) == [(Kind.STALE_LOCK, True, True), (Kind.STALE_TURN, True, True)]
    assert "removed the stale lock file" in mended(session)
    assert os.listdir(tmp_path) == []


def test_what_may_be_all_that_is_left_of_a_session_stays(session, tmp_path):
    os.unlink(session)
    beside(session, ".new", RECORD)
    beside(session, ".torn", b"torn\n")
    beside(session, ".turn.flock", b"")
    assert [one[:2] for one in kinds(session)] == [(Kind.ORPHAN, True), (Kind.TORN, False), (Kind.ORPHAN, False)]
    beside(session, ".lock", foreign(DEAD))
    assert mend(session).left == []
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl.new", "a.jsonl.torn", "a.jsonl.turn.flock"]


@pytest.mark.failure("B6", "B7")
@pytest.mark.parametrize(
    "data", [foreign(), ours(pid=os.getppid(), starttime=process.starttime(os.getppid()))], ids=["foreign", "ours"]
)
def test_a_live_lock_file_without_its_session_stays(session, tmp_path, data):
    os.unlink(session)
    beside(session, ".lock", data)
    assert (looked_at(session).held, looked_at(session).wrong) == (True, False)
    assert mend(session).done == []
    assert Path(session + ".lock").read_bytes() == data


def test_a_failure_to_remove_is_told_and_leaves_no_lock_file(session, monkeypatch):
    beside(session, ".new", b"x")
    unlink = _os.unlink

    def refusing(path):
        if path.endswith(".new"):
            raise PermissionError(1, "Operation not permitted")
        unlink(path)

    monkeypatch.setattr(_os, "unlink", refusing)
    assert mend(session).left == ["cannot mend: Operation not permitted"]
    assert sorted(os.listdir(os.path.dirname(session))) == ["a.jsonl", "a.jsonl.new"]


def test_a_session_on_a_network_file_system_is_left(session, monkeypatch):
    monkeypatch.setattr("locks.network.network_file_system", lambda path, device=None: "nfs4")
    beside(session, ".lock", foreign(DEAD))
    found = mend(session)
    assert "is on nfs4" in found.left[0]
    assert found.done == []


# What is held


@pytest.mark.failure("B7")
@pytest.mark.parametrize("right", ["lease", "turn"])
@pytest.mark.usefixtures("notes_at_once")
async def test_what_another_task_holds_is_named_and_stays_byte_for_byte(session, right):
    registry = LockRegistry()
    async with getattr(registry, right)(session):
        beside(session, "", RECORD + b"torn")
        beside(session, ".new", b"x")
        before = everything(os.path.dirname(session))
        seen = looked_at(session)
        held, other = (seen.write, seen.turn) if right == "lease" else (seen.turn, seen.write)
        assert (held.state, other.state, seen.wrong) == (State.HELD, State.FREE, False)
        assert held.holder is not None and held.holder.holder.pid == os.getpid()
        assert mend(session).left == ["somebody else has it now"]
        assert everything(os.path.dirname(session)) == before


@pytest.mark.failure("B7", "C1")
@pytest.mark.parametrize("right", ["lease", "turn"])
def test_what_another_process_holds_stays_until_it_is_killed(session, right):
    with holding(session, right) as child:
        beside(session, "", Path(session).read_bytes() + b"torn")
        before = everything(os.path.dirname(session))
        assert f"held by process {child.pid}" in said(session)
        assert not looked_at(session).wrong
        assert mend(session).left == ["somebody else has it now"]
        assert everything(os.path.dirname(session)) == before
        child.kill()
        child.wait()
        end = "lock" if right == "lease" else "turn"
        assert sorted(os.listdir(os.path.dirname(session))) == ["a.jsonl", f"a.jsonl.{end}"]
        assert "moved its torn last 4 bytes" in mended(session)
        assert sorted(os.listdir(os.path.dirname(session))) == ["a.jsonl", "a.jsonl.torn"]


def test_a_process_that_is_not_named_holds_all_the_same(session):
    with holding(session, "lease"):
        os.unlink(session + ".lock")
        assert said(session) == "write lease held by a process that is not named"


async def test_waiting_processes_are_counted(session):
    registries = [LockRegistry() for _ in range(4)]

    async def take(registry):
        async with registry.lease(session):
            pass

    async with create_task_group() as group, registries[0].lease(session):
        for registry in registries[1:]:
            group.start_soon(take, registry)
        await eventually(lambda: sum(registry.statistics().waiting for registry in registries) == 3)
        assert looked_at(session).write.waiting == 3
        assert "3 waiting" in said(session)


# Between two looks


def between(monkeypatch, act, times=1):
    """Have something happen right before the kernel is asked for the first time, or the first few times."""
    asking, left = inspection._standing, [act] * times

    def interrupted(*args):
        if left:
            left.pop()()
        return asking(*args)

    monkeypatch.setattr(inspection, "_standing", interrupted)


def append(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


def test_a_line_that_is_finished_meanwhile_is_no_torn_tail(session, monkeypatch):
    beside(session, "", RECORD + b'{"n"')
    between(monkeypatch, lambda: append(session, b": 2}\n"))
    assert looked_at(session).findings == []


def test_a_session_that_does_not_hold_still_is_not_called_torn(session, monkeypatch):
    beside(session, "", RECORD + b'{"n"')
    between(monkeypatch, lambda: append(session, b': 2}\n{"n"'), times=100)
    assert kinds(session) == [(Kind.TAIL, False, False)]


@pytest.mark.failure("B5", "B7")
def test_a_lock_file_that_changes_hands_meanwhile_is_not_taken_for_a_left_over(session, monkeypatch):
    beside(session, ".lock", ours(epoch=1))
    asking, asked = inspection._standing, []

    with open(session, "r+b") as next_holder:

        def then_taken(fd, right, named):
            answer = asking(fd, right, named)
            asked.append(right)
            if asked == [Right.TURN, Right.WRITE]:
                os.unlink(session + ".lock")
                assert KernelLock(next_holder.fileno(), (0, 0), Right.WRITE).try_lock()
                beside(session, ".lock", ours(epoch=2))
            return answer

        monkeypatch.setattr(inspection, "_standing", then_taken)
        assert kinds(session) == [(Kind.HELD, False, False)]


@pytest.mark.failure("B6")
def test_a_session_that_comes_into_being_meanwhile_is_left(session, monkeypatch):
    os.unlink(session)
    beside(session, ".lock", foreign(DEAD))
    opening = _os.open

    def overtaken(path, flags, *mode):
        if path == session and flags & os.O_CREAT:
            beside(session, "", RECORD)
        return opening(path, flags, *mode)

    monkeypatch.setattr(_os, "open", overtaken)
    assert mend(session).left == ["the session has come into being meanwhile"]
    assert Path(session).read_bytes() == RECORD
    assert Path(session + ".lock").exists()


@pytest.mark.failure("B6")
def test_a_session_made_for_its_locks_stays_once_a_foreign_gateway_has_the_lock_file(session, monkeypatch):
    os.unlink(session)
    beside(session, ".lock", foreign(DEAD))
    taking = lockfile.take

    def overtaken(*args):
        beside(session, ".lock", foreign())
        return taking(*args)

    monkeypatch.setattr(lockfile, "take", overtaken)
    assert mend(session).done == []
    assert Path(session).read_bytes() == b""
    assert json.loads(Path(session + ".lock").read_bytes())["pid"] == os.getppid()


async def test_writers_lose_nothing_while_everything_is_mended_over_and_over(session, tmp_path):
    registry, rounds = LockRegistry(), 0
    gone = str(tmp_path / "gone.jsonl")

    async def write(name: str):
        for number in range(40):
            await registry.append(session, {"by": name, "n": number})
            await registry.append(gone, {"by": name, "n": number})

    def mend_all():
        for path in (session, gone):
            beside(path, ".new", b"x")
            mend(path)
            inspect(path)

    async with create_task_group() as group:
        for name in "abc":
            group.start_soon(write, name)
        while registry.statistics().appended < 240:
            await to_thread.run_sync(mend_all)
            rounds += 1
    assert rounds > 1
    for path in (session, gone):
        records = [(one["by"], one["n"]) for one in await registry.read(path, on_error="raise") if "by" in one]
        assert sorted(records) == [(name, number) for name in "abc" for number in range(40)]
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".lock")]


async def test_mending_gives_way_to_the_turn_of_another_registry(session):
    async with LockRegistry().turn(session):
        assert mend(session).left == ["somebody else has it now"]
    beside(session, "", RECORD + b"torn")
    assert mend(session).done
    async with LockRegistry().lease(session, wait_timeout=0), LockRegistry().turn(session, wait_timeout=0):
        pass


def test_a_session_that_is_replaced_while_it_is_locked_is_left(session, monkeypatch):
    beside(session, ".new", b"x")
    monkeypatch.setattr(Entry, "is_at", lambda entry, path: False)
    assert mend(session).left == ["it was replaced meanwhile"]
    assert Path(session + ".new").exists()
