"""Suite K1: kill -9 amid appends. No acknowledged record is lost, damaged or glued, and tails were really torn.

In CI 2,000 kills, or as many as fit into 60 s, but never fewer than are asked for below: on a busy machine it takes
longer. `LANES_LONG=1` makes it 100,000. What a killed writer leaves is sealed or moved to `<file>.torn` by the next
append, so the lines of that file are the torn tails that were really seen. The figures are printed: `pytest -s --suite
K1`.
"""

from __future__ import annotations

import json
import os

import pytest

from tests.children.massacre import LEAST_KILLS, LEAST_TORN
from tests.kill_judge import judge
from tests.peers import peer
from tests.poll import eventually_sync

LONG = bool(os.environ.get("LANES_LONG"))
KILLS, SECONDS = (100_000, 3600 * 2) if LONG else (2_000, 60)
MOST_S = 2 * SECONDS + 480


@pytest.mark.suite("K1")
@pytest.mark.failure("H1")
def test_no_acknowledged_record_is_lost_or_damaged_by_kills_amid_appends(tmp_path):
    with peer("massacre", tmp_path, KILLS, SECONDS, 86014, MOST_S) as killer:
        eventually_sync(lambda: [killer.lines, killer.ended()][1], within=MOST_S + 60)
        assert killer.exit_code == 0
        report = json.loads(killer.lines[-1])
    acknowledged = [(writer, number, name) for writer, number, name in report["acknowledged"]]
    verdict = judge(tmp_path, acknowledged)
    print(f"K1: {report['kills']} kills, {len(acknowledged)} acknowledged, {verdict.torn} torn tails")  # noqa: T201
    assert report["kills"] >= LEAST_KILLS
    assert len(acknowledged) > report["kills"]
    assert verdict.torn >= LEAST_TORN, f"{report['kills']} kills tore only {verdict.torn} tails: nothing was tested"
    assert verdict.lost == []
    assert verdict.damaged == []
    assert verdict.doubled == []
    assert verdict.disordered == []
    assert verdict.records <= len(acknowledged) + report["kills"]  # at most one more per killed writer


@pytest.mark.suite("K1")
def test_the_judge_sees_what_is_lost_damaged_glued_doubled_and_torn(tmp_path):
    def line(number, text="aa"):
        return json.dumps({"writer": 0, "number": number, "text": text, "length": 2}).encode() + b"\n"

    (tmp_path / "a.jsonl").write_bytes(
        line(0) + line(2) + line(1) + line(1) + line(3, "a") + line(4)[:9] + line(5) + b"{"
    )
    (tmp_path / "a.jsonl.torn").write_bytes(b'{"wri\n{"writer"\n')
    verdict = judge(tmp_path, [(0, 0, "a.jsonl"), (0, 5, "a.jsonl"), (0, 2, "b.jsonl")])
    assert verdict.lost == [(0, 5, "a.jsonl"), (0, 2, "b.jsonl")]
    assert len(verdict.damaged) == 2
    assert verdict.doubled == [(0, 1)]
    assert verdict.disordered == [0, 0]
    assert verdict.torn == 3
    assert verdict.records == 4
