"""The status socket: what it answers, to whom, under load, while the loop is frozen, and what it makes of garbage."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from lanes import GroupSpec, LaneSpec
from runtime import Supervisor
from runtime.status import connection, protocol, server, socket_path
from runtime.status.server import StatusServer
from runtime.status.socket_path import Peer, is_allowed
from tests import ROOT, blocking
from tests.poll import eventually, eventually_sync
from tests.supervised import Shielded, gone

pytestmark = pytest.mark.backends("asyncio", "trio")
LANES = [LaneSpec("session:*", grace=0.1), LaneSpec("one", grace=0.1), LaneSpec("main", capacity=4, grace=0.1)]
LIMIT_S = 30.0


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path / "sessions", lanes=LANES, drain_timeout=0.0, status_socket=tmp_path / "s") as sup:
        yield sup


class Line:
    """A client that trusts nothing of ours: a socket, and what has come in on it."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> dict | None:
        """The next line; `None` when it has hung up."""
        with contextlib.suppress(ConnectionResetError):
            line = self.file.readline()
            return json.loads(line) if line else None
        return None

    def ask(self, what: str, **fields: object) -> dict | None:
        self.send(json.dumps({"ask": what, **fields}).encode() + b"\n")
        return self.answer()


async def ask(path: Path, what: str, **fields: object) -> dict:
    """One question from a thread, as a command asks it."""

    def asks() -> dict | None:
        with Line(path) as line:
            return line.ask(what, **fields)

    answer = await to_thread.run_sync(asks)
    assert answer is not None
    assert len(answer) == 1
    return answer


async def waits(ctx):
    await anyio.sleep_forever()


async def ended(sup: Supervisor) -> None:
    """Wait until nothing runs or waits any more: a test leaves nothing to its fixture."""
    sup.cancel()
    await eventually(lambda: not sup.runs(), within=LIMIT_S)


async def order_over(path: Path, number: int) -> dict:
    """What came of a drain or a restart."""
    with anyio.fail_after(LIMIT_S):
        while True:
            orders = (await ask(path, "status"))["status"]["orders"]
            if found := [one for one in orders if one["id"] == number and one["over"]]:
                return found[0]


# What it answers


async def test_it_says_who_is_there(sup, tmp_path):
    pong = (await ask(tmp_path / "s", "ping"))["pong"]
    assert (pong["pid"], pong["sessions"]) == (os.getpid(), str(tmp_path / "sessions"))


async def test_a_status_says_what_runs_and_what_waits_for_whom(sup, tmp_path):
    first = sup.submit("session:a", waits)
    second = sup.submit("session:a", waits)
    other = sup.submit("main", waits, session="a")
    child = sup.submit("one", waits)
    full = sup.submit("one", waits)
    await eventually(lambda: child.state == "running")
    picture = (await ask(tmp_path / "s", "status"))["status"]
    assert (picture["state"], picture["generation"], picture["healthy"]) == ("running", 1, True)
    assert (picture["counts"]["running"], picture["counts"]["queued"]) == (2, 3)
    rows = {row["id"]: row for row in picture["runs"]}
    assert list(rows) == [first.id, child.id, second.id, other.id, full.id]
    assert rows[first.id]["at"].endswith("in waits: await anyio.sleep_forever()")
    assert rows[second.id]["waits_for"] == rows[other.id]["waits_for"] == "the turn of session a"
    assert rows[second.id]["holder"] == f"run {first.id} on lane session:a"
    assert rows[full.id]["waits_for"] == "a place on lane one"
    assert rows[full.id]["holder_run"] == child.id
    assert 0 < rows[first.id]["deadline_in_s"] < 301
    assert [lease["right"] for lease in picture["leases"]] == ["turn"]
    await ended(sup)


