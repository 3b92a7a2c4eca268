"""What the tools for tests refuse."""

from __future__ import annotations

from lanes import LaneError


class NotVirtual(LaneError, RuntimeError):
    """Time was to be moved where it is real. Nothing has changed; the message says where time is virtual."""


class Stuck(AssertionError):
    """In virtual time everything waits, and nothing will ever come."""
