"""`python -m tests.postgres.torture --seconds 600 --seed 7`: exits with 1 when something was found.

With `--planted`, each defect is planted instead, or the one of `--defect`, until the judge sees it.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

from runtime.trial.postgres_server import PostgresServer

from .driver import Plan, Verdict, torture
from .planted import DEFECTS

SHAPES = ((3, 60), (2, 8), (10, 400))
"""Few sessions and many: some faults need that they are contended, some that they are left alone."""
TRIES = 6


def main() -> int:
    """Rounds, each with a seed and a schema of its own, until the time is over or one of them has found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for how long, in all")
    parser.add_argument("--round", type=float, default=60, help="seconds of one round")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; by default a random one")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--defect", choices=["", *DEFECTS], default="")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--keep", type=Path, default=None, help="a directory for journals and logs")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if given.seed is None else given.seed
    plan = Plan(seed, nodes=given.nodes, defect=given.defect)
    with PostgresServer() as server:
        if given.planted:
            unseen = [one for one in DEFECTS if given.defect in ("", one) and not _is_seen(one, plan, server)]
            print(f"not seen: {', '.join(unseen) or 'none'}")
            return 1 if unseen else 0
        left, round_ = given.seconds, 0
        while left > 0:
            seconds = min(left, given.round)
            if _round(replace(plan, seconds=seconds), round_, server, given.keep).findings:
                return 1
            left, round_ = left - seconds, round_ + 1
    return 0


def _round(plan: Plan, round_: int, server: PostgresServer, keep: Path | None = None) -> Verdict:
    plan = replace(plan, seed=plan.seed + round_, sessions=SHAPES[round_ % len(SHAPES)])
    print(f"seed {plan.seed}, {plan.seconds:g} s, sessions {plan.sessions}:", flush=True)
    directory = None if keep is None else keep / str(plan.seed)
    verdict = torture(plan, server, f"torture_{plan.defect}_{round_}", directory)
    print(verdict, flush=True)
    return verdict


def _is_seen(defect: str, plan: Plan, server: PostgresServer) -> bool:
    for round_ in range(TRIES):
        print(f"planted {defect}, ", end="")
        verdict = _round(replace(plan, defect=defect, seconds=15, settle_s=8), round_, server)
        if {found.rule for found in verdict.findings} & DEFECTS[defect].seen_as:
            return True
    return False


if __name__ == "__main__":
    sys.exit(main())
