"""`lanes run` from end to end, as a child process: what it serves, survives, and says at the end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
from datetime import datetime, timedelta

import pytest

from tests.command import LANES, lanes, records, result_of, started
from tests.poll import eventually_sync

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])

LIMITS = """
traffic = "traffic.jsonl"

[[lanes]]
pattern = "session:*"
timeout = 1.0
grace = 0.1

[[lanes]]
pattern = "main"
timeout = 30.0
grace = 0.1

[[lanes]]
pattern = "patient"
timeout = 30.0
"""


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("sessions")))


@pytest.fixture
def scenario(tmp_path):
    """Makes a scenario with short limits of some messages."""

    def make(*lines):
        (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / "scenario.toml").write_text(LIMITS)
        return tmp_path / "scenario.toml"

    return make


@both
def test_every_behaviour_is_told_and_leaves_its_records(scenario, tmp_path, backend):
    file = scenario(
        {"lane": "patient", "session": "ok", "text": "a", "think": 2.0},
        {"lane": "main", "session": "ok", "text": "b", "think": 0.01},
        {"lane": "heartbeat", "session": "ok", "text": "side", "at": 0.02, "turn": False},
        {"lane": "patient", "session": "raise", "text": "c", "behave": "raise"},
        {"lane": "session:hang", "text": "d", "behave": "hang"},
        {"lane": "main", "session": "hang", "text": "next", "at": 0.1},
        {"lane": "session:block", "text": "e", "behave": "block"},
        {"lane": "session:swallow", "text": "f", "behave": "swallow"},
        {"lane": "main", "text": "no session", "think": 0.01},
    )
    done = lanes("run", file, "--sessions", tmp_path / "s", "--json", "--backend", backend)
    result = result_of(done)
    assert (done.returncode, result["verdict"]) == (0, "green"), done.stderr
    assert [result[name] for name in ("messages", "answered", "timed_out", "failed")] == [9, 5, 3, 1]
    assert result["acknowledged"] == result["verified"] == 12
    assert result["late_writes_refused"] == 2
    assert result["recovery_ms"]["max"] > 0
    found = records(tmp_path / "s")
    assert [r["content"] for r in found if r["content"] in ("side", "a", "answer to: a", "b", "answer to: b")] == [
        "a",
        "side",
        "answer to: a",
        "b",
        "answer to: b",
    ]
    assert {r["stopped"] for r in found if "stopped" in r} == {"timed out after 1 s"}


def test_a_message_that_was_not_answered_is_posted_again(scenario):
    file = scenario({"lane": "session:a", "behave": "raise", "again": 2}, {"lane": "session:b", "again": 2})
    result = result_of(lanes("run", file, "--json"))
    assert (result["messages"], result["answered"], result["failed"]) == (4, 1, 3)


def test_a_message_that_finds_its_lane_full_is_told_so(scenario):
    file = scenario(*({"lane": "session:a", "think": 0.01} for _ in range(25)))
    result = result_of(lanes("run", file, "--json"))
    assert (result["messages"], result["answered"], result["failed"], result["verdict"]) == (25, 21, 4, "green")


def test_people_get_lines(scenario, tmp_path):
    done = lanes("run", scenario({"lane": "session:a", "text": "x"}), "--sessions", tmp_path / "s")
    assert done.returncode == 0
    assert done.stdout.startswith(f"sessions: {tmp_path / 's'}\nverdict: green   (asyncio, ")
    assert "2 acknowledged, 2 verified, 0 lost, 0 interleaved" in done.stdout


def test_broken_lines_are_named_and_never_rewritten(scenario, tmp_path):
    file, directory = scenario({"lane": "session:a", "text": "x"}), tmp_path / "s"
    assert lanes("run", file, "--sessions", directory).returncode == 0
    (transcript,) = directory.iterdir()
    with transcript.open("ab") as broken:
        broken.write(b'garbage\n\xff\xfe\n{"half')
    before = transcript.read_bytes()
    done = lanes("run", file, "--sessions", directory)
    assert done.returncode == 0
    for number in (4, 5, 6):
        assert f"{transcript}, line {number}: " in done.stdout
    assert transcript.read_bytes().startswith(before.removesuffix(b'{"half'))
    assert transcript.with_name(transcript.name + ".torn").read_bytes() == b'{"half\n'


# Programs


PROGRAM = """
import threading, time
import anyio

