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


def play(directory: Path, kills: int, appends: int, seed: int, *defect: str) -> dict[str, Any]:
    """Let a crowd live; returns what it says at the end."""
    with peer("crowd", directory, kills, appends, MOST_S, seed, *defect) as crowd:
        eventually_sync(lambda: [crowd.lines, crowd.ended()][1], within=MOST_S + 60)
        assert crowd.exit_code == 0
        said: dict[str, Any] = json.loads(crowd.lines[-1])
    return said


def judged(directory: Path, said: dict[str, Any]) -> Verdict:
    """What the files say."""
    return judge(directory, {int(worker): at for worker, at in said["kills"].items()})


@pytest.mark.suite("K4")
@pytest.mark.failure("H1", "C1", "D7")
def test_several_processes_that_are_killed_and_stopped_keep_all_promises(tmp_path):
    said = play(tmp_path, KILLS, APPENDS, SEED)
    fixed = lanes("doctor", tmp_path / "sessions", "--fix")
    looked = lanes("doctor", tmp_path / "sessions")
    verdict = judged(tmp_path, said)
    did = {"kills": len(said["kills"]), "stops": said["stops"], **verdict.did}
    print(f"K4, seed {SEED}:", ", ".join(f"{number} {name}" for name, number in did.items()))  # noqa: T201
    assert verdict.violations == [], f"seed {SEED}"
    assert looked.returncode == 0, f"seed {SEED}: {fixed.stdout}{looked.stdout}{looked.stderr}"
    assert (said["died"], said["enough"]) == (0, True)
    assert verdict.did["appends"] >= APPENDS
    assert all(verdict.did[name] for name in ("compactions", "doctor runs", "late appends", "resets")), verdict.did


@pytest.mark.suite("K4", "G1")
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_checker_sees_what_is_planted(tmp_path, defect):
    # In rounds, until it is seen: which of a few hundred operations meet the defect is chance.
    for number in count():
        directory = tmp_path / str(number)
        directory.mkdir()
        kinds = judged(directory, play(directory, 10, 300, number, defect)).kinds()
        if SEEN_AS[defect] in kinds:
            assert (directory / "reached").exists()
            return
        assert number < 30, f"not seen in {number} rounds: {kinds}"


def test_at_least_seven_defects_are_planted():
    assert len(DEFECTS) >= 7
