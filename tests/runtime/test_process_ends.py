"""Whole processes: they end without a word, start while others hold, are stopped and go on. No lock suffers from it."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from anyio import fail_after

from locks import LockRegistry
from locks.doctor.inspection import inspect
from runtime import Supervisor
from tests.children.prompt import GRACE, RUNS, TIMEOUT
from tests.command import lanes, records, started
from tests.lives import Life
from tests.peers import peer
from tests.poll import eventually, eventually_sync
from tests.sessions_on_disk import everything
from tests.supervised import path_of

UNHANDLED = [signal.SIGHUP, signal.SIGABRT, signal.SIGSEGV, signal.SIGKILL, "exit", "abort", "crash"]


async def answers(ctx):
    await ctx.session.append({"text": "answer"})


@pytest.mark.failure("C1", "C8")
@pytest.mark.parametrize("how", UNHANDLED)
@pytest.mark.backends("asyncio", "trio")
async def test_what_a_gateway_had_that_ends_without_a_word_is_free_at_once(tmp_path, how, anyio_backend_name):
    async with Supervisor(tmp_path, registry=LockRegistry(sidecar=True)) as sup:
        a, b = path_of(sup, "a"), path_of(sup, "b")
        with peer("keeper", tmp_path, anyio_backend_name) as keeper, fail_after(60):
            await eventually(lambda: keeper.said("kept"), within=60)
            assert {f"{path.name}{end}" for path in (a, b) for end in (".lock", ".turn")} <= set(os.listdir(tmp_path))
            waiting = sup.submit("session:a", answers)
            await eventually(lambda: sup.statistics().leases.competing == 1)
            if isinstance(how, str):
                keeper.tell(how)
            else:
                keeper.signal(how)
            await waiting.result()
            await eventually(keeper.ended)
        other = LockRegistry()
        async with other.turn(b, wait_timeout=0), other.lease(b, wait_timeout=0) as lease:
            await lease.append({"text": "answer"})
    for path in (a, b):
        seen = inspect(str(path))
        assert seen is not None
        assert (seen.findings, seen.records) == ([], 2)
    assert sorted(os.listdir(tmp_path)) == sorted([a.name, b.name])


@pytest.mark.failure("B7")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_starts_kills_and_the_doctor_beside_a_gateway_disturb_nothing_that_it_has(tmp_path, backend):
    directory = tmp_path / "sessions"

    def of_keeper():
        return {name: seen for name, seen in everything(directory).items() if name.startswith(("a-", "b-"))}

    def entered(life):
        """The sessions that it has conducted, and since when."""
        said = [line.split(" ") for line in life.hear().decode().splitlines()]
        return {words[1][0]: int(words[2]) for words in reversed(said) if words[0] == "entered"}

    with peer("keeper", directory, backend) as keeper:
        eventually_sync(lambda: keeper.said("kept"), within=60)
        before = of_keeper()
        assert len(before) == 6
        lives = [Life(number, directory) for number in range(2)]
        try:
            for life in lives:
                eventually_sync(life.works, within=30)
                assert lanes("doctor", directory, "--fix").returncode == 0
                if life is lives[0]:
                    life.kill()
                assert of_keeper() == before
            keeper.tell("append")
            eventually_sync(lambda: keeper.said("appended"))
            assert set(entered(lives[0])) == set(entered(lives[1])) == {"c"}
            keeper.tell("leave")
            eventually_sync(lambda: {"a", "b"} <= set(entered(lives[1])), within=60)
            (left,) = [int(line.split(" ")[1]) for line in keeper.lines if line.startswith("left ")]
            assert min(entered(lives[1])[key] for key in "ab") > left
        finally:
            for life in lives:
                life.close()
    assert sum("by" in record for record in records(directory)) == 4


@pytest.mark.failure("C5")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("when", ["begun", "asked"])
def test_runs_that_end_when_asked_to_are_not_abandoned_because_the_process_stood_still(tmp_path, backend, when):
    with peer("prompt", tmp_path, backend) as process:
        eventually_sync(lambda: process.said(when), within=60)
        stop_for(process.signal, TIMEOUT + GRACE + 0.1)
        eventually_sync(process.ended, within=60)
        assert json.loads(process.lines[-1]) == ["timed_out"] * RUNS


@pytest.mark.failure("C5", "H3")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_runs_have_their_last_words_after_the_process_stood_still_past_their_grace(tmp_path, backend):
    with peer("prompt", tmp_path, backend) as process:
        eventually_sync(lambda: process.said("begun"), within=60)
        stop_for(process.signal, TIMEOUT + GRACE + 1.3)  # late by more than a second: what is less is a busy machine
        eventually_sync(process.ended, within=60)
        assert json.loads(process.lines[-1]) == ["timed_out"] * RUNS
    assert [record["text"] for record in records(tmp_path)] == ["last words"] * RUNS


@pytest.mark.failure("C5")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loaded_process_that_was_stopped_past_its_deadlines_has_a_green_verdict(tmp_path, backend):
    hung = [{"lane": f"session:{n}", "text": "x", "at": n * 0.1, "behave": "hang"} for n in range(8)]
    quick = [{"lane": f"session:{n % 12}", "text": "x", "at": n * 0.02, "think": 0.02} for n in range(60)]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in hung + quick))
    limits = '[[lanes]]\npattern = "session:*"\ntimeout = 0.5\ngrace = 0.3\n'
    (tmp_path / "scenario.toml").write_text(f'traffic = "traffic.jsonl"\n{limits}')
    log, directory = tmp_path / "log", tmp_path / "sessions"
    told = ("run", tmp_path / "scenario.toml", "--sessions", directory, "--backend", backend, "--json")
    with started(*told, log=log) as process:
        for count in (3, 20):
            eventually_sync(lambda: lines(directory) > count, within=60)  # noqa: B023 -- awaited in this round
            stop_for(process.send_signal, 1.0)
        out, _ = process.communicate(timeout=60)
    result = json.loads(out)
    assert (process.returncode, result["verdict"]) == (0, "green"), log.read_text()
    assert result["timed_out"] >= len(hung)
    assert "run_abandoned" not in log.read_text()


def lines(directory):
    """How many there are; some may be in the middle of being written."""
    return sum(path.read_bytes().count(b"\n") for path in directory.glob("*.jsonl"))


def stop_for(send, seconds):
    """Stop a process, and have it go on. For how long it stands still is the fault, not a wait for something."""
    send(signal.SIGSTOP)
    time.sleep(seconds)
    send(signal.SIGCONT)