async def talk(ctx, number):
    await ctx.session.append({"question": number})
    await anyio.sleep(0.001)
    await ctx.session.append({"answer": number})

async def main(sup):
    for number in range(20):
        sup.submit(f"session:{number % 3}", talk, number)

async def failing(sup):
    await main(sup)
    raise ValueError("no good")

async def zombie(sup):
    async def hang(ctx):
        await anyio.to_thread.run_sync(threading.Event().wait)
    await sup.submit("main", hang, timeout=0.05).wait()

async def vandal(sup):
    async def body(ctx):
        await ctx.session.append({"question": 1})
        open(ctx.session.path, "w").write("junk\\n")
    await sup.run("session:a", body)

async def frozen(sup):
    open("frozen", "w").close()
    time.sleep(600)

async def waiting(sup):
    await sup.run("session:a", talk, 1)
    await anyio.sleep(600)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "prog.py").write_text(PROGRAM)
    return tmp_path


@both
def test_a_program_is_supervised_and_its_files_are_read_again(program, backend):
    result = result_of(lanes("run", "prog:main", "--json", "--backend", backend, cwd=program))
    assert [result[name] for name in ("messages", "answered", "acknowledged", "verified")] == [20, 20, 40, 40]
    assert result["verdict"] == "green"


@pytest.mark.parametrize(
    "function, code, said",
    [
        ("failing", 1, "prog:failing raised ValueError: no good"),
        ("vandal", 1, "0 verified, 1 lost, 1 interleaved"),
        ("zombie", 70, "abandoned    <Run 1 on lane main"),
    ],
)
def test_a_program_that_does_harm_is_told_apart_by_its_exit_code(program, function, code, said):
    done = lanes("run", f"prog:{function}", cwd=program)
    assert done.returncode == code, done.stderr
    assert said in done.stdout


def test_duration_ends_a_program(program):
    done = lanes("run", "prog:waiting", "--duration", "0.1", "--json", cwd=program)
    assert (done.returncode, result_of(done)["answered"]) == (0, 1)


# Signals and kills


def under_way(directory, child):
    """Wait until the first records are in the files."""
    eventually_sync(lambda: child.poll() is not None or records(directory), within=60)
    assert child.poll() is None


def ended(child):
    """Its exit code, and the object on its standard output."""
    out, _ = child.communicate(timeout=60)
    return child.returncode, json.loads(out) if out else None


@both
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_drains_and_gives_the_verdict_over_what_was_done(tmp_path, number, backend):
    with started("run", "--json", "--sessions", tmp_path, "--backend", backend) as child:
        under_way(tmp_path, child)
        child.send_signal(number)
        code, result = ended(child)
    assert (code, result["verdict"]) == (0, "green")
    assert 0 < result["messages"] == result["answered"] + result["timed_out"] + result["failed"] < 500


def test_a_hangup_has_the_file_read_again_and_what_is_refused_changes_nothing(scenario, tmp_path):
    file = scenario({"lane": "patient", "session": "a", "behave": "hang"})
    log = tmp_path / "log"
    with started("run", file, "--json", "--log-format", "json", "--sessions", tmp_path / "s", log=log) as child:
        under_way(tmp_path / "s", child)

        def logged(event):
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
            return next((line for line in lines if line["event"] == event), None)

        file.write_text(LIMITS.replace("timeout = 30.0", 'timeout = "long"'))
        child.send_signal(signal.SIGHUP)
        eventually_sync(lambda: logged("configuration_refused"), within=30)
        file.write_text(LIMITS + "capacity = 7\n")
        child.send_signal(signal.SIGHUP)
        eventually_sync(lambda: logged("configuration_read"), within=30)
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGTERM)
        ended(child)
    refused, changed = logged("configuration_refused"), logged("configured")
    assert "lanes[1].timeout: " in refused["error"]
    assert changed["changes"] == ["lane patient, capacity: 1 → 7"]
    assert (logged("draining"), logged("configuration_read")["changed"]) != (None, 0)


