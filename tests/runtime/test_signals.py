"""Signals of a process: which are counted, which one asks for a restart, and whose handlers come back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import anyio
import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from runtime.process import signals as signals_of_a_process
from runtime.process.signals import SIGNALS, Signals
from tests.peers import peer
from tests.poll import eventually, eventually_sync

LIMIT_S = 60.0
ALL = (*SIGNALS, signal.SIGHUP, signal.SIGUSR1)
COUNTED = (*SIGNALS, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _as_they_were() -> Iterator[None]:
    """Handlers as in a terminal, also when the tests run under `nohup` or in the background."""
    before = [(number, signal.getsignal(number)) for number in ALL]
    for number in ALL:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before:
        signal.signal(number, handler)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in ALL]


def nobody(count: int) -> None:
    raise AssertionError("nothing was to be told")


def nothing() -> None:
    raise AssertionError("nothing was to be done")


# What counts


@pytest.mark.failure("C8")
async def test_a_hangup_counts_like_the_others():
    told: list[int] = []
    with Signals() as signals:
        signals.pass_to(told.append)
        signal.raise_signal(signal.SIGHUP)
        await eventually(lambda: told == [1], within=LIMIT_S)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: told == [1, 2], within=LIMIT_S)
    assert signals.received == [signal.SIGHUP, signal.SIGTERM]


@pytest.mark.parametrize("number", COUNTED, ids=lambda number: number.name)
def test_the_third_one_ends_the_process_with_its_number_whatever_the_others_were(number):
    left: list[int] = []
    with Signals(leave=left.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGUSR1)
        assert left == []
        signal.raise_signal(number)
    assert left == [128 + number]


@pytest.mark.failure("T8")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT], ids=["SIGHUP", "SIGINT"])
def test_what_a_terminal_sends_stays_ignored_where_it_is(number):
    signal.signal(number, signal.SIG_IGN)
    with Signals() as signals:
        signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    assert signals.received == []
    assert signal.getsignal(number) is signal.SIG_IGN


@pytest.mark.failure("T8")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_what_is_only_sent_on_purpose_is_heard_though_it_was_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with Signals():
        assert signal.getsignal(number) is not signal.SIG_IGN
    assert signal.getsignal(number) is signal.SIG_IGN


# What asks to reread a file


async def test_a_hangup_asks_to_reread_where_that_is_wanted_and_does_not_count():
    asked: list[object] = []
    with Signals(hangup_asks=True) as signals:
        signals.pass_to(nobody, restart=nothing, reread=lambda: asked.append(threading.current_thread()))
        signal.raise_signal(signal.SIGHUP)
        assert asked == []  # not inside the handler
        await eventually(lambda: asked == [threading.current_thread()], within=LIMIT_S)
    assert signals.received == []
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.failure("C8")
@pytest.mark.parametrize("had, has, counts", [(True, False, True), (True, True, False), (False, False, False)])
async def test_a_hangup_ends_a_process_whose_terminal_has_gone_all_the_same(monkeypatch, had, has, counts):
    told: list[object] = []
    monkeypatch.setattr(signals_of_a_process, "_has_terminal", lambda: had)
    with Signals(hangup_asks=True) as signals:
        monkeypatch.setattr(signals_of_a_process, "_has_terminal", lambda: has)
        signals.pass_to(told.append, reread=lambda: told.append("reread"))
        signal.raise_signal(signal.SIGHUP)
        await eventually(lambda: told == [1 if counts else "reread"], within=LIMIT_S)
    assert signals.received == [signal.SIGHUP] * counts


def test_a_hangup_that_is_ignored_stays_so_where_it_would_ask():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals(hangup_asks=True):
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_what_nothing_here_can_do_is_logged():
    with Signals(hangup_asks=True) as signals, capture_logs() as logs:
        signals.pass_to(nobody)
        signal.raise_signal(signal.SIGHUP)
        await eventually(lambda: logs, within=LIMIT_S)
    assert [(line["signal"], line["reason"]) for line in logs] == [("SIGHUP", "nothing here can be read again")]


# What asks for a restart


async def test_sigusr1_asks_for_a_restart_on_the_loop_and_does_not_count():
    asked: list[object] = []
    with Signals() as signals:
        signals.pass_to(nobody, restart=lambda: asked.append(threading.current_thread()))
        signal.raise_signal(signal.SIGUSR1)
        assert asked == []  # not inside the handler
        await eventually(lambda: asked, within=LIMIT_S)
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: len(asked) == 2, within=LIMIT_S)
    assert asked == [threading.current_thread()] * 2
    assert signals.received == []


async def test_several_before_the_loop_hears_of_them_ask_once():
    asked: list[str] = []
    with Signals() as signals:
        signals.pass_to(nobody, restart=lambda: asked.append("restart"))
        for _ in range(5):
            signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: asked, within=LIMIT_S)
        await anyio.wait_all_tasks_blocked()
    assert asked == ["restart"]


async def test_one_that_came_before_anybody_was_there_to_tell_is_told():
    asked: list[str] = []
    with Signals() as signals:
        signal.raise_signal(signal.SIGUSR1)
        signals.pass_to(nobody, restart=lambda: asked.append("restart"))
        assert asked == ["restart"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_process_that_was_told_to_stop_does_not_restart(when):
    told: list[int] = []
    with capture_logs() as lines, Signals() as signals:
        order = [signal.SIGTERM, signal.SIGUSR1]
        for number in order if when == "after" else reversed(order):
            signal.raise_signal(number)
        signals.pass_to(told.append, restart=lambda: nobody(0))
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: len(lines) == 2, within=LIMIT_S)
    assert told == [1]
    ignored = {"event": "signal_ignored", "log_level": "info", "signal": "SIGUSR1"}
    assert lines == [{**ignored, "reason": "the process was told to stop"}] * 2


async def test_where_nothing_can_be_restarted_sigusr1_is_ignored():
    with capture_logs() as lines, Signals() as signals:
        signals.pass_to(nobody)
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: lines, within=LIMIT_S)
    assert [(line["event"], line["reason"]) for line in lines] == [("signal_ignored", "nothing here can be restarted")]


# Who is told


async def test_who_tells_anew_is_told_what_comes_and_nothing_twice():
    first: list[int] = []
    second: list[int] = []
    with Signals() as signals:
        signals.pass_to(first.append)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: first, within=LIMIT_S)
        signals.pass_to(second.append)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: second, within=LIMIT_S)
    assert (first, second) == ([1], [2])


async def test_an_error_of_who_is_told_is_logged_and_harms_nothing():
    told: list[int] = []

    def fail(count: int) -> None:
        told.append(count)
        raise ValueError("planned")

    with capture_logs() as lines, Signals() as signals:
        signals.pass_to(fail)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: told == [1], within=LIMIT_S)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: told == [1, 2], within=LIMIT_S)
    assert [(line["event"], line["error"]) for line in lines] == [("signal_call_failed", "ValueError: planned")] * 2


async def test_when_the_block_was_left_nobody_is_told_any_more():
    with Signals() as signals:
        signals.pass_to(nobody, restart=lambda: nobody(0))
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
    with capture_logs() as lines:
        await anyio.wait_all_tasks_blocked()
    assert lines == []
    assert signals.received == [signal.SIGTERM]  # whoever left can look


@pytest.mark.parametrize(
    "send", [signal.raise_signal, lambda number: os.kill(os.getpid(), number)], ids=["raise", "kill"]
)
async def test_a_signal_that_comes_in_on_another_thread_is_told_on_the_loop(send):
    told: list[object] = []
    with Signals() as signals:
        signals.pass_to(lambda count: told.append(threading.current_thread()))
        await to_thread.run_sync(send, signal.SIGTERM)
        await eventually(lambda: told, within=LIMIT_S)
    assert told == [threading.current_thread()]


# Whose handlers


def test_all_handlers_of_before_come_back():
    before = handlers()
    with Signals():
        assert not set(handlers()) & set(before)
    assert handlers() == before


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_inside_a_loop_they_lie_over_those_of_the_loop_and_give_them_back(backend):
    before, told = handlers(), list[int]()

    async def main() -> None:
        of_the_loop = handlers()
        assert of_the_loop != before
        with Signals(required=True) as signals, anyio.fail_after(LIMIT_S):
            signals.pass_to(told.append)
            signal.raise_signal(signal.SIGINT)
            await eventually(lambda: told, within=LIMIT_S)
        assert handlers() == of_the_loop

    if backend == "asyncio":
        asyncio.run(main())
    else:
        anyio.run(main, backend=backend)
    assert told == [1]
    assert handlers() == before


@pytest.mark.parametrize("number", ALL, ids=lambda number: number.name)
def test_a_block_that_is_left_before_one_inside_it_keeps_no_signal(number):
    heard: list[int] = []
    signal.signal(number, lambda number, frame: heard.append(number))
    outer, inner = Signals(), Signals()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    signal.raise_signal(number)
    assert heard == []  # the inner one has it
    inner.__exit__(None, None, None)
    signal.raise_signal(number)
    assert heard == [number]
    assert outer.received == []


@pytest.mark.parametrize("required", [False, True], ids=["lenient", "required"])
def test_on_another_thread_no_handler_can_be_installed(required):
    said: list[object] = []

    def enter() -> None:
        before = handlers()
        try:
            with Signals(required=required):
                said.append(handlers() == before)
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=enter, name="worker 7")
    thread.start()
    thread.join(LIMIT_S)
    wrong = "signals can be received on the main thread only; this is thread 'worker 7'"
    assert said == [wrong if required else True]


# A process of its own


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_signals_during_start_up_are_told_when_the_loop_is_there(backend):
    with peer("signalled", "early", backend) as other:
        eventually_sync(lambda: other.said("entered"), within=LIMIT_S)
        other.signal(signal.SIGHUP)
        other.tell("go on")
        eventually_sync(lambda: other.said("told 1"), within=LIMIT_S)
        other.signal(signal.SIGTERM)
        eventually_sync(other.ended, within=LIMIT_S)
        assert (other.exit_code, other.lines) == (0, ["entered", "told 1", "told 2", "left"])


@pytest.mark.parametrize("backend, number", [("asyncio", signal.SIGTERM), ("trio", signal.SIGHUP)])
def test_the_third_one_ends_a_process_whose_loop_is_frozen(backend, number):
    with peer("signalled", "frozen", backend) as other:
        eventually_sync(lambda: other.said("frozen"), within=LIMIT_S)

        def has_ended() -> bool:
            other.signal(number)  # those that come close together are one
            return other.ended()

        eventually_sync(has_ended, within=LIMIT_S)
        assert (other.exit_code, other.lines) == (128 + number, ["frozen"])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_forked_child_ends_when_it_is_told_to(backend):
    with peer("signalled", "fork", backend) as other:
        eventually_sync(other.ended, within=LIMIT_S)
        assert (other.exit_code, other.lines) == (0, [f"child ended by {signal.SIGTERM}", "0 received", "left"])


def test_where_there_is_neither_sighup_nor_sigusr1_the_others_are_counted():
    code = (
        "import signal; del signal.SIGHUP, signal.SIGUSR1\n"
        "from runtime.process.signals import Signals\n"
        "with Signals() as signals: signal.raise_signal(signal.SIGTERM)\n"
        "print(*signals.received)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert done.stdout == f"{signal.SIGTERM}\n"
