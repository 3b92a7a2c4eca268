"""How a thread that keeps things reports to the event loop: in order, and each report whatever another one raises."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from locks._loop import Post

from .store import Report


def report_each(post: Post, reports: Iterable[tuple[Report, Any, BaseException | None]]) -> None:
    """Have reports called on the event loop, each with its result and error, in one call as long as none raises.

    Args:
        post: how the event loop is reached. What a report raises, it reports.
    """
    left = deque(reports)

    def report_the_rest() -> None:
        try:
            while left:
                report, result, error = left.popleft()
                report(result, error)
        finally:
            if left:  # what one report has raised must not keep the others waiting
                post(report_the_rest)

    post(report_the_rest)