@both
@pytest.mark.failure("T8")
def test_under_nohup_and_in_the_background_only_sigterm_ends_it(tmp_path, backend):
    ignoring = ["sh", "-c", "trap '' HUP INT; exec \"$@\"", "sh", LANES]
    log = tmp_path / "log"
    with started(
        "run", "--json", "--sessions", tmp_path / "s", "--backend", backend, log=log, command=ignoring
    ) as child:
        under_way(tmp_path / "s", child)
        child.send_signal(signal.SIGHUP)
        child.send_signal(signal.SIGINT)
        kept = len(records(tmp_path / "s"))
        eventually_sync(lambda: child.poll() is not None or len(records(tmp_path / "s")) > kept + 20, within=60)
        assert "draining" not in log.read_text()
        child.send_signal(signal.SIGTERM)  # the first one that counts
        code, result = ended(child)
    assert (code, result["verdict"]) == (0, "green")
    assert "draining" in log.read_text()


@both
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_cancels_at_once(scenario, tmp_path, number, code, backend):
    file, directory = scenario({"lane": "cron", "session": "a", "behave": "hang"}), tmp_path / "s"
    log = tmp_path / "log"
    options = ["--json", "--log-format", "json", "--sessions", directory, "--backend", backend]
    with started("run", file, *options, log=log) as child:
        under_way(directory, child)
        child.send_signal(number)
        eventually_sync(lambda: "draining" in log.read_text(), within=60)
        child.send_signal(number)
        found, result = ended(child)
    assert (found, result["verdict"], result["failed"]) == (code, "green", 1)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    events = {line["event"]: line for line in lines}
    begun, over = (datetime.fromisoformat(events[name]["timestamp"]) for name in ("draining", "supervisor_stopped"))
    assert over - begun < timedelta(seconds=events["draining"]["drain_s"])
    assert [record.get("stopped") for record in records(directory)] == [None, "the supervisor is stopping"]


@both
def test_a_third_signal_ends_a_process_whose_loop_is_frozen(program, backend):
    def interrupted():
        child.send_signal(signal.SIGINT)
        return child.poll() is not None

    with started("run", "prog:frozen", "--backend", backend, cwd=program) as child:
        eventually_sync((program / "frozen").exists, within=60)
        eventually_sync(interrupted, within=60)
        assert child.returncode == 130


@both
def test_after_kill_9_the_same_directory_serves_at_once(tmp_path, backend):
    with started("run", "--sessions", tmp_path, "--backend", backend) as child:
        under_way(tmp_path, child)
        eventually_sync(lambda: len(records(tmp_path)) > 20, within=60)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    kept = len(records(tmp_path))
    done = lanes("run", "--sessions", tmp_path, "--duration", "0.5", "--json", "--backend", backend)
    result = result_of(done)
    assert (done.returncode, result["verdict"], result["stuck_sessions"]) == (0, "green", 0)
    assert len(records(tmp_path)) == kept + result["verified"]


def test_two_processes_share_a_directory(tmp_path):
    with started("run", "--sessions", tmp_path, "--duration", "1", "--seed", "1", "--json") as one:
        done = lanes("run", "--sessions", tmp_path, "--duration", "1", "--seed", "2", "--json", "--backend", "trio")
        code, result = ended(one)
    assert (code, result["verdict"]) == (0, "green")
    assert (done.returncode, result_of(done)["verdict"]) == (0, "green")


# A terminal


@both
def test_a_terminal_gets_a_live_table(scenario, backend):
    file = scenario(*({"lane": "session:[bold]k", "behave": "hang"} for _ in range(4)))
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [LANES, "run", file, "--backend", backend],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    seen = b""
    try:
        while block := read(ours):
            seen += block
    finally:
        os.close(ours)
        child.kill()
        child.wait()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert re.search(r"\[bold\]k +run \d on session:\[bold\]k +\d\.\d s", text)
    assert "run_timed_out" in text
    assert "verdict: green" in text


def read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""  # a terminal whose other side is closed