async def test_a_status_names_the_slot_and_the_run_that_somebody_waits_for(tmp_path):
    async def parent(ctx):
        await ctx.submit("side", waits).result()

    lanes = [LaneSpec("side", group="side"), LaneSpec("other", group="side")]
    groups = [GroupSpec("side", slots=1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups, drain_timeout=0.0, status_socket=tmp_path / "s") as sup:
        holder = sup.submit("other", waits)
        above = sup.submit("main", parent)
        await eventually(lambda: len(sup.runs()) == 3)
        rows = {row["id"]: row for row in (await ask(tmp_path / "s", "status"))["status"]["runs"]}
        child = rows.keys() - {holder.id, above.id}
        assert {rows[above.id]["holder_run"]} == child
        (below,) = (rows[one] for one in child)
        assert (below["waits_for"], below["holder_run"]) == ("a slot of group side", holder.id)
        assert below["parent"] == above.id
        await ended(sup)


async def test_an_abandoned_body_is_shown_with_the_line_at_which_it_stands(sup, tmp_path):
    body = Shielded()
    run = sup.submit("one", body, timeout=0.1)
    await run.wait()
    (row,) = (await ask(tmp_path / "s", "status"))["status"]["abandoned"]
    assert row["id"] == run.id
    assert "in __call__: await self._released.wait()" in row["at"]
    assert "_released.wait()" in row["stack"]
    body.release()
    await gone(sup)


async def test_a_status_is_bounded_and_says_what_it_left_out(tmp_path, monkeypatch):
    for name in ("MOST_RUNS", "MOST_LANES", "MOST_LEASES"):
        monkeypatch.setattr(protocol, name, 3)
    async with Supervisor(tmp_path, drain_timeout=0.0, status_socket=tmp_path / "s") as sup:
        runs = [sup.submit(f"session:{number}", waits) for number in range(10)]
        await eventually(lambda: all(run.state == "running" for run in runs))
        picture = (await ask(tmp_path / "s", "status"))["status"]
        assert [row["id"] for row in picture["runs"]] == [1, 2, 3]
        assert (picture["runs_left_out"], len(picture["lanes"]), len(picture["leases"])) == (7, 3, 3)
        assert picture["lanes_left_out"] > 0
        assert picture["leases_left_out"] == 7
        await ended(sup)


async def test_text_that_is_no_utf8_can_be_asked_about(sup, tmp_path):
    run = sup.submit("one", waits)
    assert (await ask(tmp_path / "s", "stop", run=run.id, reason="\\\u00fc"))["stopped"]["asked"]
    other = sup.submit("one", waits)
    other.cancel("a lone surrogate: \udcff")
    await eventually(lambda: other.outcome is not None)
    assert "\\udcff" in (await ask(tmp_path / "s", "stop", run=other.id))["error"]["message"]
    await ended(sup)


# What it does


async def test_a_run_is_stopped_and_its_sender_told_why(sup, tmp_path):
    run = sup.submit("session:a", waits)
    await eventually(lambda: run.state == "running")
    with capture_logs() as logs:
        stopped = (await ask(tmp_path / "s", "stop", run=run.id, reason="enough"))["stopped"]
    assert stopped == {"run": run.id, "lane": "session:a", "state": "running", "asked": True, "reason": "enough"}
    assert (await run.wait()).reason == "enough"
    (told,) = [line for line in logs if line["event"] == "operator_asked"]
    assert (told["what"], told["run"]) == ("stop", run.id)
    assert str(os.getpid()) in told["by"]


async def test_a_run_that_is_not_known_or_over_is_refused_with_the_reason(sup, tmp_path):
    run = sup.submit("session:a", waits)
    assert (await ask(tmp_path / "s", "stop", run=99))["error"] == {
        "kind": "unknown_run",
        "message": f"run: 99 is not known here; live runs: {run.id}",
        "field": "run",
    }
    run.cancel("by hand")
    await run.wait()
    error = (await ask(tmp_path / "s", "stop", run=run.id))["error"]
    assert (error["kind"], error["message"]) == (
        "run_ended",
        f"run {run.id} on lane session:a has ended already: cancelled, by hand",
    )
    assert (await ask(tmp_path / "s", "stack", run=99))["error"]["kind"] == "unknown_run"


async def test_a_stack_names_the_line_at_which_a_run_waits(sup, tmp_path):
    run = sup.submit("session:a", waits)
    await eventually(lambda: run.state == "running")
    assert "await anyio.sleep_forever()" in (await ask(tmp_path / "s", "stack", run=run.id))["stack"]["text"]
    await ended(sup)


async def test_a_drain_is_answered_at_once_and_says_later_what_came_of_it(sup, tmp_path):
    run, queued = sup.submit("one", waits), sup.submit("one", waits)
    await eventually(lambda: run.state == "running")
    started = (await ask(tmp_path / "s", "drain", timeout=0))["started"]
    order = await order_over(tmp_path / "s", started["order"])
    assert (order["what"], order["cancelled"], order["unstarted"], order["error"]) == ("drain", 1, 1, "")
    assert sup.state == "draining"
    assert queued.state == "queued"
    await ended(sup)


async def test_a_restart_is_answered_at_once_and_says_later_what_came_of_it(tmp_path):
    path = tmp_path / "s"
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=0.0, status_socket=path) as sup:
        run, queued = sup.submit("one", waits), sup.submit("one", waits)
        await eventually(lambda: run.state == "running")
        started = (await ask(path, "restart"))["started"]
        order = await order_over(path, started["order"])
        assert (order["what"], order["cancelled"], order["unstarted"], order["error"]) == ("restart", 1, 1, "")
        assert (sup.state, sup.generation) == ("running", 2)
        await eventually(lambda: queued.state == "running")


