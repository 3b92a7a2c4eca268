"""The commands that ask a process: what an operator reads, and with which exit code."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from lanes import LaneSpec
from runtime import Supervisor
from runtime.cli.status import lines
from runtime.status import client, protocol, socket_path
from tests import blocking
from tests.command import LANES, lanes
from tests.poll import eventually, eventually_sync
from tests.supervised import Shielded, gone

pytestmark = pytest.mark.backends("asyncio", "trio")
SPECS = [LaneSpec("session:*", grace=0.1), LaneSpec("one", grace=0.1)]
LIMIT_S = 30.0


@pytest.fixture(autouse=True)
def _out_of_everybodys_way(tmp_path, monkeypatch):
    """These commands act on whatever process they find: let them find nobody's but ours."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LANES_SOCKET", raising=False)


async def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return await to_thread.run_sync(partial(lanes, *arguments))


def supervisor(tmp_path: Path, **options: object) -> Supervisor:
    return Supervisor(tmp_path / "sessions", lanes=SPECS, drain_timeout=0.0, status_socket=True, **options)  # type: ignore[arg-type]  # whatever a test wants


async def waits(ctx):
    await anyio.sleep_forever()


async def ended(sup: Supervisor) -> None:
    """Wait until nothing runs or waits any more."""
    sup.cancel()
    await eventually(lambda: not sup.runs(), within=LIMIT_S)


# Looking


async def test_a_stuck_run_is_found_in_one_command_with_its_line_of_code(tmp_path):
    async with supervisor(tmp_path) as sup:
        body = Shielded()
        stuck = sup.submit("one", body, timeout=0.1)
        await stuck.wait()
        healthy, queued = sup.submit("session:a", waits), sup.submit("main", waits, session="a")
        await eventually(lambda: healthy.state == "running")
        done = await command("status")
        assert (done.returncode, done.stderr) == (0, "")
        head, _, rest = done.stdout.partition("\nSTUCK\n")
        assert head.startswith(f"process {os.getpid()}, running for ")
        assert f"generation 1, sessions {tmp_path / 'sessions'}\n" in head
        assert "1 running, 1 waiting, 1 abandoned" in head
        stuck_rows, _, rest = rest.partition("\nRUNNING, the longest first\n")
        assert f"  run {stuck.id}  one  abandoned " in stuck_rows
        assert "  at supervised.py:" in stuck_rows
        assert "in __call__: await self._released.wait()" in stuck_rows
        running, _, waiting = rest.partition("\nWAITING, the longest first\n")
        assert f"  run {healthy.id}  session:a  ran " in running
        assert "left; 1 waits for it\n" in running
        assert "in waits: await anyio.sleep_forever()\n" in running
        assert f"  run {queued.id}  main, session a  waited " in waiting
        assert f" for the turn of session a: run {healthy.id} on lane session:a\n" in waiting
        once = await command("top")
        assert (once.returncode, once.stdout.split(",")[0]) == (0, f"process {os.getpid()}")
        told = json.loads((await command("status", "--json")).stdout)["status"]
        assert [row["id"] for row in told["runs"]] == [healthy.id, queued.id]
        assert [row["id"] for row in told["abandoned"]] == [stuck.id]
        body.release()
        await gone(sup)
        await ended(sup)


async def test_a_frozen_process_is_shown_with_the_line_that_blocks_it_and_nothing_is_done(tmp_path):
    frozen, thawed = threading.Event(), threading.Event()
    found: list[subprocess.CompletedProcess[str]] = []

    async def blocks(ctx):
        frozen.set()
        with blocking.permitted("a body that does not let go of the loop"):
            thawed.wait(LIMIT_S)

    def asks() -> None:
        try:
            frozen.wait(LIMIT_S)
            orders = (["status"], ["stop", "1"], ["drain"], ["restart"], ["stack", "1"], ["status", "--json"])
            found.extend(lanes(*arguments) for arguments in orders)
        finally:
            thawed.set()

    async with supervisor(tmp_path) as sup:
        thread = threading.Thread(target=asks)
        thread.start()
        run = sup.submit("session:a", blocks)
        await run.wait()
        assert (run.state, sup.state, sup.generation) == ("done", "running", 1)
    await to_thread.run_sync(thread.join, LIMIT_S)
    *orders, as_json = found
    for done in orders:
        assert (done.returncode, done.stderr) == (1, "")
        first, second, *_ = done.stdout.splitlines()
        assert first.startswith(f"process {os.getpid()} is FROZEN: its event loop has been blocked for ")
        assert first.endswith(f" by run {run.id} on lane session:a")
        assert second.startswith("  at ")
        assert "thawed.wait(LIMIT_S)" in done.stdout
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["frozen"]["run"] == f"run {run.id} on lane session:a"


