"""Alarms of the system's clock: they ring on a thread, whoever sets them, and wherever that is interrupted."""

from __future__ import annotations

import math
import threading
import time
from types import SimpleNamespace

import pytest

from locks import _clock


@pytest.mark.failure("Y5", "Y6")
def test_a_finalizer_that_the_collector_calls_on_the_ringing_thread_may_set_an_alarm(monkeypatch):
    clock, rung, once = _clock.SystemClock(), threading.Event(), list[bool]()

    def ring(now):
        rung.set()
        return math.inf

    late, other = clock.alarm(ring), clock.alarm(lambda now: math.inf)

    def monotonic():
        """What the thread calls while it looks at its alarms: here as if a finalizer ran."""
        if threading.current_thread().name == _clock.STEWARD and not once:
            once.append(True)
            late.ring_by(0.0)
        return time.monotonic()

    monkeypatch.setattr(_clock, "time", SimpleNamespace(monotonic=monotonic))
    other.ring_by(0.0)
    assert rung.wait(120) and once


def test_an_alarm_that_is_set_earlier_while_the_thread_sleeps_rings_in_time():
    clock, rung = _clock.SystemClock(), threading.Event()

    def ring(now):
        rung.set()
        return math.inf

    alarm = clock.alarm(ring)
    alarm.ring_by(time.monotonic() + 1000.0)
    assert not rung.is_set()
    alarm.ring_by(time.monotonic())
    assert rung.wait(120)