async def test_a_restart_that_fails_says_so(sup, tmp_path):
    body = Shielded()
    run = sup.submit("one", body)
    await eventually(body.started.is_set)
    started = (await ask(tmp_path / "s", "restart"))["started"]
    order = await order_over(tmp_path / "s", started["order"])
    assert order["error"].startswith(f"AbandonedBodies: 1 abandoned: <Run {run.id} on lane one")
    assert (sup.state, sup.generation) == ("running", 1)
    body.release()
    await gone(sup)


# Under load, and frozen


@pytest.mark.failure("E15")
async def test_when_every_lane_is_full_it_answers_without_waiting_for_any_run(sup, tmp_path):
    runs = [sup.submit("main", waits) for _ in range(12)] + [sup.submit(f"session:{n}", waits) for n in range(40)]
    runs += [sup.submit(lane, waits) for lane in ("cron", "heartbeat", "subagent", "one") for _ in range(20)]
    await eventually(lambda: sup.statistics().groups["background"].running == 8)
    picture = (await ask(tmp_path / "s", "status"))["status"]
    assert len(picture["runs"]) == len(runs)
    assert (await ask(tmp_path / "s", "stop", run=runs[-1].id))["stopped"]["state"] == "queued"
    assert all(run.outcome is None for run in runs[:-1])
    await ended(sup)


@contextlib.contextmanager
def beside(call: Callable[[], None]) -> Iterator[None]:
    """A thread that the event loop knows nothing of."""
    thread = threading.Thread(target=call)
    thread.start()
    yield
    with blocking.permitted("it has told the loop to go on, and ends"):
        thread.join(LIMIT_S)


async def freeze(until: threading.Event) -> None:
    with blocking.permitted("a body that does not let go of the loop"):
        until.wait(LIMIT_S)


@pytest.mark.failure("F6")
@pytest.mark.parametrize("watched", [True, False], ids=["watchdog", "alone"])
async def test_a_frozen_loop_is_answered_for_with_the_line_that_blocks_it(sup, tmp_path, watched, monkeypatch):
    if not watched:
        monkeypatch.setattr(sup.watchdog, "blocked", lambda: None)
    frozen, thawed = threading.Event(), threading.Event()
    answers: list[dict | None] = []

    async def blocks(ctx):
        frozen.set()
        await freeze(thawed)

    def asks() -> None:
        try:
            frozen.wait(LIMIT_S)
            with Line(tmp_path / "s") as line:
                answers.extend([line.ask("status"), line.ask("stop", run=bystander.id), line.ask("ping")])
        finally:
            thawed.set()

    bystander = sup.submit("main", waits)
    await eventually(lambda: bystander.state == "running")
    with beside(asks):
        run = sup.submit("session:a", blocks)
        await run.wait()
    status, stop, ping = answers
    assert status is not None and stop is not None and ping is not None
    for answer in (status, stop):
        assert answer["frozen"]["run"] == f"run {run.id} on lane session:a"
        assert "until.wait(LIMIT_S)" in answer["frozen"]["stack"]
    assert ping["pong"]["pid"] == os.getpid()
    # What it was told is not done is not done behind its back.
    assert (await ask(tmp_path / "s", "status"))["status"]["counts"]["running"] == 1
    assert bystander.outcome is None
    await ended(sup)


async def test_one_question_posts_one_call_however_many_ask_while_the_loop_is_frozen(sup, tmp_path, monkeypatch):
    (one,) = [each for each in server._open if each.path == str(tmp_path / "s")]
    posted: list[object] = []
    post = one._post

    def counted(call: Callable[[], object]) -> None:
        posted.append(call)
        post(call)

    monkeypatch.setattr(one, "_post", counted)
    frozen, thawed = threading.Event(), threading.Event()

    def asks() -> None:
        try:
            frozen.wait(LIMIT_S)
            for _ in range(3):
                with Line(tmp_path / "s") as line:
                    answer = line.ask("status")
                    assert answer is not None
                    assert "frozen" in answer
        finally:
            thawed.set()

    async def blocks(ctx):
        frozen.set()
        await freeze(thawed)

    with beside(asks):
        await sup.submit("session:a", blocks).wait()
    assert len(posted) == 1
    assert (await ask(tmp_path / "s", "status"))["status"]["state"] == "running"


