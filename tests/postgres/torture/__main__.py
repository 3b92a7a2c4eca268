"""`python -m tests.postgres.torture --seconds 600 --seed 7`: exits with 1 when something was found."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from pathlib import Path

from runtime.trial.postgres_server import PostgresServer

from .driver import Plan, torture
from .planted import DEFECTS


def main() -> int:
    """Rounds, each with a seed and a schema of its own, until the time is over or one of them has found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.postgres.torture", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="for how long, in all")
    parser.add_argument("--round", type=float, default=60, help="seconds of one round")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; by default a random one")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--defect", choices=["", *DEFECTS], default="")
    parser.add_argument("--keep", type=Path, default=None, help="a directory for journals and logs")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 30) if given.seed is None else given.seed
    left, round_ = given.seconds, 0
    with PostgresServer() as server:
        while left > 0:
            plan = Plan(seed + round_, seconds=min(left, given.round), nodes=given.nodes, defect=given.defect)
            # Some rounds with few processes and sessions, some with many.
            plan = replace(plan, sessions=((3, 60), (1, 8), (10, 400))[round_ % 3])
            print(f"seed {plan.seed}, {plan.seconds:g} s:", flush=True)
            directory = None if given.keep is None else given.keep / str(plan.seed)
            verdict = torture(plan, server, f"torture_{round_}", directory)
            print(verdict, flush=True)
            if verdict.findings:
                return 1
            left, round_ = left - plan.seconds, round_ + 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
