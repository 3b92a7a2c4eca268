"""`ctx.run_process`: a program ends with the run that started it, however that run ends, and none starts after it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import LaneSpec, ProcessFailed, RetrySpec, RunState
from locks import RunEnded
from locks.process import is_alive
from runtime import Supervisor
from tests.poll import eventually
from tests.supervised import assert_empty, gone, texts

LANES = [
    LaneSpec("session:*", timeout=30.0, grace=5.0),
    LaneSpec("short:*", timeout=30.0, grace=0.2),
    LaneSpec("again", grace=5.0, retry=RetrySpec(2, wait=0.01)),
]


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path / "sessions", lanes=LANES) as sup:
        with anyio.fail_after(30):
            yield sup
        assert_empty(sup)


class Program:
    """A Python program that says on a file what `say(what)` is called with."""

    def __init__(self, directory: Path) -> None:
        self._said = directory / "said"
        self._said.touch()

    def __call__(self, code: str) -> list[str]:
        prelude = "import os, signal, sys, time\ndef say(what): open(sys.argv[1], 'a').write(f'{what}\\n')\n"
        return [sys.executable, "-I", "-S", "-c", prelude + textwrap.dedent(code), str(self._said)]

    async def hear(self, count=1):
        return await eventually(lambda: lines if len(lines := self._said.read_text().split()) >= count else None, 20)


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def waits(program):
    return program("say(os.getpid()); time.sleep(600)")


def stubborn(program):
    return program("signal.signal(signal.SIGTERM, signal.SIG_IGN); say(os.getpid()); time.sleep(600)")


async def runs(ctx, command):
    return await ctx.run_process(command)


async def dead(pid):
    await eventually(lambda: not is_alive(int(pid)), within=60)


# In a healthy run


async def test_a_run_gets_what_its_program_wrote(sup):
    result = await sup.submit("session:a", runs, [sys.executable, "-c", "print('out')"]).result()
    assert (result.returncode, result.stdout) == (0, b"out\n")


async def test_a_program_that_fails_fails_its_run_with_its_last_words(sup, program):
    run = sup.submit("session:a", runs, program("sys.exit('no such branch')"))
    with pytest.raises(ProcessFailed, match="exit code 1; its last words: 'no such branch'"):
        await run.result()
    assert run.state is RunState.FAILED


async def test_a_bad_argument_is_refused_and_starts_nothing(sup):
    with pytest.raises(ValueError, match="command: 'ls -l' is not allowed; allowed: the program and its arguments"):
        await sup.submit("session:a", runs, "ls -l").result()


# However the run ends


@pytest.mark.failure("A4")
async def test_a_cancelled_run_asks_its_program_to_end_and_has_its_last_words(sup, program):
    async def body(ctx):
        try:
            await ctx.run_process(
                program("""
                def end(*_): say("asked"); sys.exit(0)
                signal.signal(signal.SIGTERM, end)
                say(os.getpid())
                time.sleep(600)
            """)
            )
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await ctx.session.append({"text": "stopped"})
            raise

    run = sup.submit("session:a", body)
    await program.hear()
    run.cancel("enough")
    assert (await run.wait()).reason == "enough"
    pid, asked = await program.hear(2)
    assert (asked, is_alive(int(pid)), texts(sup, "a")) == ("asked", False, ["stopped"])


@pytest.mark.failure("A3")
@pytest.mark.parametrize("command", [waits, stubborn])
async def test_a_program_of_a_run_that_timed_out_is_gone_within_the_grace(sup, program, command):
    run = sup.submit("short:a", runs, command(program), session="a", timeout=1.0)
    (pid,) = await program.hear()
    assert (await run.wait()).state in (RunState.TIMED_OUT, RunState.ABANDONED)
    await dead(pid)
    await gone(sup)


@pytest.mark.failure("F7")
async def test_a_program_under_a_shield_is_killed_when_its_run_is_abandoned(sup, program):
    failures = []

    async def body(ctx):
        with anyio.CancelScope(shield=True):
            try:
                await ctx.run_process(stubborn(program))
            except ProcessFailed as error:
                failures.append(error.returncode)

    run = sup.submit("short:a", body)
    (pid,) = await program.hear()
    run.cancel()
    assert (await run.wait()).state is RunState.ABANDONED
    await gone(sup)
    assert (failures, is_alive(int(pid))) == ([-signal.SIGKILL], False)


async def test_a_body_under_a_shield_starts_no_program_after_it_was_abandoned(sup, program):
    refused, begun, go_on = [], anyio.Event(), anyio.Event()

    async def body(ctx):
        begun.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()
            try:
                await ctx.run_process(program("say('started')"))
            except RunEnded as error:
                refused.append(str(error))

    run = sup.submit("short:a", body)
    await begun.wait()
    run.cancel()
    assert (await run.wait()).state is RunState.ABANDONED
    go_on.set()
    await gone(sup)
    (message,) = refused
    assert message.startswith("run 1 on lane short:a (pid ")
    assert message.endswith(" has ended: nothing started")


async def test_a_clean_up_may_run_a_program_within_its_grace(sup, program):
    async def body(ctx):
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                await ctx.run_process(program("say('cleaned')"))

    started = anyio.Event()
    run = sup.submit("session:a", body)
    await started.wait()
    run.cancel()
    assert (await run.wait()).state is RunState.CANCELLED
    assert await program.hear() == ["cleaned"]


@pytest.mark.failure("A7")
@pytest.mark.parametrize("ends", ["returns", "raises"])
async def test_a_program_in_a_task_that_outlives_its_run_ends_with_the_run(sup, program, ends):
    failures = []

    async def in_the_background(ctx):
        try:
            await ctx.run_process(stubborn(program))
        except ProcessFailed as error:
            failures.append(error.returncode)

    async def body(ctx):
        group.start_soon(in_the_background, ctx)
        await program.hear()
        if ends == "raises":
            raise LookupError

    async with anyio.create_task_group() as group:
        await sup.submit("session:a", body).wait()
    assert failures == [-signal.SIGKILL]
    (pid,) = await program.hear()
    assert not is_alive(int(pid))


async def test_a_program_of_a_failed_attempt_is_gone_before_the_next_one(sup, program):
    async def in_the_background(ctx):
        with contextlib.suppress(ProcessFailed):
            await ctx.run_process(stubborn(program))
        ended.set()

    async def body(ctx):
        if ctx.run.attempt == 1:
            group.start_soon(in_the_background, ctx)
            await program.hear()
            raise ConnectionError
        await ended.wait()
        return "second"

    ended = anyio.Event()
    async with anyio.create_task_group() as group:
        assert await sup.submit("again", body).result() == "second"
    (pid,) = await program.hear()
    assert not is_alive(int(pid))


@pytest.mark.parametrize("state", ["done", "failed"])
async def test_a_left_over_task_of_a_run_starts_no_program(sup, program, monkeypatch, state):
    contexts = []

    async def body(ctx):
        contexts.append(ctx)
        if state == "failed":
            raise LookupError

    assert (await sup.submit("session:a", body).wait()).state == state
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started"))
    with pytest.raises(RunEnded, match="has ended: nothing started"):
        await contexts[0].run_process(["true"])


async def test_a_stop_ends_programs_too(tmp_path, program):
    sup = Supervisor(tmp_path / "sessions", lanes=LANES)
    await sup.start()
    run = sup.submit("session:a", runs, waits(program))
    (pid,) = await program.hear()
    await sup.stop(drain_timeout=0.0)
    assert (run.state, is_alive(int(pid))) == (RunState.CANCELLED, False)


async def test_a_superseded_run_leaves_no_program(sup, program):
    async def handler(ctx, messages):
        if messages[0].body == "old":
            await ctx.run_process(waits(program))
        return messages[0].body

    lanes = [LaneSpec("session:*", handler=handler, when_busy="interrupt", grace=5.0)]
    async with Supervisor(sup.layout.root, lanes=lanes) as other:
        old = other.post("session:a", "old")
        (pid,) = await program.hear()
        assert await other.post("session:a", "new").result() == "new"
        assert (old.state, is_alive(int(pid))) == (RunState.SUPERSEDED, False)
