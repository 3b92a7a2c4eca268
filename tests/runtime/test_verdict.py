"""The verdict: what an independent reading of the files finds, each fault planted once."""

from __future__ import annotations

import json

import pytest

from lanes import (
    Outcome,
    Run,
    RunAbandoned,
    RunAbandonedAfterTimeout,
    RunCancelled,
    RunState,
    RunTimedOut,
)
from runtime.trial.ledger import Ledger, Sent
from runtime.trial.report import Result
from runtime.trial.traffic import Line
from runtime.trial.verdict import Survey, examine, survey

HEADER = {"lanes.session": "a", "format": 1}


def record(key, run="r1", turn=True, **more):
    return {"id": key, "run": run, "turn": turn, "role": "user", "content": "hällo", **more}


def text(*values):
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@pytest.fixture
def session(tmp_path):
    return tmp_path / "a-0123456789abcdef.jsonl"


@pytest.fixture
def promise(session):
    """Notes that records were acknowledged, and returns the notes."""
    ledger = Ledger()

    def promised(*values, path=session):
        for value in values:
            ledger.acknowledge(value, str(path))
        return ledger.acknowledged

    return promised


def look(tmp_path, acknowledged, before=None):
    found = examine(str(tmp_path), before or Survey(), acknowledged)
    return found.lost, found.interleaved


def test_whole_records_are_verified(tmp_path, session, promise):
    kept = [record("1"), record("2"), record("3", run="r2")]
    session.write_text(text(HEADER, *kept))
    found = examine(str(tmp_path), Survey(), promise(*kept))
    assert (found.verified, found.lost, found.interleaved, found.records) == (3, 0, 0, 3)
    assert found.complaints == []


def test_a_record_is_the_same_in_any_spelling(tmp_path, session, promise):
    kept = record("1", n=1.5)
    session.write_text(json.dumps(kept, indent=None, sort_keys=True, separators=(" ,", ":  ")) + "\n")
    assert look(tmp_path, promise(kept)) == (0, 0)


@pytest.mark.parametrize(
    "stands_there",
    [
        pytest.param([record("2")], id="missing"),
        pytest.param([record("1"), record("2"), record("1")], id="doubled"),
        pytest.param([record("1", content="other"), record("2")], id="altered"),
        pytest.param([record("1", extra=1), record("2")], id="more than was written"),
    ],
)
def test_an_acknowledged_record_that_is_not_there_whole_and_once_is_lost(tmp_path, session, promise, stands_there):
    session.write_text(text(HEADER, *stands_there))
    assert look(tmp_path, promise(record("1"), record("2"))) == (1, 0)


def test_a_record_in_another_sessions_file_is_lost(tmp_path, session, promise):
    (tmp_path / "b.jsonl").write_text(text(record("1")))
    session.write_text(text(record("2")))
    assert look(tmp_path, promise(record("1"), record("2"))) == (1, 0)


def test_everything_is_lost_with_its_file(tmp_path, promise):
    assert look(tmp_path, promise(record("1"), record("2"))) == (2, 0)


def test_records_of_two_turns_may_not_mix(tmp_path, session, promise):
    kept = [record("1", "r1"), record("2", "r2"), record("3", "r1"), record("4", "r2")]
    session.write_text(text(HEADER, *kept))
    assert look(tmp_path, promise(*kept)) == (0, 2)


def test_side_appends_may_stand_within_a_turn(tmp_path, session, promise):
    kept = [record("1", "r1"), record("2", "r2", turn=False), record("3", "r1"), record("4", "r2", turn=False)]
    session.write_text(text(HEADER, *kept))
    assert look(tmp_path, promise(*kept)) == (0, 0)


@pytest.mark.parametrize(
    "line", [b'{"id":"1","run"', b"[1]", b'{"id":"1"}{"id":"2"}', b"\xff\xfe", b"", b'"' * 7, b"[" * 100_000]
)
def test_a_new_line_that_is_no_record_is_interleaved(tmp_path, session, line):
    session.write_bytes(line + b"\n" + text(record("1")).encode())
    assert look(tmp_path, {}) == (0, 1)


def test_a_new_unterminated_tail_is_interleaved(tmp_path, session):
    session.write_text(text(record("1")) + '{"id": "2"')
    assert look(tmp_path, {}) == (0, 1)


