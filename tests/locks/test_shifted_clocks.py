"""Processes in different time namespaces queue for one session in the order in which they really came."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from locks import process
from locks.engines.interface import Right
from locks.engines.kernel import KernelLock
from locks.process import Shifts
from tests.namespaces import with_clocks_ahead
from tests.peers import peer
from tests.poll import eventually_sync

pytestmark = pytest.mark.failure("Y7", "D1")


@pytest.mark.parametrize("ahead", [100_000, -1])
def test_a_process_with_shifted_clocks_gets_its_share_and_no_more(tmp_path, ahead):
    path, seconds = tmp_path / "session.jsonl", 3
    with ExitStack() as stack:
        contenders = [
            stack.enter_context(peer("apart", "contender", path, backend, 0, seconds, 0, *command))
            for backend, command in (("asyncio", ()), ("trio", ()), ("asyncio", with_clocks_ahead(ahead)))
        ]
        for one in contenders:
            eventually_sync(lambda: one.said("ready"), within=60)  # noqa: B023 -- awaited in this round
        for one in contenders:
            one.tell("go")
        for one in contenders:
            eventually_sync(lambda: [one.lines, one.ended()][1], within=60)  # noqa: B023 -- as above
        shares = [len(json.loads(one.lines[1])) for one in contenders]
    assert min(shares) > 20
    assert max(shares) / min(shares) <= 2  # of three that begin and end at slightly different instants


@pytest.mark.parametrize("ahead_s", [0, 100_000, -600])
def test_a_ticket_is_an_instant_of_the_machine_whatever_the_clock_here_says(monkeypatch, ahead_s):
    lock = KernelLock(-1, (0, 0), Right.TURN)
    monkeypatch.setattr(process, "_shifts", Shifts())
    elsewhere = [lock.ticket_of(at) for at in (1000.0, 1000.5)]
    monkeypatch.setattr(process, "_shifts", Shifts(monotonic=ahead_s * 10**9))
    assert [lock.ticket_of(at + ahead_s) for at in (1000.0, 1000.5)] == elsewhere
    assert elsewhere[0] < elsewhere[1]


def test_a_ticket_stays_in_the_range_of_its_right(monkeypatch):
    lock = KernelLock(-1, (0, 0), Right.TURN)
    monkeypatch.setattr(process, "_shifts", Shifts(monotonic=10**18))
    assert lock.ticket_of(1.0) == lock.ticket_of(0.0) == (1 << 62) + 1
    monkeypatch.setattr(process, "_shifts", Shifts(monotonic=-(10**19)))
    assert lock.ticket_of(1.0) == (1 << 62) + (1 << 61) - 2


def test_who_was_unshared_without_an_exec_is_still_where_it_was(monkeypatch):
    """The kernel shows the offsets of the children to come."""
    monkeypatch.setattr(process, "_shifts", None)
    monkeypatch.setattr(process, "_read", lambda path: b"monotonic 5 0\nboottime 5 0\n")
    monkeypatch.setattr(process, "_link", lambda path: path)
    assert process.shifts() == Shifts()
    monkeypatch.setattr(process, "_shifts", None)
    monkeypatch.setattr(process, "_link", lambda path: "time:[1]")
    assert process.shifts() == Shifts(5 * 10**9, 5 * 10**9)