def row(number: int, **changed: object) -> protocol.RunRow:
    fields: dict[str, object] = {
        "id": number,
        "lane": "main",
        "session": None,
        "state": "running",
        "waited_s": 1.0,
        "ran_s": 2.0,
        "deadline_in_s": 3.0,
        "ending": False,
        "waits_for": "",
        "holder": "",
        "holder_run": None,
        "parent": None,
        "reason": "",
        "at": "",
    }
    return protocol.RunRow(**{**fields, **changed})  # type: ignore[arg-type]  # the fields above


def picture(**changed: object) -> protocol.Picture:
    fields: dict[str, object] = {
        "pid": 7,
        "sessions": "/s",
        "state": "running",
        "generation": 1,
        "uptime_s": 3600.0,
        "healthy": True,
        "problems": [],
        "admission_slowed": "",
        "loop_lag": protocol.Lag(p50=0.0, p99=0.001, max=0.002),
        "counts": {"running": 1, "queued": 0},
        "parked": 0,
        "groups": [protocol.GroupRow(name="main", running=1, slots=32, queued=0, oldest_wait_s=0.0)],
        "lanes": [],
        "lanes_left_out": 0,
        "runs": [],
        "runs_left_out": 0,
        "abandoned": [],
        "abandoned_left_out": 0,
        "leases": [],
        "leases_left_out": 0,
        "orders": [],
    }
    return protocol.Picture(**{**fields, **changed})  # type: ignore[arg-type]  # the fields above


def test_problems_come_first_and_what_is_past_its_deadline_is_stuck():
    told = lines(
        picture(
            state="draining",
            problems=["too much"],
            admission_slowed="the loop is late",
            runs=[
                row(
                    1, ran_s=70.0, deadline_in_s=-2.0, ending=True, reason="timed out after 68 s", at="a.py:1 in f: g()"
                ),
                row(2, state="running", waits_for="run 9", holder="run 9 on lane sub"),
            ],
            runs_left_out=5,
        )
    )
    assert told == [
        "process 7, DRAINING, running for 1 h 0 min, generation 1, sessions /s",
        "PROBLEM: too much",
        "SLOWED: the loop is late",
        "1 running, 0 waiting; loop lag p99 1.0 ms, at most 2.0 ms",
        "slots: main 1/32",
        "",
        "STUCK",
        "  run 1  main  ran 1 min 10 s, 2.0 s past its deadline; asked to end: timed out after 68 s",
        "         at a.py:1 in f: g()",
        "",
        "RUNNING, the longest first",
        "  run 2  main  ran 2.0 s, 3.0 s left; waits for run 9 on lane sub",
        "",
        "… and 5 more runs",
    ]


def test_what_others_have_written_cannot_speak_to_the_terminal_and_long_lists_are_cut():
    told = lines(picture(runs=[row(number, reason="\x1b[2J\nx", lane="a\x07") for number in range(1, 40)]), most=2)
    assert all(line.isprintable() for line in told)
    assert told[-1] == "  … 37 more"


# Doing


async def test_stop_says_what_it_did_and_refuses_what_it_cannot(tmp_path):
    async with supervisor(tmp_path) as sup:
        run = sup.submit("session:a", waits)
        await eventually(lambda: run.state == "running")
        stack = await command("stack", "1")
        assert (stack.returncode, stack.stderr) == (0, "")
        assert "await anyio.sleep_forever()" in stack.stdout
        stopped = await command("stop", "1")
        assert (stopped.returncode, stopped.stdout) == (
            0,
            "run 1 on lane session:a, running, was asked to end: stopped by an operator\n",
        )
        assert (await run.wait()).reason == "stopped by an operator"
        again = await command("stop", "1")
        assert (again.returncode, again.stdout, again.stderr) == (
            1,
            "",
            "lanes: run 1 on lane session:a has ended already: cancelled, stopped by an operator\n",
        )
        unknown = await command("stack", "9")
        assert (unknown.returncode, unknown.stderr) == (1, "lanes: run: 9 is not known here; live runs: none\n")


