"""The command line: what it refuses, what it imports, and where it prints."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from runtime.cli import main
from runtime.trial.directory import prepare
from tests.command import LANES, lanes, result_of

ONE = '{"lane": "session:agent:x", "text": "hi", "think": 0.01}\n'


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("sessions")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory of the test's own, with a traffic file of one message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "one.jsonl").write_text(ONE)
    return tmp_path


def complaint(capsys, *arguments):
    """What the command says to misuse: one line, and exit code 2."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    return said.err.strip()


def test_help_starts_without_what_the_commands_need():
    child = "import sys, runtime.cli; print(*(sys.modules.keys() & {'structlog', 'rich', 'trio', 'psutil'}))"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_help_names_every_option():
    done = lanes("run", "--help")
    assert done.returncode == 0
    for option in ("--list", "--backend", "--sessions", "--scale", "--seed", "--duration", "--json", "--log-format"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["rum"], "No such command 'rum'"),
        (["run", "--bogus"], "No such option"),
        (["run", "--backend", "curio"], "'curio' is not one of 'asyncio', 'trio'"),
        (["run", "--scale", "x"], "'x' is not a valid float"),
        (["run", "--scale", "nan"], "--scale: nan is not allowed; allowed: a number above 0"),
        (["run", "--duration", "-1"], "--duration: -1.0 is not allowed; allowed: a number above 0"),
        (["run", "nope"], "target: 'nope' is unknown; allowed: background-flood, collect, crash, drop-oldest,"),
        (["run", "nope.toml"], "nope.toml: cannot be read: No such file or directory"),
        (["run", "nope:main"], "target: there is no module 'nope', neither here nor installed"),
        (["run", "one.jsonl", "more"], "unexpected extra argument"),
        (["run", "one.jsonl", "--sessions", ""], "--sessions: '' is not allowed; allowed: a directory"),
        (["run", "one.jsonl", "--sessions", "one.jsonl"], "--sessions: 'one.jsonl' is no directory"),
        (["run", "one.jsonl", "--sessions", "one.jsonl/x"], "cannot be used: Not a directory"),
    ],
)
def test_misuse_is_one_line_and_leaves_nothing(here, capsys, arguments, said):
    assert said in complaint(capsys, *arguments)
    assert os.listdir(here) == ["one.jsonl"]


@pytest.mark.parametrize(
    "source, function, said",
    [
        ("async def main(sup): pass", "other", "module 'prog' has no 'other'"),
        ("def main(sup): pass", "main", "is not async"),
        ("async def main(): pass", "main", "too many positional arguments"),
        ("main = 3", "main", "is not async"),
        ("x = (", "main", "module 'prog' cannot be imported: SyntaxError"),
        ("raise RuntimeError('one\\ntwo')", "main", "module 'prog' cannot be imported: RuntimeError: one two"),
        ("import nonesuch", "main", "module 'prog' cannot be imported: No module named 'nonesuch'"),
        ("raise SystemExit(0)", "main", "module 'prog' cannot be imported: SystemExit"),
    ],
)
def test_a_program_that_cannot_be_called_is_refused(here, capsys, monkeypatch, source, function, said):
    (here / "prog.py").write_text(source)
    monkeypatch.delitem(sys.modules, "prog", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        assert said in complaint(capsys, "run", f"prog:{function}", "--sessions", "s")
    finally:
        sys.modules.pop("prog", None)
    assert not (here / "s").exists()


def test_traffic_is_checked_to_its_last_line_before_anything_exists(here, capsys):
    (here / "two.jsonl").write_text(ONE + "nonsense\n")
    assert "two.jsonl, line 2: not JSON" in complaint(capsys, "run", "two.jsonl", "--sessions", "s")
    assert not (here / "s").exists()


def run_without_rights(here, prepare, *arguments):
    """The command in a child that `prepare` has taken something from, after its imports."""
    child = (
        "import sys, runtime.trial.start; from runtime.cli import main; from tests import command;"
        f" from tests.runtime import test_cli; {prepare}; sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run(
        [sys.executable, "-c", child, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        cwd=here,
    )


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="here a file has a name for a moment")
def test_whoever_is_killed_while_a_directory_is_tried_leaves_nothing_in_it(here, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.listdir("tried")))
    assert prepare("tried") == "tried"
    assert seen == [[]]


def test_a_directory_that_may_not_be_written_to_is_refused(here):
    (here / "ro").mkdir(mode=0o555)
    for directory in (here, *here.parents):
        if directory.stat().st_uid == os.geteuid() and len(directory.parts) > 2:
            directory.chmod(directory.stat().st_mode | 0o055)
    done = run_without_rights(here, "command.as_nobody()", "run", "one.jsonl", "--sessions", "ro")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lanes: --sessions: 'ro' cannot be used: Permission denied\n"


def test_a_directory_that_takes_no_byte_is_refused(here):
    done = run_without_rights(here, "test_cli.forbid_bytes()", "run", "one.jsonl", "--sessions", "full")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lanes: --sessions: 'full' cannot be used: File too large\n"
    assert os.listdir(here / "full") == []


def forbid_bytes():
    """What a full disk is to a writer: from here on, no file takes a byte."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


# Standard streams


def shell(here, command):
    return subprocess.run(
        ["bash", "-c", command, "bash", LANES], capture_output=True, text=True, check=False, cwd=here, timeout=60
    )


def test_somebody_may_stop_listening(here):
    done = shell(here, '"$1" run one.jsonl 2>&1 | head -1; exit ${PIPESTATUS[0]}')
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sessions: ")


def test_nothing_that_was_closed_becomes_a_transcript(here):
    assert shell(here, '"$1" run one.jsonl --sessions s <&- >&- 2>&-').returncode == 0
    (transcript,) = (here / "s").iterdir()
    assert len(transcript.read_text().splitlines()) == 3


def test_a_result_that_cannot_be_printed_is_no_success(here):
    done = shell(here, '"$1" run one.jsonl --json >/dev/full 2>err; echo $?; grep -c Traceback err')
    assert done.stdout.split() == ["1", "0"]
    assert "lanes: cannot print: No space left on device" in (here / "err").read_text()


def test_with_json_nothing_but_the_result_is_on_standard_output(here):
    (here / "prog.py").write_text(
        "import os, subprocess\n"
        "print('noise at import')\n"
        "async def main(sup):\n"
        "    print('noise')\n"
        "    os.write(1, b'noise')\n"
        "    subprocess.run(['echo', 'noise'])\n"
    )
    done = lanes("run", "prog:main", "--json", cwd=here)
    assert result_of(done)["verdict"] == "green"
    assert done.stderr.count("noise") == 4


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_log_lines_go_to_standard_error(here, log_format):
    done = lanes("run", "one.jsonl", "--log-format", log_format, cwd=here)
    assert "supervisor_started" in done.stderr and "supervisor_started" not in done.stdout
    assert all(line.startswith("{") for line in done.stderr.splitlines()) == (log_format == "json")
