"""How a figure is taken: several rounds, the contenders in turn within each, and the median of the rounds' ratios."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import structlog

ROUNDS = 5
CHILD_S = 120.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a table."""

    name: str
    value: float
    unit: str
    bound: float | None = None
    """The bound: the value should not exceed it, or with `at_least` not fall below it."""
    at_least: bool = False
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the bound holds; `None` without one."""
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        """The line."""
        bound = "" if self.bound is None else f"{'≥' if self.at_least else '≤'} {self.bound:g}"
        verdict = {None: "", True: "yes", False: "NO"}[self.reached]
        return f"{self.name:68} {self.value:9.2f} {self.unit:3} {bound:>8} {verdict:4} {self.detail}"


async def ratio(
    name: str,
    ours: Callable[[], Awaitable[float]],
    peer: Callable[[], Awaitable[float]],
    *,
    bound: float | None,
    at_least: bool = False,
    rounds: int = ROUNDS,
) -> Figure:
    """The median over rounds of ours / peer, each a duration per operation in seconds."""
    await ours(), await peer()  # warm up
    pairs = [(await ours(), await peer()) for _ in range(rounds)]
    value = median((b / a) if at_least else (a / b) for a, b in pairs)
    mine, theirs = median(a for a, _ in pairs), median(b for _, b in pairs)
    return Figure(name, value, "×", bound, at_least, f"{mine * 1e6:.1f} against {theirs * 1e6:.1f} µs")


async def absolute(name: str, ours: Callable[[], Awaitable[float]], *, bound_us: float, rounds: int = ROUNDS) -> Figure:
    """The median over rounds of a duration per operation, for a bound that was set on a machine like this one."""
    await ours()  # warm up
    value = median([await ours() for _ in range(rounds)])
    return Figure(name, value * 1e6, "µs", bound_us)


async def per_operation(count: int, body: Callable[[], Awaitable[None]]) -> float:
    """Seconds per operation of a body that does `count` operations."""
    began = time.perf_counter()
    await body()
    return (time.perf_counter() - began) / count


def quiet(level: int = logging.ERROR) -> None:
    """Write no log line below a level: lines cost time, and standard output belongs to the figures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def at_once(module: str, *calls: tuple[str, ...], within_s: float = CHILD_S) -> list[Any]:
    """The JSON that fresh processes print, one process per call of a module with arguments, all at the same time.

    For figures of memory and CPU time, which belong to one process and do not depend on the others.

    Raises:
        subprocess.TimeoutExpired: a process took longer than `within_s` seconds; all are killed.
        ValueError: a process printed no JSON; standard error has the reason.
    """
    children = [
        subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True)
        for arguments in calls
    ]
    try:
        return [json.loads(child.communicate(timeout=within_s)[0]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()


def table(title: str, figures: list[Figure]) -> str:
    """A table, for a terminal or a document."""
    return "\n".join([title, *(figure.line() for figure in figures)])
