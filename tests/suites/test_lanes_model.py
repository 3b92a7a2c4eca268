"""Suite H2: nothing tells the lanes from `lanes_model`, whatever is asked of them. `lanes_walks` says what is compared.

Everything is predicted to the instant: who is refused and with which error, who starts and ends when and how, in which
order. A walk ends early, and counts as far as it went, where nobody promises what comes: two things are due at one
instant, or a run is cancelled while it waits to get its slot again.

Not asked here: restarts (draining and reopening is), `idle_timeout`, waiting for other runs than one's own children,
files and other processes.

    LANES_LONG=1 .venv/bin/pytest -n 4 -rP --suite H2 -k tells_the_lanes -o faulthandler_timeout=0

takes some 235,000 steps instead of 12,000, and prints the counts.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lanes.core import busy, execution, history
from lanes.queues import groups, lane, turns
from tests.lanes_walks import STEPS, Differs, Walk, play, shrunk

pytestmark = pytest.mark.suite("H2")

BACKENDS = ("asyncio", "trio")
WALKS = 26
"""Of each part, on each event loop."""
PARTS = 20 if os.environ.get("LANES_LONG") else 1
SEED = int(os.environ.get("LANES_SEED", "1"))

SEEN = (
    *("run", "LaneFull", "LaneBusy", "Draining", "DedupeConflict"),
    *("done", "failed", "timed_out", "cancelled", "superseded", "abandoned", "dropped", "retries"),
)
"""What senders are told, and what becomes of runs; each must come up."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_walk_tells_the_lanes_from_the_model(backend, part, tmp_path):
    taken, seen = Counter[str](), Counter[str]()
    for seed in range(SEED + part * WALKS, SEED + (part + 1) * WALKS):
        walk = Walk(seed)
        try:
            played = play(walk, backend, tmp_path)
        except Exception:
            steps, error = shrunk(walk, backend, tmp_path)
            told = "\n".join(map(str, (*walk.groups, *walk.lanes, *steps)))
            pytest.fail(f"seed {seed} on {backend}, {len(steps)} steps: {type(error).__name__}: {error}\n{told}")
        taken += played.taken
        seen += played.seen
    told = f"\n{backend}: {taken.total()} steps in {WALKS} walks: {dict(taken)}; {dict(seen)}"
    print(told)  # noqa: T201 -- a figure
    assert taken.total() >= 0.85 * WALKS * STEPS, "too many walks ended early"
    assert all(seen[name] for name in SEEN), f"some of {SEEN} never came: {seen}"


# Defects that it must see


def older_interrupts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that wait under `interrupt` or `replace` are superseded by none."""
    monkeypatch.setattr(busy.Busy, "outdated", lambda self, request, policy: [])


def key_of_what_failed_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated message gets the run that came to nothing."""
    monkeypatch.setattr(history, "_stands", lambda run: True)


def inbox_is_left_in_reverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a body left unread is answered in the wrong order."""
    unread = execution.Execution.unread
    monkeypatch.setattr(execution.Execution, "unread", lambda self: unread(self)[::-1])


def urgent_work_starves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long quiet work has waited, it gets no share."""
    monkeypatch.setattr(groups, "HANDICAP_S", dict.fromkeys(groups.HANDICAP_S, 1e9))


def slot_is_lent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on after it has waited for a child takes a slot that is not free."""

    def take_again(self: groups.Group[execution.Execution], one: execution.Execution) -> None:
        self.take(one)

    monkeypatch.setattr(groups.Group, "take_again", take_again)


def joined_messages_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a queue counts runs, not messages."""
    monkeypatch.setattr(lane.Lane, "waiting", property(lambda self: len(self.queued)))


def next_attempt_goes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is tried again loses its place in its session."""

    def replace(
        self: turns.Turns[execution.Execution], file: str, old: execution.Execution, new: execution.Execution
    ) -> None:
        order = self._by_file[file].order
        del order[old]
        order[new] = None

    monkeypatch.setattr(turns.Turns, "replace", replace)


def quiet_is_not_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that joins one starts no new quiet."""
    join = execution.Execution.join

    def join_without(self: execution.Execution, messages: Any, quiet_s: float | None) -> None:
        join(self, messages, None)

    monkeypatch.setattr(execution.Execution, "join", join_without)


DEFECTS = (
    older_interrupts_stay,
    key_of_what_failed_is_kept,
    inbox_is_left_in_reverse,
    urgent_work_starves_the_rest,
    slot_is_lent_twice,
    joined_messages_do_not_count,
    next_attempt_goes_last,
    quiet_is_not_renewed,
)


def first_that_fails(backend: str, root: Path) -> Walk | None:
    """The first walk that fails, of those that the test takes."""
    for seed in range(1, 26):
        walk = Walk(seed)
        try:
            play(walk, backend, root)
        except Exception:
            return walk
    return None


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_seen(defect, monkeypatch, tmp_path, _phases):
    defect(monkeypatch)
    assert first_that_fails("asyncio", tmp_path) is not None
    _phases.complaints.clear()  # the walks have seen it by themselves


def test_a_walk_that_fails_is_shrunk_to_a_few_steps(monkeypatch, tmp_path, _phases):
    older_interrupts_stay(monkeypatch)
    walk = first_that_fails("asyncio", tmp_path)
    assert walk is not None
    steps, error = shrunk(walk, "asyncio", tmp_path)
    assert isinstance(error, Differs) and 2 <= len(steps) <= 8
    _phases.complaints.clear()
