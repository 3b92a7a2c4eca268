"""What this package's own peers have in common."""

from __future__ import annotations

import logging
from typing import Any


def registry(**options: Any) -> Any:
    """A lock registry without log lines: these cost time, and belong to no figure."""
    import structlog

    from locks import LockRegistry

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    return LockRegistry(**options)
