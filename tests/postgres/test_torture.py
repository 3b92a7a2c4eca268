"""Several processes on one database are killed, stopped, cut off and left without it; a judge looks at what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from .torture.driver import Plan, Verdict, torture
from .torture.planted import DEFECTS

PLAN = Plan(
    seed=15,
    seconds=9,
    nodes=3,
    senders=6,
    sessions=(4, 20),
    ttl=1.5,  # a busy machine takes a second from each process now and then
    grace=0.5,
    every_s=2,
    server_every_s=4,
    pause_s=0.2,
    settle_s=60,
)
SEEN_HERE = ("always_repeat", "reaper_does_not_inherit")
"""Those that so short a time finds whatever the machine does. `make torture-planted` finds all."""
TRIES = 4


@pytest.mark.failure("G17", "G18")
def test_nothing_is_lost_doubled_or_out_of_order(pg, schema):
    verdict = torture(PLAN, pg, schema)
    assert not verdict.findings, str(verdict)
    assert verdict.counts["messages"] >= PLAN.senders  # and a hundred where nothing else runs


@pytest.mark.parametrize("defect", SEEN_HERE)
def test_a_planted_defect_is_seen(pg, schema, defect):
    verdicts: list[Verdict] = []
    while not verdicts or not {found.rule for found in verdicts[-1].findings} & DEFECTS[defect].seen_as:
        seed = len(verdicts)
        assert seed < TRIES, "\n".join(map(str, verdicts))
        plan = replace(PLAN, seed=seed, seconds=5, settle_s=4, every_s=1, defect=defect)
        verdicts.append(torture(plan, pg, f"{schema}_{seed}"))
