"""The handlers of SIGINT and SIGTERM."""

from __future__ import annotations

import signal

import anyio
import pytest

from runtime.process.signals import SIGNALS, Signals


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Signals():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


async def test_signals_from_before_the_loop_and_later_ones_are_told_in_order():
    told: list[int] = []
    second = anyio.Event()

    def tell(count: int) -> None:
        told.append(count)
        if count == 2:
            second.set()

    with Signals(leave=told.append) as signals:
        signal.raise_signal(signal.SIGTERM)
        signals.pass_to(tell)
        assert told == [1]
        signal.raise_signal(signal.SIGINT)
        with anyio.fail_after(60):
            await second.wait()
    assert told == [1, 2]
    assert signals.received == [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_third_leaves_without_the_loop(number):
    left: list[int] = []
    with Signals(leave=left.append):
        for _ in range(3):
            signal.raise_signal(number)
    assert left == [128 + number]