def test_lines_that_were_broken_before_are_named_and_left_alone(tmp_path, session, promise):
    session.write_bytes(text(HEADER, record("0")).encode() + b"junk\n\xff\n")
    before = survey(str(tmp_path))
    with session.open("a") as file:
        file.write(text(record("1")))
    assert [(broken.number, broken.path) for broken in before.broken] == [(3, str(session)), (4, str(session))]
    assert look(tmp_path, promise(record("1")), before) == (0, 0)


@pytest.mark.parametrize("sealed", ["\n", "moved away"])
def test_a_tail_that_was_torn_before_may_be_sealed_or_moved_away(tmp_path, session, promise, sealed):
    tail = '{"id": "tail"}' if sealed == "\n" else '{"id": "ta'
    session.write_text(text(record("0")) + tail)
    before = survey(str(tmp_path))
    session.write_text(text(record("0")) + (tail + "\n" if sealed == "\n" else "") + text(record("1")))
    assert len(before.broken) == (0 if sealed == "\n" else 1)
    assert look(tmp_path, promise(record("1")), before) == (0, 0)


@pytest.mark.parametrize("tail", ['{"id": "ta', '{"id": "tail"}'])
def test_a_torn_tail_that_nobody_touched_is_no_fault(tmp_path, session, tail):
    session.write_text(text(record("0")) + tail)
    assert look(tmp_path, {}, survey(str(tmp_path))) == (0, 0)


@pytest.mark.parametrize("fault", ["altered", "shortened", "removed"])
def test_what_was_there_before_must_still_be_there(tmp_path, session, fault):
    session.write_text(text(HEADER, record("0"), record("1")))
    before = survey(str(tmp_path))
    if fault == "altered":
        session.write_text(text(HEADER, record("0", content="x" * 5), record("1")))
    elif fault == "shortened":
        session.write_text(text(HEADER, record("0")))
    else:
        session.unlink()
    assert look(tmp_path, {}, before) == (3, 0)


def test_a_directory_that_does_not_exist_has_nothing_in_it(tmp_path):
    assert survey(str(tmp_path / "none")) == Survey()
    assert look(tmp_path / "none", {}) == (0, 0)


# From findings to exit code


def make(**fields):
    return Result(Ledger(), Survey(), "asyncio", "/nowhere", **fields)


def test_a_result_without_a_fault_is_green():
    result = make()
    assert (result.verdict, result.exit_code) == ("green", 0)


@pytest.mark.parametrize("fault", ["lost", "interleaved", "dead_writes", "stuck", "untold", "failure", "appended"])
def test_every_fault_makes_the_verdict_red(fault):
    result = make(signal=2, abandoned=["run 1"])
    if fault in ("lost", "interleaved"):
        setattr(result.findings, fault, 1)
    elif fault == "dead_writes":
        result.ledger.dead_writes = 1
    else:
        setattr(result, fault, {"stuck": ["x"], "failure": "x"}.get(fault, 1))
    assert (result.verdict, result.exit_code) == ("red", 1)


def test_unplanned_abandoned_bodies_have_an_exit_code_of_their_own():
    assert make(abandoned=["run 1"], signal=2).exit_code == 70
    assert make(abandoned=["run 1"], plans_abandoned=True).exit_code == 0


def test_an_ending_cut_short_tells_by_which_signal():
    assert [make(signal=number).exit_code for number in (2, 15)] == [130, 143]


NAMES = """
messages answered timed_out failed acknowledged verified lost interleaved late_writes_refused stuck_sessions
recovery_ms wait_ms loop_lag_ms rss_mb duration_s backend verdict
"""


def test_the_machine_gets_exactly_the_promised_names():
    found = json.loads(make().as_json())
    assert list(found) == NAMES.split()
    assert {tuple(value) for value in found.values() if isinstance(value, dict)} == {("p50", "p99", "max")}


# The harness's own books


@pytest.mark.parametrize("successor_begins", ["before the end is told", "after it"])
def test_recovery_counts_from_the_deadline_to_the_next_turn_that_was_waiting(successor_begins):
    ledger, late, waiting, newcomer = Ledger(), turn(1, 0.0, 1.0), turn(2, 5.0, 11.5), turn(3, 12.0, 13.0)
    ledger.run_started(late)
    if successor_begins == "after it":
        time_out(ledger, late, at=11.0)
    ledger.run_started(waiting)
    if successor_begins != "after it":
        time_out(ledger, late, at=11.0)
    ledger.run_started(newcomer)
    assert ledger.recoveries_s == [0.5]


