"""`python -m benchmarks locks`: prints the figures with their bounds; exits 1 when one is missed."""

from __future__ import annotations

import logging
import platform
import sys

import structlog

from .between import figures as between
from .inside import help_figure
from .inside import run as inside
from .lifetime import figures as lifetime
from .many import figures as many
from .measure import table

SUITES = ("locks",)


def main(argv: list[str]) -> int:
    """Run one suite."""
    if len(argv) != 1 or argv[0] not in SUITES:
        print(
            f"usage: python -m benchmarks SUITE; SUITE: {argv[0] if argv else 'missing'}; allowed: {', '.join(SUITES)}"
        )
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(f"Python {platform.python_version()}, {platform.system()}; medians of ratios taken in turn within one run")
    found = [*inside("asyncio"), *inside("trio"), *lifetime(), *many(), *between(), help_figure()]
    print(table(f"{'figure':68} {'value':>9}     {'bound':>8}", found))
    return 1 if any(figure.reached is False for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