async def test_restart_and_drain_wait_until_it_is_done_and_say_what_came_of_it(tmp_path):
    async with supervisor(tmp_path) as sup:
        _ = sup.submit("one", waits), sup.submit("one", waits)
        await eventually(lambda: sup.runs()[0].state == "running")
        restarted = await command("restart")
        assert (restarted.returncode, restarted.stderr) == (0, "")
        assert restarted.stdout.splitlines()[-1] == (
            f"restarted: generation 2 of process {os.getpid()}; 0 finished, 1 cancelled, 0 abandoned, "
            "1 kept in the queue"
        )
        await eventually(lambda: sup.runs()[0].state == "running")
        drained = await command("drain", "--timeout", "0")
        assert (drained.returncode, drained.stderr) == (0, "")
        assert drained.stdout.splitlines()[-1] == "drained: 0 finished, 1 cancelled, 0 abandoned, 0 not started"
        assert sup.state == "draining"


async def test_a_restart_or_drain_that_fails_says_so(tmp_path):
    async with supervisor(tmp_path) as sup:
        body = Shielded()
        sup.submit("one", body)
        await eventually(body.started.is_set)
        restarted = await command("restart")
        assert restarted.returncode == 1
        assert restarted.stderr.startswith("lanes: the restart failed, the process is running: AbandonedBodies: 1 ")
        drained = await command("drain", "--timeout", "0")
        assert (drained.returncode, drained.stderr) == (
            1,
            "lanes: 1 bodies ignored their cancellation, and still run: see lanes status\n",
        )
        body.release()
        await gone(sup)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["status"], "no process is found in"),
        (["top"], "no process is found in"),
        (["stop", "1"], "no process is found in"),
        (["stop", "x"], "Invalid value for 'RUN'"),
        (["stop", "1", "--reason", ""], "--reason: has 0 characters, which is not allowed; allowed: text of 1 to 1000"),
        (["drain", "--timeout", "nan"], "--timeout: nan is not allowed; allowed: seconds from 0 to 1e+09"),
        (["restart", "--socket", "/nowhere/s"], "'/nowhere/s' does not exist; allowed: the status socket of a live"),
        (["stack", "1", "--socket", "/etc/passwd"], "'/etc/passwd' is not listened at: its process is dead, or it is"),
        (["status", "--socket", "x" * 108], "has 108 bytes; allowed: at most 107 bytes"),
    ],
    ids=range(9),
)
def test_without_a_process_to_ask_it_is_one_line_and_exit_code_2(arguments, told):
    done = lanes(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert told in done.stderr


def test_a_process_that_is_stopped_is_said_not_to_answer(tmp_path):
    with (
        socket_path.listen(str(tmp_path / "s")),
        client.Client(str(tmp_path / "s"), within_s=0.05) as one,
        pytest.raises(client.NoAnswer, match=f"process {os.getpid()} does not answer within 0.05 s"),
    ):
        one.ask(protocol.Status())


# Watching


@contextlib.contextmanager
def on_a_terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], list[bytes], int]]:
    """The command on a terminal of its own: the process, what it has drawn, and where its keys are pressed."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [LANES, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
        start_new_session=True,
    )
    os.close(theirs)
    drawn: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # it has closed its end
            while data := os.read(ours, 65536):
                drawn.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield child, drawn, ours
    finally:
        child.kill()
        child.wait(LIMIT_S)
        reader.join(LIMIT_S)
        os.close(ours)


@pytest.mark.parametrize("end", ["q", "SIGINT", "SIGTERM"])
async def test_top_goes_on_while_the_process_goes_away_and_leaves_the_terminal_as_it_was(tmp_path, end):
    def watch() -> tuple[int, bytes]:
        with on_a_terminal("top") as (child, drawn, keys):
            eventually_sync(lambda: b"generation 1" in b"".join(drawn), within=LIMIT_S)
            anyio.from_thread.run(restart)
            eventually_sync(lambda: b"restarted: generation 1 became 2" in b"".join(drawn), within=LIMIT_S)
            anyio.from_thread.run_sync(leave.set)
            eventually_sync(lambda: b"has gone" in b"".join(drawn), within=LIMIT_S)
            if end == "q":
                os.write(keys, b"q")
            else:
                child.send_signal(getattr(signal, end))
            return child.wait(LIMIT_S), b"".join(drawn)

    leave, codes = anyio.Event(), []

    async def restart() -> None:
        _ = await sup.restart()

    async def watched() -> None:
        codes.append(await to_thread.run_sync(watch))

    async with anyio.create_task_group() as group, supervisor(tmp_path) as sup:
        _ = group.start_soon(watched)
        await leave.wait()
    ((code, drawn),) = codes
    assert code == 0
    assert drawn.count(b"\x1b[?1049h") == drawn.count(b"\x1b[?1049l") == 1
    assert b"Traceback" not in drawn
