"""`lanes doctor` from end to end, as a child process: what it says, to whom, and with which exit code."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lanes import SessionLayout
from locks import _os
from locks.doctor import searching
from locks.doctor.findings import Kind
from locks.doctor.searching import search
from runtime import Supervisor
from tests import blocking
from tests.command import LANES, lanes, result_of, started
from tests.peers import peer
from tests.poll import eventually_sync
from tests.sessions_on_disk import DEAD, RECORD, beside, everything, foreign, holding, ours

SESSION_KEYS = [
    "file",
    "exists",
    "size",
    "records",
    "key",
    "broken",
    "broken_lines",
    "tail",
    "turn",
    "write",
    "lock",
    "links",
    "symlink",
    "findings",
    "done",
    "left",
]
SUMMARY_KEYS = ["sessions", "records", "bytes", "held", "wrong", "mendable", "mended", "interrupted", "inbox"]


def told(done: subprocess.CompletedProcess[str]) -> dict:
    """What `--json` has printed: one object, a session a line."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert len(done.stdout.splitlines()) == len(found["sessions"]) + 2
    return found


@pytest.fixture
def sick(tmp_path):
    """A directory with a sound session and one of each thing that can be mended."""
    for name in ["dead", "left", "noted", "sound", "torn"]:
        (tmp_path / f"{name}.jsonl").write_bytes(RECORD)
    beside(str(tmp_path / "dead.jsonl"), ".lock", foreign(DEAD))
    beside(str(tmp_path / "left.jsonl"), ".new", b"x")
    beside(str(tmp_path / "noted.jsonl"), ".turn", ours(pid=DEAD))
    beside(str(tmp_path / "orphan.jsonl"), ".lock", foreign(DEAD))
    beside(str(tmp_path / "torn.jsonl"), "", RECORD + b"torn")
    return tmp_path


def test_people_get_a_line_for_each_session_that_has_something_to_say(sick):
    before = everything(sick)
    done = lanes("doctor", sick)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines() == [
        f"note    dead.jsonl    stale lock file of process {DEAD} (a foreign gateway): process {DEAD} is dead",
        "wrong   left.jsonl    left.jsonl.new (1 bytes) was left over by a compaction that did not end",
        f"note    noted.jsonl   stale note of a turn of process {DEAD} (run 7 on lane main): nobody has the turn",
        f"wrong   orphan.jsonl  stale lock file of process {DEAD} (a foreign gateway): process {DEAD} is dead",
        "wrong   torn.jsonl    its last 4 bytes are torn",
        "5 sessions, 5 records, 49 bytes: 3 wrong",
        f"to mend 3 of them: lanes doctor {sick} --fix",
    ]
    assert everything(sick) == before


def test_fix_mends_says_so_and_leaves_nothing_to_do(sick):
    done = lanes("doctor", sick, "--fix")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[:2] for line in done.stdout.splitlines()[:5]] == [
        ["mended", f"{name}.jsonl"] for name in ("dead", "left", "noted", "orphan", "torn")
    ]
    assert done.stdout.splitlines()[5] == "5 sessions, 5 records, 45 bytes: 5 mended"
    assert sorted(os.listdir(sick)) == [
        *(f"{name}.jsonl" for name in ("dead", "left", "noted", "sound", "torn")),
        "torn.jsonl.torn",
    ]
    after = everything(sick)
    again = lanes("doctor", sick, "--fix", "--json")
    assert (again.returncode, [one for one in told(again)["sessions"] if one["done"] or one["left"]]) == (0, [])
    assert everything(sick) == after


