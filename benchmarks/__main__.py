"""`python -m benchmarks SUITE [FILE.json]`: prints figures with their bounds; exits 1 when a bound is missed."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from .between import figures as between
from .footprint import figures as footprint
from .foreign import figures as foreign
from .handlers import figures as handlers
from .imports import figures as imports
from .inbox import figures as inbox
from .inside import help_figure
from .inside import run as inside
from .latency import figures as latency
from .lifetime import figures as lifetime
from .many import figures as many
from .measure import Figure, quiet, table
from .path import figures as path
from .pools import figures as pools
from .process import figures as surroundings
from .reading import figures as reading
from .restarts import figures as restarts
from .sessions import figures as sessions
from .soak import figures as soak
from .throughput import figures as throughput


def locks() -> list[Figure]:
    """The figures of the lock layer."""
    return [*inside("asyncio"), *inside("trio"), *lifetime(), *many(), *between(), help_figure()]


def lanes() -> list[Figure]:
    """The figures of the lane scheduler."""
    return [*throughput(), *sessions(), *latency(), *footprint(), *pools()]


def process() -> list[Figure]:
    """The figures of the process around the lanes; `LANES_LONG=1` takes ten minutes longer."""
    return [*surroundings(), *restarts(), *soak()]


def gateway() -> list[Figure]:
    """The figures of a whole gateway."""
    from .gateway import figures  # noqa: PLC0415 -- only this suite needs the extra `gateway`

    return figures()


def cluster() -> list[Figure]:
    """The figures of several nodes on PostgreSQL."""
    from .cluster import figures  # noqa: PLC0415 -- only this suite needs the extra `postgres`

    return figures()


def house() -> list[Figure]:
    """The figures of the structure."""
    from .house import figures  # noqa: PLC0415 -- it reads all files with mypy, which the other suites do not need

    return figures()


SUITES: Mapping[str, Callable[[], list[Figure]]] = {
    "locks": locks,
    "lanes": lanes,
    "process": process,
    "gateway": gateway,
    "foreign": foreign,
    "house": house,
    "path": path,
    "pools": pools,
    "reading": reading,
    "imports": imports,
    "handlers": handlers,
    "inbox": inbox,
    "cluster": cluster,
}


def main(argv: list[str]) -> int:
    """Run one suite, and write its figures to a file too if one is named."""
    suite, *paths = argv or ["missing"]
    if suite not in SUITES or len(paths) > 1:
        print(f"usage: python -m benchmarks SUITE [FILE.json]; SUITE: {suite}; allowed: {', '.join(SUITES)}")
        return 2
    quiet()
    print(f"Python {platform.python_version()}, {platform.system()}; medians of ratios taken in turn within one run")
    found = SUITES[suite]()
    print(table(f"{'figure':68} {'value':>9}     {'bound':>8}", found))
    for name in paths:
        Path(name).write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return 1 if any(figure.reached is False for figure in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