# Garbage


@pytest.mark.parametrize(
    "data, told",
    [
        (b"\n", "no JSON"),
        (b"status\n", "no JSON"),
        (b"\xff\xfe\x00\n", "no JSON"),
        (b'{"ask":"\xff"}\n', "no JSON"),
        (b'{"ask":"status"\n', "no JSON"),
        (b"[" * 60_000 + b"\n", "Expected object, got array"),
        (b'{"ask":"status","x":' + b"[" * 60_000 + b"\n", "x: is not known"),
        (b"{}\n", "ask: is missing"),
        (b'{"ask":"reboot"}\n', "ask: Invalid value 'reboot'; allowed: ping, status, stop, drain, restart, stack"),
        (b'{"ask":"stop"}\n', "run: is missing"),
        (b'{"ask":"stop","run":"1"}\n', "run: Expected int, got str"),
        (b'{"ask":"stop","run":0}\n', "run: Expected int >= 1"),
        (b'{"ask":"stop","run":1e999}\n', "run: Number out of range"),
        (b'{"ask":"stop","run":' + b"9" * 5000 + b"}\n", "run: "),
        (b'{"ask":"stop","run":1,"reason":""}\n', "reason: Expected str of length >= 1"),
        (b'{"ask":"drain","timeout":-1}\n', "timeout: Expected float >= 0"),
        (b'{"ask":"drain","timeout":NaN}\n', "no JSON"),
    ],
    ids=range(17),
)
async def test_garbage_is_told_what_is_wrong_and_the_connection_goes_on(sup, tmp_path, data, told):
    def talk() -> tuple[dict | None, dict | None]:
        with Line(tmp_path / "s") as line:
            line.send(data)
            return line.answer(), line.ask("ping")

    answer, after = await to_thread.run_sync(talk)
    assert answer is not None and after is not None
    assert answer["error"]["kind"] == "bad_question"
    assert told in answer["error"]["message"]
    assert "pong" in after


async def test_a_line_without_end_is_cut_off(sup, tmp_path):
    def talk() -> tuple[dict | None, dict | None]:
        with Line(tmp_path / "s") as line:
            with contextlib.suppress(ConnectionError):
                for _ in range(64):
                    line.send(b"x" * 64 * 1024)
            return line.answer(), line.answer()

    answer, after = await to_thread.run_sync(talk)
    assert answer is not None
    assert answer["error"]["message"] == "the line is longer than 65536 bytes"
    assert after is None


async def test_who_asks_nothing_or_reads_nothing_is_hung_up_on_and_holds_nobody_up(sup, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    for number in range(30):  # an answer that no socket takes at once
        sup.submit(f"session:{number}{'x' * 900}", waits)
    (one,) = [each for each in server._open if each.path == str(tmp_path / "s")]

    def talk() -> None:
        with Line(tmp_path / "s") as silent, Line(tmp_path / "s") as half, Line(tmp_path / "s") as deaf:
            half.send(b'{"ask":"sta')
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            deaf.send(b'{"ask":"status"}\n' * 500)
            with Line(tmp_path / "s") as other:
                answer = other.ask("status")
                assert answer is not None
                assert "status" in answer
            assert silent.answer() is None
            assert half.answer() is None
            eventually_sync(lambda: not one._clients, within=LIMIT_S)

    await to_thread.run_sync(talk)
    await ended(sup)


async def test_a_client_that_goes_away_in_the_middle_harms_nobody(sup, tmp_path):
    (one,) = [each for each in server._open if each.path == str(tmp_path / "s")]

    def talk() -> None:
        for _ in range(20):
            with Line(tmp_path / "s") as line:
                line.send(b'{"ask":"status"}\n' * 3)

    await to_thread.run_sync(talk)
    await eventually(lambda: not one._clients, within=LIMIT_S)
    assert "status" in await ask(tmp_path / "s", "status")


async def test_the_last_line_may_lack_its_end(sup, tmp_path):
    def talk() -> list[dict | None]:
        with Line(tmp_path / "s") as line:
            line.send(b'{"ask":"ping"}\n{"ask":"status"}')
            line.socket.shutdown(socket.SHUT_WR)
            return [line.answer(), line.answer(), line.answer()]

    ping, status, end = await to_thread.run_sync(talk)
    assert ping is not None and status is not None
    assert ("pong" in ping, "status" in status, end) == (True, True, None)


async def test_of_a_hundred_connections_those_beyond_the_bound_are_told_so(sup, tmp_path):
    def talk() -> list[dict | None]:
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(Line(tmp_path / "s")) for _ in range(100)]
            answers = []
            for line in lines:
                with contextlib.suppress(BrokenPipeError):
                    line.send(b'{"ask":"ping"}\n')
                answers.append(line.answer())
            return answers

    answers = await to_thread.run_sync(talk)
    kinds = [next(iter(answer)) for answer in answers if answer is not None]
    assert kinds == ["pong"] * server.MOST_CONNECTIONS + ["error"] * (100 - server.MOST_CONNECTIONS)
    assert answers[-1] is not None
    assert answers[-1]["error"]["message"] == "50 connections are open, which is the most; try again later"
    assert "pong" in await ask(tmp_path / "s", "ping")


