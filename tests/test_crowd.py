"""Suite K4: several processes do everything that there is to do to the same sessions, and are killed and stopped.

Appends, leases, turns, compactions, resets that archive and that delete, `lanes doctor --fix`; by registries and by
supervisors, on asyncio and on trio; each worker writes down what it does: `tests.children.crowd`. A checker that shares
no code with the product compares that with the files: `tests.crowd_judge`. With each of the defects of
`tests.planted.crowd` it must find what that one leads to.

In CI 20 kills and 500 acknowledged appends, with `LANES_LONG=1` 400 and 40,000. Only the counts end it, so how fast the
machine is decides how long it takes, and nothing else. The figures are printed: `pytest -s --suite K4`.
"""

from __future__ import annotations

import json
import os
import random
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.command import lanes
from tests.crowd_judge import Verdict, judge
from tests.peers import peer
from tests.planted.crowd import DEFECTS, SEEN_AS
from tests.poll import eventually_sync

LONG = bool(os.environ.get("LANES_LONG"))
KILLS, APPENDS = (400, 40_000) if LONG else (20, 500)
MOST_S = 3600.0 if LONG else 240.0
SEED = random.randrange(1 << 30)


def play(directory: Path, kills: int, appends: int, seed: int, *defect: str) -> tuple[dict[str, Any], Verdict]:
    """Let a crowd live, mend what it leaves, and judge."""
    directory.mkdir()
    with peer("crowd", directory, kills, appends, MOST_S, seed, *defect) as crowd:
        eventually_sync(lambda: [crowd.lines, crowd.ended()][1], within=MOST_S + 60)
        assert crowd.exit_code == 0
        said = json.loads(crowd.lines[-1])
    sessions = directory / "sessions"
    fixed = lanes("doctor", sessions, "--fix")
    looked = lanes("doctor", sessions)
    verdict = judge(directory, {int(worker): at for worker, at in said["kills"].items()})
    if looked.returncode != 0:
        verdict.violations.append(f"left over: {fixed.stdout}{looked.stdout}{looked.stderr}")
    return said, verdict


@pytest.mark.suite("K4")
@pytest.mark.failure("H1", "C1", "D7")
def test_several_processes_that_are_killed_and_stopped_keep_all_promises(tmp_path):
    said, verdict = play(tmp_path / "crowd", KILLS, APPENDS, SEED)
    did = {"kills": len(said["kills"]), "stops": said["stops"], **verdict.did}
    print(f"K4, seed {SEED}:", ", ".join(f"{number} {name}" for name, number in did.items()))  # noqa: T201
    assert verdict.violations == [], f"seed {SEED}"
    assert (said["died"], said["enough"]) == (0, True)
    assert verdict.did["appends"] >= APPENDS
    assert all(verdict.did[name] for name in ("compactions", "doctor runs", "late appends", "resets")), verdict.did


@pytest.mark.suite("K4", "G1")
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_checker_sees_what_is_planted(tmp_path, defect):
    # In rounds, until it is seen: which of a few hundred operations meet the defect is chance.
    for number in count():
        _, verdict = play(tmp_path / str(number), 10, 300, number, defect)
        if SEEN_AS[defect] in verdict.kinds():
            break
        assert number < 20, f"not seen in {number} rounds: {verdict.kinds()}"
    assert (tmp_path / str(number) / "reached").exists()


def test_at_least_seven_defects_are_planted():
    assert len(DEFECTS) >= 7
