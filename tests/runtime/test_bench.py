"""`lanes bench`: what it refuses, what it leaves out, and peers that misbehave."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace

import msgspec
import psutil
import pytest

from runtime.bench import compare, results, text
from runtime.bench.checker import Witness, overlaps
from runtime.bench.measure import Measuring
from runtime.bench.peers import PEERS, peer_of
from runtime.bench.peers.interface import Kind
from runtime.bench.questions.contention import HANDOFF, SHARES
from runtime.bench.questions.cost import COST
from runtime.bench.questions.interface import Cell, Sample, Scale
from runtime.bench.questions.waiters import WAITERS
from runtime.bench.results import Answer, Result, Row
from runtime.bench.workers import Workers
from runtime.cli import main
from tests.children import bench_worker as bad
from tests.command import LANES, started
from tests.namespaces import without_shm
from tests.poll import eventually_sync

QUICK = replace(COST, take=lambda cell, ask, scale: ask("cost:measure", pairs=10), rounds=2)
"""The smallest question: what is tested is not the figure."""


def measured(*peers, budget_s=60.0, questions=(QUICK,)):
    result = Result(started="", machine={"cores": 1}, versions={"python": ""}, budget_s=budget_s)
    command = (sys.executable, "-m", "tests.children.bench_worker")
    Measuring(result, peers, Scale(), lambda *_: None, command=command).run(questions)
    return result


def rows_of(result, question=QUICK):
    return {(row.peer, row.backend): row for row in result.questions[question.name].rows}


# Refusals: nothing is measured


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["speed"], "QUESTION: 'speed' is unknown; allowed: cost, waiters,"),
        (["--peers", "flock,redis"], "--peers: 'redis' is unknown; allowed: asyncio.Lock,"),
        (["--peers", " , "], "names no peer; allowed: asyncio.Lock,"),
        (["--budget", "0"], "--budget: 0.0 is not allowed; allowed: seconds above 0"),
        (["--budget", "nan"], "--budget: nan is not allowed"),
        (["--json", "/no/such/directory/a.json"], "--json: /no/such/directory/a.json: cannot be written: No such file"),
        (["--html", "/"], "--html: /: cannot be written: Is a directory"),
        (["--compare", "/no/such.json"], "/no/such.json: cannot be read: No such file"),
    ],
)
def test_input_that_cannot_be_used_is_refused_before_anything_is_measured(capsys, arguments, said):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("lanes: ") and said in printed.err
    assert printed.err.count("\n") == 1


def test_a_system_that_it_cannot_measure_on_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert main(["bench"]) == 2
    assert "Darwin is not supported; measuring needs Linux" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b'{"schema": "lanes-bench/1"}', b"\xff"])
def test_a_file_that_is_no_result_is_refused(tmp_path, capsys, content):
    (tmp_path / "old.json").write_bytes(content)
    assert main(["bench", "--compare", str(tmp_path / "old.json")]) == 2
    assert "old.json: is no result of `lanes bench --json`" in capsys.readouterr().err


def test_a_result_of_another_schema_is_refused(tmp_path, capsys):
    old = Result(schema="lanes-bench/9", started="", machine={}, versions={}, budget_s=1)
    (tmp_path / "old.json").write_bytes(results.encode(old))
    assert main(["bench", "--compare", str(tmp_path / "old.json")]) == 2
    assert "schema 'lanes-bench/9' is not allowed; allowed: 'lanes-bench/1'" in capsys.readouterr().err


def test_checking_that_a_file_can_be_written_leaves_nothing_behind(tmp_path):
    assert main(["bench", "--json", str(tmp_path / "a.json"), "--budget", "-1"]) == 2
    assert main(["bench", "--json", str(tmp_path / "a.json"), "--html", "/"]) == 2
    assert list(tmp_path.iterdir()) == []


# Peers that misbehave: reported, and the run goes on


def test_a_peer_that_lets_all_in_is_reported():
    result = measured(bad.LETS_ALL_IN, peer_of("inside", "anyio.Lock"))
    rows = rows_of(result)
    assert list(rows) == [("lets all in", "asyncio"), ("anyio.Lock", "asyncio"), ("anyio.Lock", "trio")]
    assert rows["lets all in", "asyncio"].violations > 0
    assert rows["anyio.Lock", "asyncio"].violations == 0 and len(rows["anyio.Lock", "asyncio"].samples) == 2
    printed = "\n".join(text.report(result))
    assert printed.count("EXCLUSION VIOLATED") == 1
    assert "EXCLUSION VIOLATED: lets all in (asyncio) let another holder in" in printed


def test_a_peer_that_crashes_or_raises_is_left_out_and_the_run_goes_on():
    result = measured(bad.DIES, bad.RAISES, bad.PRINTS)
    assert {one.peer: one.why for one in result.left_out} == {
        "dies": "its process ended: exit code 3 (asyncio)",
        "raises": "RuntimeError: the lock is broken (asyncio)",
    }
    assert len(rows_of(result)["prints", "asyncio"].samples) == 2


def test_what_a_crashed_peer_had_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LEFT_CHILD", str(tmp_path / "pid"))
    result = measured(bad.LEAVES_A_CHILD)
    assert [one.why for one in result.left_out] == ["its process ended: exit code 3 (asyncio)"]
    left = int((tmp_path / "pid").read_text())
    eventually_sync(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE)


@pytest.fixture
def asked(monkeypatch):
    """What workers are asked, in order; none is started."""
    found: list[tuple[str, str, tuple[tuple[str, object], ...]]] = []

    def ask(self, cell, function, *, within_s, **arguments):
        found.append((cell.peer.name, function, tuple(arguments.items())))
        return Sample(dict.fromkeys(("handoff p50", "handoff p99", "handoff max", "most holds ÷ fewest"), 1.0))

    monkeypatch.setattr(Workers, "ask", ask)
    monkeypatch.setattr(Workers, "prepare", lambda *_: None)
    return found


def test_questions_about_the_same_runs_share_them(asked):
    result = measured(peer_of("between", "flock"), questions=[replace(one, rounds=1) for one in (HANDOFF, SHARES)])
    assert [row.metric for row in result.questions["shares"].rows] == ["most holds ÷ fewest"]
    assert len(asked) == len(set(asked)) == 2  # two and eight processes


def test_the_floor_and_our_own_lock_are_measured_first_and_each_round_begins_with_another_peer(asked):
    names = ("asyncio-keyed-lock", "asyncio.Lock", "anyio.Lock", "lanes")
    measured(*(peer_of("inside", name) for name in names))
    order = list(dict.fromkeys(name for name, *_ in asked))
    assert order == ["anyio.Lock", "lanes", "asyncio-keyed-lock", "asyncio.Lock"]
    assert [name for name, *_ in asked[6:]] == ["anyio.Lock", "lanes", "lanes", *order[2:], "anyio.Lock"]


def test_a_peer_that_hangs_is_ended_and_left_out():
    result = measured(bad.HANGS, questions=[replace(QUICK, longest_cell_s=0.1)])
    assert [one.why for one in result.left_out] == ["no answer within 0.1 s (asyncio)"]


def test_a_missing_peer_is_skipped_by_name():
    missing = replace(peer_of("inside", "asyncio.Lock"), name="absent", needs="no-such-distribution")
    result = measured(missing)
    assert [(one.peer, one.why) for one in result.left_out] == [
        ("absent", "no-such-distribution is not installed; the extra `bench` has it (asyncio)")
    ]


def test_what_the_time_was_too_short_for_is_left_out_by_name():
    result = measured(peer_of("inside", "trio.Lock"), budget_s=1e-9, questions=(QUICK, WAITERS))
    assert [(one.question, one.peer, one.why) for one in result.left_out] == [
        ("cost", "trio.Lock", "the time was over; --budget SECONDS gives more (trio)"),
        ("waiters", "trio.Lock", "2, 10, 100, 1,000 waiters: the time was over; --budget SECONDS gives more (trio)"),
    ]
    assert "Left out:\n  cost: trio.Lock (trio): the time was over" in "\n".join(text.report(result))


MEASUREMENTS: list[tuple[str, Kind, dict[str, int | float]]] = [
    ("waiters:measure", "inside", {"waiters": 2}),
    ("keys:sessions", "inside", {"keys": 2}),
    ("keys:memory", "inside", {"keys": 2}),
    ("cost:measure", "between", {"pairs": 2}),
    ("appends:measure", "between", {"size": 100}),
    ("contention:measure", "between", {"processes": 2, "seconds": 0.01}),
    ("waiting:measure", "between", {"seconds": 0.01}),
    ("jobs:alone", "jobs", {"jobs": 2}),
    ("jobs:backlog", "jobs", {"jobs": 2}),
    ("jobs:message", "jobs", {"messages": 2}),
]


def test_no_measurement_leaves_a_file_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Workers() as workers:
        for function, kind, arguments in MEASUREMENTS:
            cell = Cell(peer_of(kind, "lanes"), "asyncio")
            found = workers.ask(cell, function, within_s=60.0, **arguments)
            assert found.values and not found.violations, function
            assert list(tmp_path.iterdir()) == [], function


def test_a_lock_that_is_never_given_back_has_no_figure_but_a_reason():
    ours, soft = (
        Cell(peer_of("between", "lanes"), "asyncio"),
        Cell(peer_of("between", "filelock.SoftFileLock"), "blocking"),
    )
    with Workers() as workers:
        for how in ("exception", "ignored cancellation", "kill -9"):
            found = workers.ask(ours, "recovery:between", within_s=60.0, how=how, limit_s=20.0)
            assert list(found.values) == [how] and not found.violations
        found = workers.ask(soft, "recovery:between", within_s=60.0, how="kill -9", limit_s=0.1)
    assert found.values == {} and found.missing == {"kill -9": "still held 0.1 s later"}


# The result


def test_the_command_measures_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "found.json"
    assert main(["bench", "cost", "--peers", "asyncio.Lock", "--budget", "600", "--json", str(path)]) == 0
    result = results.load(str(path))
    assert {row.peer for row in result.questions["cost"].rows} == {"asyncio.Lock", "anyio.Lock"}  # and the floor
    printed = capsys.readouterr().out
    assert "cost: What does taking a free lock and giving it back cost, in one process?" in printed
    assert msgspec.json.decode(path.read_bytes())["schema"] == "lanes-bench/1"


def test_every_peer_has_its_own_name_and_its_library_is_found_or_named():
    names = [(peer.kind, peer.name) for peer in PEERS]
    assert len(names) == len(set(names))
    assert not [peer.name for peer in PEERS if peer.missing]  # the extra `dev` has all


def test_ratios_are_taken_round_by_round():
    floor, row = Row("floor", "blocking", "m", samples=[1, 2, 4]), Row("a", "asyncio", "m", samples=[2, 6, 8])
    assert Answer("", "s", "lower", floor="floor", rows=[floor, row]).ratio(row) == 2


def test_a_comparison_reports_what_differs_beyond_noise():
    def result(*samples):
        rows = [Row("floor", "asyncio", "m", samples=[1.0, 1.0, 1.0]), Row("a", "asyncio", "m", samples=list(samples))]
        answers = {"q": Answer("", "µs", "lower", floor="floor", rows=rows)}
        return Result(started="then", machine={}, versions={}, budget_s=1, questions=answers)

    assert compare.changes(result(1, 2, 3), result(2, 3, 4)) == []
    (change,) = compare.changes(result(1, 2, 3), result(4, 5, 6))
    assert change.line() == "  WORSE  q: a (asyncio), m: 2 → 5 × the floor"
    (change,) = compare.changes(result(4, 5, 6), result(1, 2, 3))
    assert change.better


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_cut_short_writes_what_it_has(tmp_path, number, code):
    log, path = tmp_path / "log", tmp_path / "found.json"
    with started("bench", "cost", "waiters", "--peers", "asyncio.Lock", "--json", str(path), log=log) as child:
        eventually_sync(lambda: "lanes bench: cost" in log.read_text(), within=60.0)
        child.send_signal(number)
        printed, _ = child.communicate(timeout=60.0)
        assert child.returncode == code
    assert "Left out:" in printed and "waiters: all: cut short" in printed
    assert "waiters" not in results.load(str(path)).questions


def test_on_one_core_without_shared_memory_it_measures_and_says_so(tmp_path):
    done = subprocess.run(
        [*without_shm(), LANES, "bench", "handoff", "--peers", "flock", "--budget", "600"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    assert "cores 1" in done.stdout and "handoff p50" in done.stdout


# The checker


def test_the_witness_counts_entries_while_another_holder_is_in():
    witness = Witness()
    witness.enter("a")
    witness.enter("b")
    witness.leave("a")
    witness.enter("a")
    assert witness.violations == 0
    witness.enter("a")
    witness.enter("a")
    assert witness.violations == 2


@pytest.mark.parametrize(
    "holds, found",
    [
        ([], 0),
        ([(0, 1), (1, 2)], 0),
        ([(1, 3), (0, 2)], 1),
        ([(0, 9), (1, 2), (3, 4)], 2),
        ([(0, 2), (1, 3), (2.5, 4)], 2),
    ],
)
def test_overlapping_holds_are_counted(holds, found):
    assert overlaps(holds) == found