def test_a_turn_that_came_after_the_deadline_recovers_nothing():
    ledger, late = Ledger(), turn(1, 0.0, 1.0)
    ledger.run_started(late)
    time_out(ledger, late, at=11.0)
    ledger.run_started(turn(2, 12.0, 13.0))
    assert ledger.recoveries_s == []


@pytest.mark.parametrize(
    "state, error, told",
    [
        (RunState.DONE, None, "answered"),
        (RunState.FAILED, ValueError(), "failed"),
        (RunState.TIMED_OUT, RunTimedOut(""), "timed_out"),
        (RunState.ABANDONED, RunAbandonedAfterTimeout(""), "timed_out"),
        (RunState.ABANDONED, RunAbandoned(""), "failed"),
        (RunState.CANCELLED, RunCancelled(""), "failed"),
    ],
)
def test_every_end_is_told_as_one_of_three(state, error, told):
    ledger, run = Ledger(), turn(1, 0.0, 1.0)
    ledger.accepted(Sent(Line(lane="main"), answered=state is RunState.DONE), run)
    end(ledger, run, state, error)
    assert (ledger.told, ledger.posted, ledger.unanswered) == ({told: 1}, 1, [])


def test_of_a_program_each_run_counts_as_a_message():
    ledger = Ledger(runs_count=True)
    end(ledger, turn(1, 0.0, 1.0))
    assert ledger.told == {"answered": 1}


def test_every_message_of_a_shared_run_is_told():
    ledger, run, messages = Ledger(), turn(1, 0.0, 1.0), sent(3)
    for message in messages:
        ledger.accepted(message, run)
        message.answered = True
    assert (ledger.posted, ledger.told, ledger.shared) == (3, {}, {"collected": 2})
    end(ledger, run)
    assert (ledger.told, ledger.states, ledger.unanswered) == ({"answered": 3}, {"done": 3}, [])


def test_a_message_that_no_body_has_answered_makes_the_verdict_red_though_its_run_is_done():
    result, run, (first, forgotten) = make(), turn(1, 0.0, 1.0), sent(2)
    for message in (first, forgotten):
        result.ledger.accepted(message, run)
    first.answered = True
    end(result.ledger, run)
    assert result.ledger.unanswered == ["message 2"]
    assert result.verdict == "red"
    assert any("'message 2': its run was done without it" in line for line in result.lines())


def test_a_repetition_is_told_with_the_first_one_also_when_that_is_over():
    ledger, run, (first, again, late) = Ledger(), turn(1, 0.0, 1.0), sent(3, dedupe="x")
    ledger.accepted(first, run)
    ledger.accepted(again, run)
    first.answered = True
    end(ledger, run)
    ledger.accepted(late, run)
    assert (ledger.told, ledger.shared, ledger.unanswered) == ({"answered": 3}, {"repeated": 2}, [])


def test_another_run_for_the_same_name_is_no_repetition():
    ledger, (first, again) = Ledger(), sent(2, dedupe="x")
    for number, message in enumerate((first, again)):
        run = turn(number, 0.0, 1.0)
        ledger.accepted(message, run)
        end(ledger, run)
    assert (ledger.shared, ledger.unanswered) == ({}, ["message 1", "message 2"])


def test_a_message_that_was_read_by_a_run_under_way_recovers_no_session():
    ledger, late, read, (message,) = Ledger(), turn(1, 0.0, 1.0), turn(2, 5.0, 6.0), sent(1)
    ledger.accepted(message, read)
    read.answered_by = late.id
    ledger.run_started(late)
    time_out(ledger, late, at=11.0)
    time_out(ledger, read, at=11.0)
    assert (ledger.recoveries_s, ledger.told) == ([], {"timed_out": 1})


def test_what_policies_did_is_named_where_they_did_anything():
    result = make(policies={"superseded": 2, "parked": 1})
    assert list(json.loads(result.as_json()))[len(NAMES.split()) :] == ["superseded", "parked"]
    assert "  policies     2 superseded, 1 parked" in list(result.lines())
    assert not any(line.startswith("  policies") for line in make().lines())


def turn(number, enqueued_at, started_at):
    run = Run(number, "main", "a", True, None, enqueued_at)
    run.started_at = started_at
    return run


def time_out(ledger, run, at):
    run.deadline = at
    end(ledger, run, RunState.TIMED_OUT, RunTimedOut(""))


def end(ledger, run, state=RunState.DONE, error=None):
    run.outcome = Outcome(state=state, error=error)
    ledger.run_ended(run)


def sent(number, **fields):
    return [Sent(Line(lane="main", text=f"message {n}", **fields)) for n in range(1, number + 1)]
