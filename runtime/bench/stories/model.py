"""The model call of a story: the same on both sides."""

from __future__ import annotations

import anyio

from .story import Story, Work


class ToolFailed(Exception):
    """A tool failed, as the story asks for."""


async def call(work: Work, story: Story) -> None:
    """Behave as a piece of work says. A checkpoint; one that is deaf ends when it wants, and then as if cancelled."""
    with anyio.CancelScope(shield=work.call == "deaf"):
        await anyio.sleep(float("inf") if work.call == "stalls" else story.real_s(work.call_s))
    if work.call == "fails":
        raise ToolFailed(work.name)
