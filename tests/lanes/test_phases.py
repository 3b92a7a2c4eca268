"""The phases of an execution: which may follow which, and that a wrong move is refused where it is made."""

from __future__ import annotations

from contextvars import Context

import pytest

from lanes import LaneSpec
from lanes.checks import Priority
from lanes.core.execution import Execution
from lanes.core.phase import MOVES, OVER, QUEUED, UNDERWAY, Phase
from lanes.queues.lane import Lane
from lanes.run import Run
from locks import Fence
from runtime import Supervisor
from tests.phases import ALSO, FACTS
from tests.supervised import attempt_of


def in_phase(phase: Phase) -> Execution:
    """An execution of no scheduler, in some phase."""
    one = Execution(
        None,  # type: ignore[arg-type]  # never asked
        Run(1, "work", None, False, None, 0.0),
        Lane("work", LaneSpec("work")),
        body=print,
        args=(),
        messages=None,
        context=Context(),
        fence=Fence(lane="work", run_id=1),
        session_file=None,
        file=None,
        timeout=1.0,
        urgency=Priority.NORMAL,
    )
    one.phase = phase
    return one


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("narrow")]) as sup:
        yield sup


def test_a_move_that_is_not_in_the_table_is_an_error_that_names_both_phases(_phases):
    for phase in Phase:
        for to in Phase:
            one = in_phase(phase)
            if to in MOVES[phase]:
                one.move(to)
                assert one.phase is to
            else:
                with pytest.raises(AssertionError, match=rf"cannot move from {phase.name} to {to.name}"):
                    one.move(to)
                assert one.phase is phase
    assert len(_phases.complaints) == sum(len(set(Phase) - MOVES[phase]) for phase in Phase)
    _phases.complaints.clear()  # as they should be


def test_every_phase_can_be_reached_and_ends():
    reached = {Phase.NEW}
    for _ in Phase:
        reached |= {to for phase in reached for to in MOVES[phase]}
    assert reached == set(Phase)
    assert {phase for phase in Phase if not MOVES[phase]} == {Phase.REPLACED, Phase.ENDED}
    assert all(Phase.ENDED in MOVES[phase] for phase in set(Phase) - {Phase.REPLACED, Phase.ENDED})


def test_a_phase_says_the_state_of_its_run_and_what_it_has():
    assert not QUEUED & UNDERWAY and not QUEUED & OVER and not UNDERWAY & OVER
    assert set(Phase) - QUEUED - UNDERWAY - OVER == {Phase.READ_BY_ANOTHER, Phase.ENDING}
    assert set(FACTS) == set(MOVES) == set(Phase)
    assert not any(FACTS[phase] & ALSO.get(phase, frozenset()) for phase in Phase)


async def test_what_starts_at_once_and_what_waits_go_through_these_phases(sup, _phases):
    async def body(ctx):
        assert attempt_of(ctx).phase is Phase.RUNNING

    runs = [sup.submit("narrow", body) for _ in range(2)]
    assert [run._execution.phase for run in runs] == [Phase.STARTED, Phase.READY]
    for run in runs:
        await run.result()
    assert _phases.moves == {
        (Phase.NEW, Phase.STARTED),
        (Phase.NEW, Phase.IN_LINE),
        (Phase.IN_LINE, Phase.READY),
        (Phase.READY, Phase.STARTED),
        (Phase.STARTED, Phase.RUNNING),
        (Phase.RUNNING, Phase.ENDED),
    }