# Who may ask


async def test_the_socket_is_its_owners_only(sup, tmp_path):
    assert stat.S_IMODE((tmp_path / "s").lstat().st_mode) == 0o600


def test_our_own_user_and_root_may_ask_and_nobody_else():
    me = os.geteuid()
    assert [is_allowed(Peer(1, uid)) for uid in (me, 0, me + 1)] == [True, True, False]


STRANGER = """
import contextlib, os, socket, sys
if sys.argv[1] == "real":
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
one = socket.socket(socket.AF_UNIX)
one.settimeout(30)
one.connect("s")
with contextlib.suppress(BrokenPipeError):
    one.sendall(b'{"ask":"status"}\\n')
print(one.makefile().readline(), end="")
"""


@pytest.mark.parametrize("real", [True, False], ids=["real", "as if"])
async def test_a_foreign_user_is_refused_though_the_mode_of_the_file_lets_him_in(sup, tmp_path, real, monkeypatch):
    # Without root nobody can be somebody else: then both ways show the same, that the kernel's word is gone by.
    is_root = real and os.geteuid() == 0
    if not is_root:
        monkeypatch.setattr(socket_path, "peer_of", lambda _: Peer(1, os.geteuid() + 1))
    tmp_path.chmod(0o711)
    (tmp_path / "s").chmod(0o666)

    def stranger() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-ISc", STRANGER, "real" if is_root else "as if"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    with capture_logs() as logs:
        done = await to_thread.run_sync(stranger)
        await eventually(lambda: [line for line in logs if line["event"] == "status_refused"])
    assert json.loads(done.stdout)["error"]["message"] == f"only user {os.geteuid()} and root may ask"


# Life


async def test_closed_it_leaves_no_socket_and_no_thread(tmp_path):
    async with Supervisor(tmp_path, status_socket=tmp_path / "s"):
        line = await to_thread.run_sync(Line, tmp_path / "s")
        assert [thread.name for thread in threading.enumerate()].count("lanes-status") == 1
    with line:
        assert await to_thread.run_sync(line.answer) is None
    assert not (tmp_path / "s").exists()
    assert "lanes-status" not in [thread.name for thread in threading.enumerate()]


async def test_closing_leaves_alone_what_has_taken_its_path(tmp_path):
    async with Supervisor(tmp_path, status_socket=tmp_path / "s"):
        (tmp_path / "s").unlink()
        (tmp_path / "s").write_text("mine")
    assert (tmp_path / "s").read_text() == "mine"


async def test_it_is_opened_once_and_closing_it_again_is_harmless(sup, tmp_path):
    one = StatusServer(tmp_path / "t", sup)
    one.open()
    with pytest.raises(RuntimeError, match="opened once"):
        one.open()
    one.close()
    one.close()
    assert not (tmp_path / "t").exists()


async def test_without_a_thread_to_be_had_nothing_is_left_open(sup, tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("can't start new thread")

    one = StatusServer(tmp_path / "t", sup)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(RuntimeError, match="new thread"):
            one.open()
    assert not (tmp_path / "t").exists()
    one.open()
    one.close()


async def test_it_goes_on_when_descriptors_are_back(sup, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_ACCEPT_AGAIN_S", 0.05)
    accept, failures = socket.socket.accept, iter(range(3))

    def scarce(listener: socket.socket) -> object:
        if next(failures, None) is not None:
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    with capture_logs() as logs:
        assert "pong" in await ask(tmp_path / "s", "ping")
        await eventually(lambda: [line for line in logs if line["event"] == "status_failed"])
    assert next(failures, None) is None


async def test_a_forked_child_keeps_nothing_of_it_open(sup, tmp_path):
    # The child is made and seen through in another process, which has one thread and no test around it.
    script = ROOT / "tests" / "children" / "status_fork.py"
    done = await to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, str(script), str(tmp_path / "f")],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=ROOT,
        )
    )
    assert done.stdout.splitlines()[-1:] == ["refused"], done.stderr
