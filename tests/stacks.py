"""The stacks that asyncio's debug mode keeps, of each task, future and callback: cheap, since hardly any is printed.

The standard library looks up the source of each frame at once, and asks the disk whether each file has changed:
half a millisecond per future, an eighth of all tests. Here a frame keeps its file, line and function, and its source is
looked up when it is printed.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterable
from types import FrameType


def install() -> None:
    """Have stacks kept like this from now on, in this process. Tracebacks of exceptions are not concerned."""
    # In place: asyncio and uvloop keep the class.
    traceback.StackSummary.extract = classmethod(_extract)  # type: ignore[assignment, method-assign]  # a patch


def _extract(
    cls: type[traceback.StackSummary],
    frames: Iterable[tuple[FrameType, int]],
    *,
    limit: int | None = None,
    lookup_lines: bool = True,
    capture_locals: bool = False,
) -> traceback.StackSummary:
    return cls(
        traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)
        for frame, line in itertools.islice(frames, limit)
    )
