"""A program that a run starts ends with the call, its whole group with it, and its output is bounded."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after, to_thread
from anyio.lowlevel import checkpoint

from lanes.body import processes
from lanes.body.processes import KEPT_BY_ERRORS, ProcessFailed, ProcessResult
from locks.process import is_alive
from runtime.testing.suspensions import sweep
from tests import leaks
from tests.poll import eventually

PRELUDE = """
import os, signal, subprocess, sys, time

def say(what):
    with open(sys.argv[1], "a") as said:
        said.write(f"{what}\\n")

def child(code, **options):
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", code], **options)

FOR_EVER = "import time; time.sleep(600)"
"""


class Calls:
    """`run_process` as a run of this lane calls it, and what its programs say by the way."""

    def __init__(self, directory: Path) -> None:
        self.grace = 30.0
        self.killers: set[Callable[[], None]] = set()
        self._said = directory / "said"
        self._said.touch()

    def program(self, code):
        """A Python program: `say(what)` is heard by `said`, `child(code)` starts a process in its group."""
        return [sys.executable, "-I", "-S", "-c", PRELUDE + textwrap.dedent(code), str(self._said)]

    async def run(self, command, **options):
        if isinstance(command, str):
            command = self.program(command)
        return await self.call(command, **options)

    async def call(self, command, **options):
        return await processes.run_process(command, grace_left=lambda: self.grace, killers=self.killers, **options)

    def said(self):
        """What the programs have said, line by line."""
        return self._said.read_text().splitlines()

    async def hear(self, count=1):
        """Wait until that many lines were said, and return them."""
        return await eventually(lambda: lines if len(lines := self.said()) >= count else None, within=60)


@pytest.fixture
def calls(tmp_path):
    return Calls(tmp_path)


def is_reaped(pid):
    """Whether nobody bears the number: not even one who has died."""
    return not os.path.exists(f"/proc/{pid}")


async def gone(*pids):
    """Wait until these have died; whoever adopts a killed grandchild may take its time to reap it."""
    await eventually(lambda: not any(is_alive(int(pid)) for pid in pids))


# What it returns


async def test_the_result_has_the_exit_code_and_both_outputs(calls):
    command = calls.program("print('out'); print('err', file=sys.stderr)")
    assert await calls.run(command) == ProcessResult(tuple(command), 0, b"out\n", b"err\n", 0, 0)
    assert calls.killers == set()


async def test_paths_are_taken_as_program_argument_and_directory(calls, tmp_path):
    code = "import os, sys; print(os.path.samefile('.', sys.argv[2]), sys.argv[1])"
    result = await calls.run([Path(sys.executable), "-c", code, tmp_path / "a", tmp_path], cwd=tmp_path)
    assert result.stdout.decode().split() == ["True", str(tmp_path / "a")]
    assert all(type(word) is str for word in result.command)


async def test_the_environment_is_what_it_is_given_or_that_of_this_process(calls, monkeypatch):
    monkeypatch.setenv("INHERITED", "yes")
    code = "print(os.environ.get('INHERITED'), os.environ.get('GIVEN'))"
    assert (await calls.run(code)).stdout == b"yes None\n"
    assert (await calls.run(code, env={"GIVEN": "ü"})).stdout == "None ü\n".encode()


async def test_input_and_output_larger_than_a_pipe_pass_at_the_same_time(calls):
    data = os.urandom(600_000)
    result = await calls.run("sys.stdout.buffer.write(sys.stdin.buffer.read())", input=data)
    assert result.stdout == data


@pytest.mark.parametrize("given", [None, b""])
async def test_without_input_there_is_nothing_to_read(calls, given):
    assert (await calls.run("print(sys.stdin.buffer.read())", input=given)).stdout == b"b''\n"


async def test_input_that_is_not_read_is_dropped(calls):
    result = await calls.run("os.close(0); print('done')", input=b"x" * 1_000_000)
    assert result.stdout == b"done\n"


async def test_it_leads_a_session_and_a_group_of_its_own(calls):
    result = await calls.run("print(os.getpid() == os.getpgid(0) == os.getsid(0))")
    assert result.stdout == b"True\n"


@pytest.mark.failure("T8")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_begins_with_no_signal_ignored_or_blocked_whatever_this_process_was_started_with(backend):
    code = f"""