def test_machines_get_one_object_with_keys_that_stay(sick):
    done = lanes("doctor", sick, "--json")
    found = told(done)
    assert (done.returncode, done.stderr) == (1, "")
    assert list(found) == ["directory", "fix", "network_fs", "sessions", "summary"]
    assert list(found["summary"]) == SUMMARY_KEYS
    assert list(found["summary"].values()) == [5, 5, 49, 0, 3, 5, 0, None, None]
    for one in found["sessions"]:
        assert list(one) == SESSION_KEYS
    by_name = {one["file"]: one for one in found["sessions"]}
    assert by_name["sound.jsonl"]["findings"] == []
    assert by_name["torn.jsonl"]["tail"] == {"bytes": 4, "whole": False}
    assert list(by_name["dead.jsonl"]["lock"]) == ["holder", "foreign", "stale", "reason", "age_s"]
    assert list(by_name["dead.jsonl"]["lock"]["holder"]) == ["pid", "host", "lane", "run", "since", "until"]
    assert by_name["dead.jsonl"]["turn"] == {"state": "free", "holder": None, "waiting": 0}
    assert by_name["orphan.jsonl"]["exists"] is False


def test_nothing_wrong_is_0(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(RECORD)
    done = lanes("doctor", tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 session, 1 record, 9 bytes: nothing wrong\n")
    assert told(lanes("doctor", tmp_path, "--json"))["summary"]["wrong"] == 0


@pytest.mark.failure("T7")
@pytest.mark.parametrize("options", [[], ["--fix"], ["--recursive"]], ids=["", "fix", "recursive"])
def test_where_nothing_was_looked_at_it_says_where_and_exits_2(tmp_path, options):
    (tmp_path / "sub").mkdir()
    (tmp_path / "notes.txt").touch()
    done = lanes("doctor", tmp_path, *options)
    looked = "nor in the directories below" if "--recursive" in options else "subdirectories are not looked into"
    glue = ", " if "--recursive" in options else "; "
    said = f"no sessions (*.jsonl) here{glue}{looked}; looked in {tmp_path}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, said, "")
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "sub"]
    as_json = lanes("doctor", tmp_path, "--json", *options)
    found = told(as_json)
    assert (as_json.returncode, found["sessions"], found["summary"]["sessions"]) == (2, [], 0)


@pytest.mark.failure("T7")
def test_where_all_sessions_are_further_down_it_names_the_option_that_looks_there(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.jsonl").write_bytes(RECORD + b"torn")
    done = lanes("doctor", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.endswith(
        f"looked in {tmp_path}; deep/er/a.jsonl is one further down: lanes doctor . --recursive\n"
    )
    assert lanes("doctor", tmp_path, "--recursive").returncode == 1


def by_day(key):
    """A layout as other programs have it: a directory for each session."""
    return f"2026/{key}/transcript.jsonl"


@pytest.mark.failure("T7")
@pytest.mark.backends("asyncio", "trio")
async def test_recursive_looks_at_nested_sessions_and_mends_them(tmp_path):
    (tmp_path / "2026" / "torn").mkdir(parents=True)
    (tmp_path / "2026" / "sound").mkdir()
    async with Supervisor(SessionLayout(tmp_path, path=by_day)) as sup:
        for key in ("torn", "sound"):
            await sup.submit("main", keeps, session=key).result()
    torn = tmp_path / "2026" / "torn" / "transcript.jsonl"
    beside(str(torn), "", torn.read_bytes() + b"half")
    (tmp_path / "top.jsonl").write_bytes(RECORD)
    with blocking.permitted("starts children"):
        flat, deep = lanes("doctor", tmp_path), lanes("doctor", tmp_path, "--recursive")
        as_json = told(lanes("doctor", tmp_path, "--recursive", "--json"))
        fixed, again = lanes("doctor", tmp_path, "-r", "--fix"), lanes("doctor", tmp_path, "-r")
    assert (flat.returncode, flat.stdout) == (0, "1 session, 1 record, 9 bytes: nothing wrong\n")
    assert (deep.returncode, deep.stdout.splitlines()) == (
        1,
        [
            "wrong   2026/torn/transcript.jsonl   its last 4 bytes are torn",
            "3 sessions, 3 records, 45 bytes: 1 wrong",
            f"to mend it: lanes doctor {tmp_path} --recursive --fix",
        ],
    )
    names = ["top.jsonl", "2026/sound/transcript.jsonl", "2026/torn/transcript.jsonl"]
    assert [one["file"] for one in as_json["sessions"]] == names
    assert (as_json["recursive"], list(as_json["summary"])) == (True, SUMMARY_KEYS)
    assert (fixed.returncode, again.returncode) == (0, 0)
    assert torn.with_name("transcript.jsonl.torn").read_bytes() == b"half\n"


async def keeps(ctx):
    await ctx.session.append({"text": "kept"})


@pytest.mark.failure("T7")
def test_links_and_loops_are_told_and_not_gone_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jsonl").write_bytes(RECORD)
    (tmp_path / "real" / "back").symlink_to(tmp_path)
    (tmp_path / "door").symlink_to("real")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dir.jsonl").mkdir()
    (tmp_path / "dir.jsonl" / "b.jsonl").write_bytes(RECORD)
    done = lanes("doctor", tmp_path, "-r")
    assert done.returncode == 1
    assert [line.split(maxsplit=2) for line in done.stdout.splitlines()[:-1]] == [
        ["wrong", "dir.jsonl", "it is a directory: a session needs a regular file"],
        ["note", "door", "it is a symbolic link to a directory, and not gone through"],
        ["note", "real/back", "it is a symbolic link to a directory, and not gone through"],
    ]
    assert done.stdout.splitlines()[-1] == "3 sessions, 2 records, 18 bytes: 1 wrong"


@pytest.mark.failure("T7")
def test_a_directory_that_is_reached_twice_is_looked_into_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in "ab":
        (tmp_path / name / "x.jsonl").write_bytes(RECORD)
    stat = _os.stat
    monkeypatch.setattr(_os, "stat", lambda path: stat(tmp_path / "a" if path.endswith("/b") else path))
    assert [place.name for place in search(str(tmp_path), recursive=True)] == ["a/x.jsonl"]


@pytest.mark.failure("T7")
def test_a_directory_further_down_that_cannot_be_read_or_is_of_another_host_is_wrong(tmp_path, monkeypatch):
    for name in ("gone", "far", "shut"):
        (tmp_path / name).mkdir()
    (tmp_path / "far" / "x.jsonl").write_bytes(RECORD)
    scandir = _os.scandir

    def listed(path):
        if path.endswith(("shut", "gone")):
            raise OSError(errno.EACCES if path.endswith("shut") else errno.ENOENT, "no")
        return scandir(path)

    monkeypatch.setattr(_os, "scandir", listed)
    monkeypatch.setattr(
        searching, "network_file_system", lambda path, _device: "nfs4" if path.endswith("far") else None
    )
    found = [
        (place.name, place.told and [(one.kind, one.wrong) for one in place.told.findings])
        for place in search(str(tmp_path), recursive=True)
    ]
    assert found == [
        ("far/x.jsonl", None),
        ("far", [(Kind.NETWORK_FS, True)]),
        ("shut", [(Kind.UNREADABLE, True)]),
    ]


@pytest.mark.failure("T7")
def test_a_directory_further_down_that_may_not_be_listed_is_wrong_and_the_rest_is_looked_at(reachable):
    (reachable / "shut").mkdir()
    (reachable / "open").mkdir()
    (reachable / "open").chmod(0o755)
    (reachable / "open" / "a.jsonl").write_bytes(RECORD)
    (reachable / "open" / "a.jsonl").chmod(0o644)
    (reachable / "shut").chmod(0o711)
    done = as_nobody(reachable, "doctor", ".", "--recursive")
    (reachable / "shut").chmod(0o755)
    if os.geteuid() == 0:  # else it is this user's own, who may list it
        assert (done.returncode, done.stdout.splitlines()) == (
            1,
            [
                "wrong   shut          it cannot be read: Permission denied",
                "1 session, 1 record, 9 bytes: 1 wrong",
            ],
        )
    else:
        assert done.returncode == 0


@pytest.mark.failure("T7")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_a_killed_gateway_leaves_and_the_next_one_clears_away_is_a_note(tmp_path, backend):
    with peer("keeper", tmp_path, backend) as keeper:
        eventually_sync(lambda: keeper.said("kept"), within=60)
        keeper.signal(signal.SIGKILL)
        eventually_sync(keeper.ended)
    before = everything(tmp_path)
    done = lanes("doctor", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["note", "note", "2"]
    for line in done.stdout.splitlines()[:2]:
        assert "stale lock file" in line and "stale note of a turn" in line
    assert done.stdout.splitlines()[2].endswith(": nothing wrong")
    assert everything(tmp_path) == before
    found = told(lanes("doctor", tmp_path, "--json"))
    assert (found["summary"]["wrong"], found["summary"]["mendable"]) == (0, 2)
    with peer("keeper", tmp_path, backend) as keeper:
        eventually_sync(lambda: keeper.said("kept"), within=60)
        keeper.tell("leave")
        eventually_sync(lambda: sorted(os.listdir(tmp_path)) == [name for name in sorted(before) if name[-1] == "l"])
    assert lanes("doctor", tmp_path).stdout.startswith("2 sessions, 4 records, ")


@pytest.mark.failure("T7")
def test_fix_removes_what_a_killed_gateway_left(tmp_path):
    with peer("keeper", tmp_path, "asyncio") as keeper:
        eventually_sync(lambda: keeper.said("kept"), within=60)
        keeper.signal(signal.SIGKILL)
        eventually_sync(keeper.ended)
    done = lanes("doctor", tmp_path, "--fix")
    assert (done.returncode, done.stdout.splitlines()[-1].rpartition(": ")[2]) == (0, "2 mended")
    assert {Path(name).suffix for name in os.listdir(tmp_path)} == {".jsonl"}


def test_what_cannot_be_mended_is_1_and_gets_no_hint(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(RECORD + b"bad\n")
    for options in [], ["--fix"]:
        done = lanes("doctor", tmp_path, *options)
        assert done.returncode == 1
        assert "--fix" not in done.stdout
    assert (tmp_path / "a.jsonl").read_bytes() == RECORD + b"bad\n"


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "Missing argument 'DIR'"),
        (["nope"], "DIR: 'nope' cannot be read: No such file or directory; allowed: a directory of sessions"),
        (["file"], "DIR: 'file' cannot be read: Not a directory; allowed: a directory of sessions"),
        ([""], "DIR: '' is not allowed; allowed: a directory of sessions"),
        ([".", "more"], "unexpected extra argument"),
        ([".", "--all"], "No such option"),
    ],
)
def test_misuse_is_one_line_and_2(tmp_path, arguments, said):
    (tmp_path / "file").touch()
    done = lanes("doctor", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert said in done.stderr


@pytest.mark.failure("B7")
@pytest.mark.parametrize("right", ["lease", "turn"])
def test_what_is_held_is_told_not_wrong_and_left_byte_for_byte(tmp_path, right):
    session = str(tmp_path / "a.jsonl")
    beside(session, "", RECORD)
    with holding(session, right, "trio") as child:
        beside(session, "", RECORD + b"torn")
        before = everything(tmp_path)
        done = lanes("doctor", tmp_path, "--fix")
        assert done.returncode == 0
        assert done.stdout.startswith("held    a.jsonl  ")
        assert f"held by process {child.pid}" in done.stdout
        assert done.stdout.endswith(": 1 held\n")
        assert everything(tmp_path) == before
        (found,) = told(lanes("doctor", tmp_path, "--fix", "--json"))["sessions"]
        assert found["write" if right == "lease" else "turn"]["holder"]["pid"] == child.pid
        assert everything(tmp_path) == before


@pytest.mark.failure("B9")
def test_a_live_foreign_lock_is_told_and_left(tmp_path):
    session = str(tmp_path / "a.jsonl")
    beside(session, "", RECORD + b"torn")
    beside(session, ".lock", foreign())
    before = everything(tmp_path)
    done = lanes("doctor", tmp_path, "--fix")
    assert (done.returncode, done.stdout.split()[0]) == (0, "held")
    assert f"process {os.getppid()} (a foreign gateway)" in done.stdout
    assert everything(tmp_path) == before


def test_nothing_is_lost_while_a_program_serves_the_directory(tmp_path):
    with started("run", "--sessions", tmp_path, "--duration", "1", "--json") as child:
        eventually_sync(lambda: list(tmp_path.glob("*.jsonl")), within=60)
        looked = 0
        while child.poll() is None and looked < 4:
            assert lanes("doctor", tmp_path, "--fix").returncode == 0
            looked += 1
        out, _ = child.communicate(timeout=60)
    result = json.loads(out)
    assert looked
    assert (child.returncode, result["verdict"], result["lost"], result["interleaved"]) == (0, "green", 0, 0)
    assert result_of(lanes("run", "--sessions", tmp_path, "--duration", "0.2", "--json"))["verdict"] == "green"


def test_names_are_printed_safely(tmp_path):
    for name in [b"new\nline.jsonl", b"\x1b[31mred.jsonl", b"no\xffutf8.jsonl"]:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"bad\n")
    done = lanes("doctor", tmp_path)
    assert [line.split("  ")[1].strip() for line in done.stdout.splitlines()[:3]] == [
        r"\x1b[31mred.jsonl",
        "new line.jsonl",
        r"no\udcffutf8.jsonl",
    ]
    found = told(lanes("doctor", tmp_path, "--json"))
    assert os.fsencode(found["sessions"][2]["file"]) == b"no\xffutf8.jsonl"


@pytest.fixture
def reachable():
    """A directory that each user can get to: each pytest that starts shuts the one above `tmp_path` for others."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def as_nobody(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user whom the file system refuses something, in a directory that he may enter."""
    for one in (directory, *directory.parents):
        if one.stat().st_uid == os.geteuid() and len(one.parts) > 2:
            one.chmod(one.stat().st_mode | 0o055)
    child = (
        "import sys, psutil, structlog, tempfile, runtime.cli.doctor;"
        " from runtime.cli import main; from tests import command; command.as_nobody(); sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", child, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=directory,
    )


def test_what_may_not_be_read_is_told(reachable):
    for name, mode in [("closed", 0o000), ("open", 0o444)]:
        (reachable / f"{name}.jsonl").write_bytes(RECORD + b"torn")
        (reachable / f"{name}.jsonl").chmod(mode)
    done = as_nobody(reachable, "doctor", ".", "--fix")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[:2] == [
        "wrong   closed.jsonl  it cannot be read: Permission denied",
        "wrong   open.jsonl    left alone: cannot mend: Permission denied; its last 4 bytes are torn",
    ]
    assert (reachable / "open.jsonl").read_bytes() == RECORD + b"torn"


def test_a_directory_that_may_not_be_listed_is_refused(reachable):
    (reachable / "shut").mkdir(mode=0o711)
    done = as_nobody(reachable, "doctor", "shut")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lanes: DIR: 'shut' cannot be read: Permission denied; allowed: a directory of sessions\n"


# Signals and standard streams


@pytest.fixture
def many(tmp_path):
    """More to say than a pipe takes, so that whoever does not listen holds the command up."""
    for number in range(1200):
        (tmp_path / f"{number:04}.jsonl").write_bytes(b"bad\n")
    return tmp_path


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_the_session_at_hand(many, number, code):
    with started("doctor", many, "--json") as child:
        assert child.stdout is not None
        first = child.stdout.readline() + child.stdout.readline()
        child.send_signal(number)
        rest = child.stdout.read()
        child.wait(30)
    found = json.loads(first + rest)
    assert (child.returncode, found["summary"]["interrupted"]) == (code, number)
    assert 0 < found["summary"]["sessions"] == len(found["sessions"]) < 1200


def test_a_signal_is_named_to_people(many):
    with started("doctor", many) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        rest = child.stdout.read()
        child.wait(30)
    assert child.returncode == 130
    assert rest.endswith("wrong   (cut short by signal 2)\n")


@pytest.mark.parametrize("option", ["", "--json"])
def test_somebody_may_stop_listening(many, option):
    done = subprocess.run(
        ["bash", "-c", f'"$1" doctor . {option} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}', "bash", LANES],
        capture_output=True,
        text=True,
        check=False,
        cwd=many,
        timeout=60,
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