import anyio, signal
from lanes.body.processes import run_process

async def main():
    command = ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]
    result = await run_process(command, grace_left=lambda: 1.0, killers=set())
    print(result.stdout.decode())

for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGCHLD", "SIGUSR1", "SIGTSTP", "SIGTTOU", "SIGRTMAX"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR2])
anyio.run(main, backend={backend!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    blocked, ignored = done.stdout.split()[1::2]
    of_the_library = 0b11 << 31  # signals 32 and 33: no program can name them, so none can unblock or restore them
    assert [int(mask, 16) & ~of_the_library for mask in (blocked, ignored)] == [0, 0]


@pytest.mark.failure("T8")
async def test_a_program_that_cannot_be_started_is_refused_alike_where_signals_are_ignored(calls):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(ProcessFailed, match="could not be started: No such file or directory: 'no/such/program'"):
            await calls.run(["no/such/program"])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert calls.killers == set()


async def test_it_works_where_there_are_no_pidfds(calls, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert (await calls.run("print('out')")).stdout == b"out\n"


@pytest.mark.failure("F7")
async def test_tool_calls_that_hang_in_every_thread_of_the_pool_do_not_stop_it(calls):
    pool = to_thread.current_default_thread_limiter()
    hung = [object() for _ in range(int(pool.total_tokens))]
    for one in hung:
        pool.acquire_on_behalf_of_nowait(one)
    try:
        with fail_after(60):
            assert (await calls.run("print('out')")).stdout == b"out\n"
    finally:
        for one in hung:
            pool.release_on_behalf_of(one)


# How it fails


async def test_another_exit_code_than_0_is_raised_with_the_end_of_what_it_wrote(calls):
    with pytest.raises(
        ProcessFailed, match=r"python.* ended with exit code 3; its last words: 'no such branch'$"
    ) as caught:
        await calls.run("print('out'); print('no such branch', file=sys.stderr); sys.exit(3)")
    failed = caught.value
    assert (failed.returncode, failed.stdout, failed.stderr) == (3, b"out\n", b"no such branch\n")
    assert failed.command[0] == sys.executable
    assert calls.killers == set()


async def test_a_signal_that_ended_it_is_named(calls):
    with pytest.raises(ProcessFailed, match=r"was ended by SIGUSR1; it wrote no error$") as caught:
        await calls.run("os.kill(os.getpid(), signal.SIGUSR1)")
    assert caught.value.returncode == -signal.SIGUSR1


async def test_unchecked_every_exit_code_is_a_result(calls):
    assert (await calls.run("sys.exit(3)", check=False)).returncode == 3
    assert (await calls.run("os.kill(os.getpid(), 9)", check=False)).returncode == -9


@pytest.mark.failure("D4")
async def test_a_program_that_cannot_be_started_is_no_os_error(calls, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    for command, cwd, why in [
        (
            ["no-such-program", "x"],
            None,
            r"\['no-such-program', 'x'\] could not be started: No such file or directory: 'no-such",
        ),
        ([str(plain)], None, "could not be started: Permission denied"),
        ([sys.executable], tmp_path / "nowhere", "could not be started: No such file or directory: .*nowhere"),
        ([sys.executable, "x" * 10_000_000], None, "could not be started: Argument list too long"),
    ]:
        with pytest.raises(ProcessFailed, match=why) as caught:
            await calls.run(command, cwd=cwd)
        assert not isinstance(caught.value, OSError)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.errno == caught.value.__cause__.errno
        assert (caught.value.returncode, caught.value.stdout, caught.value.command) == (None, b"", tuple(command))
        assert len(str(caught.value)) < 700
        assert calls.killers == set()


async def test_an_error_survives_pickling(calls):
    with pytest.raises(ProcessFailed) as caught:
        await calls.run("print('out'); sys.exit(3)")
    after = pickle.loads(pickle.dumps(caught.value))
    assert (type(after), str(after), vars(after)) == (ProcessFailed, str(caught.value), vars(caught.value))
    assert after.stdout == b"out\n"


async def test_an_error_keeps_only_the_end_because_outcomes_keep_errors(calls):
    with pytest.raises(ProcessFailed) as caught:
        await calls.run("print('x' * 200_000 + 'end'); sys.exit(1)")
    assert len(caught.value.stdout) == KEPT_BY_ERRORS
    assert caught.value.stdout.endswith(b"xend\n")


async def test_a_message_is_one_line_without_control_characters(calls):
    with pytest.raises(ProcessFailed) as caught:
        await calls.run(r"sys.stderr.buffer.write(b'first\n\x1b[2Jsecond\xff\0'); sys.exit(1)")
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("its last words: 'first\\n\\x1b[2Jsecond\ufffd\\x00'")


# Its output is bounded


async def test_of_fifty_megabytes_the_end_is_kept_in_bounded_memory(calls):
    code = """
        for _ in range(800):
            sys.stdout.buffer.write(b"x" * 62_500)
        sys.stdout.buffer.write(b"the end")
    """
    tracemalloc.start()
    try:
        with fail_after(60):
            result = await calls.run(code, output_limit=100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.stdout == b"x" * 99_993 + b"the end"
    assert result.stdout_dropped == 50_000_007 - 100_000
    assert peak < 5_000_000


async def test_output_up_to_the_limit_is_whole(calls):
    assert (await calls.run("print('12345')", output_limit=6)).stdout_dropped == 0
    result = await calls.run("print('12345')", output_limit=5)
    assert (result.stdout, result.stdout_dropped) == (b"2345\n", 1)


async def test_with_a_limit_of_0_output_is_only_counted(calls):
    result = await calls.run("print('out'); print('error', file=sys.stderr)", output_limit=0)
    assert (result.stdout, result.stdout_dropped, result.stderr, result.stderr_dropped) == (b"", 4, b"", 6)


async def test_what_the_pipes_hold_when_it_ends_is_read(calls, monkeypatch):
    async def reads_nothing(fd, output):
        await anyio.sleep_forever()

    monkeypatch.setattr(processes, "_read", reads_nothing)  # as if the program were quicker than the event loop
    result = await calls.run("os.write(1, b'x' * 60_000); os.write(2, b'err')")
    assert (result.stdout, result.stderr) == (b"x" * 60_000, b"err")


# Its group ends with it


async def test_what_is_left_of_its_group_is_killed_when_it_ends(calls):
    with fail_after(60):
        result = await calls.run("say(child(FOR_EVER).pid); print('out', flush=True)")
    assert result.stdout == b"out\n"  # from a pipe that the one left behind held open
    await gone(*calls.said())


async def test_a_daemon_that_keeps_the_pipe_open_delays_nothing(calls):
    with fail_after(60):
        result = await calls.run("say(child(FOR_EVER, start_new_session=True).pid); os.write(1, b'x' * 60_000)")
    assert result.stdout == b"x" * 60_000
    (daemon,) = map(int, calls.said())
    assert is_alive(daemon)  # what has left the group is not the run's any more
    os.kill(daemon, signal.SIGKILL)
    await gone(daemon)


async def test_a_daemon_that_writes_for_ever_delays_nothing(calls):
    floods = "import os, signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\nwhile True: os.write(1, b'x' * 4096)"
    with fail_after(60):
        result = await calls.run(f"say(child({floods!r}, start_new_session=True).pid)", output_limit=1000)
    assert set(result.stdout) <= set(b"x")
    await gone(*calls.said())  # its pipe was closed, so nobody reads it any more


async def test_no_signal_is_sent_unless_the_number_is_still_the_leaders(calls, monkeypatch):
    sent = []
    killpg = os.killpg

    def watched(number, signal_number):
        sent.append((signal_number, not is_reaped(number)))
        killpg(number, signal_number)

    monkeypatch.setattr(os, "killpg", watched)
    killers = []

    async def call():
        await calls.run("say(child(FOR_EVER).pid); say(os.getpid())")

    async with create_task_group() as group:
        group.start_soon(call)
        killers += await eventually(lambda: list(calls.killers))
    assert sent == [(signal.SIGKILL, True)]
    *_, leader = map(int, calls.said())
    assert is_reaped(leader)
    for killer in killers:
        killer()  # by now the number may be a stranger's
    assert len(sent) == 1


async def test_a_host_that_ignores_its_children_has_no_strangers_signalled(calls, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *args: sent.append(args))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them all by itself
    try:
        with fail_after(60):
            assert (await calls.run("print('out')")).stdout == b"out\n"
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert sent == []


# Cancelled


async def by_scope(call, ready):
    async with create_task_group() as group:
        with CancelScope() as scope:
            group.start_soon(_then, ready, scope.cancel)
            await call()


async def by_parent(call, ready):
    async with create_task_group() as group:
        group.start_soon(call)
        await ready()
        group.cancel_scope.cancel()


async def by_deadline(call, ready):
    with CancelScope() as scope:
        async with create_task_group() as group:
            group.start_soon(call)
            await ready()
            scope.deadline = anyio.current_time() + 0.01


async def by_a_siblings_error(call, ready):
    with pytest.RaisesGroup(ZeroDivisionError):
        async with create_task_group() as group:
            group.start_soon(call)
            await ready()
            raise ZeroDivisionError


async def _then(ready, act):
    await ready()
    act()


WAYS = [by_scope, by_parent, by_deadline, by_a_siblings_error]
ORDERLY = """
    say(child(FOR_EVER).pid)
    def end(*_):
        os.write(1, b"x" * 500_000)  # more than a pipe holds
        say("ended well")
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    say(os.getpid())
    time.sleep(600)
"""


@pytest.mark.suite("C3")
@pytest.mark.parametrize("cancel", WAYS, ids=lambda way: way.__name__)
async def test_cancelled_it_is_asked_to_end_and_nothing_is_left(calls, cancel):
    before, returned = leaks.Look(), []

    async def call():
        returned.append(await calls.run(ORDERLY))

    with fail_after(60):
        await cancel(call, lambda: calls.hear(2))
    assert returned == []
    grandchild, leader, last_words = calls.said()
    assert last_words == "ended well"
    assert is_reaped(leader)
    assert leaks.children() <= before.children
    assert calls.killers == set()
    await gone(grandchild)


@pytest.mark.suite("C3")
@pytest.mark.backends("asyncio", "uvloop")
async def test_native_cancellations_however_many_leave_it_its_grace(calls, tmp_path):
    code = """
        def end(*_):
            say("asked to end")
            while not os.path.exists(sys.argv[1] + ".go"):
                time.sleep(0.002)
            say("ended well")
            os._exit(0)
        signal.signal(signal.SIGTERM, end)
        say(os.getpid())
        time.sleep(600)
    """
    task = asyncio.ensure_future(calls.run(code))
    for lines in (1, 2, 2):
        await calls.hear(lines)
        task.cancel()
        await checkpoint()
    (tmp_path / "said.go").touch()
    with pytest.raises(asyncio.CancelledError), fail_after(60):
        await task
    leader, *said = calls.said()
    assert said == ["asked to end", "ended well"]
    assert is_reaped(leader)
    assert calls.killers == set()


@pytest.mark.failure("A4")
async def test_who_ignores_the_request_is_killed_at_the_grace(calls):
    calls.grace = 0.3
    code = """
        child("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)",
              stdout=subprocess.PIPE).stdout.readline()
        signal.signal(signal.SIGTERM, lambda *_: say("asked to end"))
        say(os.getpid())
        while True:
            time.sleep(600)
    """
    with fail_after(60):
        await by_scope(lambda: calls.run(code), calls.hear)
    leader, asked = calls.said()
    assert asked == "asked to end"
    assert is_reaped(leader)


async def test_without_any_grace_left_it_is_killed_at_once(calls):
    calls.grace = 0.0
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say(os.getpid()); time.sleep(600)"
    with fail_after(60):
        await by_scope(lambda: calls.run(code), calls.hear)
    assert is_reaped(calls.said()[0])


async def test_cancelled_beforehand_it_is_never_started(calls, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started"))
    with CancelScope() as scope:
        scope.cancel()
        await calls.run("say('started')")
    assert scope.cancelled_caught
    assert calls.killers == set()


async def test_cancelled_while_it_is_started_it_is_ended(calls, held_start):
    with CancelScope() as scope:
        async with create_task_group() as group:
            group.start_soon(calls.run, "time.sleep(600)")
            await eventually(held_start.reached.is_set)
            scope.cancel()
            held_start.go.set()
    assert is_reaped(held_start.pid)


@pytest.mark.suite("C1")
@pytest.mark.backends("asyncio", "trio")
async def test_cancelled_at_any_suspension_nothing_is_left(calls):
    before = leaks.children()

    async def nothing_left(k):
        assert leaks.children() <= before
        assert calls.killers == set()

    await sweep(lambda: calls.run("print('out')"), nothing_left)


# Abandoned


async def test_a_killer_ends_it_under_a_shield(calls):
    with move_on_after(20), CancelScope(shield=True):
        async with create_task_group() as group:
            group.start_soon(_kill, calls)
            with pytest.raises(ProcessFailed, match="was ended by SIGKILL"):
                await calls.run("say(child(FOR_EVER).pid); say(os.getpid()); time.sleep(600)")
    grandchild, leader = calls.said()
    assert is_reaped(leader)
    assert calls.killers == set()
    await gone(grandchild)


async def _kill(calls):
    await calls.hear(2)
    (killer,) = calls.killers
    killer()
    killer()


async def test_a_killer_called_while_it_is_started_ends_it_too(calls, held_start):
    async with create_task_group() as group:
        group.start_soon(_killed, calls)
        await eventually(held_start.reached.is_set)
        (killer,) = calls.killers
        killer()
        held_start.go.set()
    assert is_reaped(held_start.pid)


async def _killed(calls):
    with pytest.raises(ProcessFailed, match="was ended by SIGKILL"):
        await calls.run("time.sleep(600)")


class HeldStart:
    """Starts processes, but keeps their starter waiting until `go` is set."""

    def __init__(self, popen) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.pid = 0
        self._popen = popen

    def __call__(self, *args, **options):
        popen = self._popen(*args, **options)
        self.pid = popen.pid
        self.reached.set()
        assert self.go.wait(120)
        return popen


@pytest.fixture
def held_start(monkeypatch):
    held = HeldStart(subprocess.Popen)
    monkeypatch.setattr(subprocess, "Popen", held)
    yield held
    held.go.set()


# Bad values

GOOD = [sys.executable, "-c", "pass"]
REFUSED: list[tuple[str, str, list[Any]]] = [
    ("command", "command: ", [[], (), "ls -l", b"ls", None, 7, {"ls"}, iter(["ls"])]),
    ("command", r"command\[1\]: ", [["ls", word] for word in (1, None, b"x", "a\0b", "\ud800", Path("a\0b"))]),
    ("command", r"command\[0\]: ", [[""], [None], ["\0"]]),
    ("input", "input: a ", ["text", 7, ["x"]]),
    ("cwd", "cwd: ", [b"/", 3, "a\0b"]),
    ("env", "env: a ", [[("A", "b")], "A=b"]),
    ("env", "env: the name ", [{name: "x"} for name in (1, "", "A=B", "A\0", b"A")]),
    ("env", r"env\['A'\]: that ", [{"A": value} for value in (1, None, b"x", "a\0b", "\ud800")]),
    ("output_limit", "output_limit: ", [-1, 1.5, "7", None, True]),
    ("check", "check: ", [0, "no", None]),
]
BAD = [(field, value, message) for field, message, values in REFUSED for value in values]


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("field, value, message", BAD, ids=[f"{field} {value!a:.24}" for field, value, _ in BAD])
async def test_a_bad_value_is_refused_before_anything_starts(calls, monkeypatch, field, value, message):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("started"))
    with pytest.raises(ValueError, match=rf"^{message}.* is not allowed; allowed: .+"):
        await calls.call(**{"command": GOOD, field: value})
    assert calls.killers == set()


@pytest.mark.backends("asyncio")
async def test_a_refusal_does_not_show_the_values_of_the_environment(calls):
    with pytest.raises(ValueError, match=r"env\['TOKEN'\]") as caught:
        await calls.run(GOOD, env={"TOKEN": "secret\0"})
    assert "secret" not in str(caught.value)
