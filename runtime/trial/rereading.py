"""SIGHUP under `lanes run FILE.toml`: the file is read again, and its lanes and groups count from then on."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio import to_thread

from lanes import GroupSpec, LaneError, LaneSpec
from locks._events import log
from runtime.supervisor import Supervisor

from ..usage_error import UsageError, one_line

Read = Callable[[], tuple[tuple[LaneSpec, ...], tuple[GroupSpec, ...]]]


class Rereading:
    """Reads one file again when it is asked to. On the event loop's thread.

    What cannot be read, or may not be changed now, is logged with the reason, and nothing has changed. The traffic of
    the file stays as it was.

    Args:
        read: reads and checks the file, on a worker thread.
    """

    def __init__(self, sup: Supervisor, file: str, read: Read) -> None:
        self._sup, self._file, self._read = sup, file, read
        self._asked = anyio.Event()

    def ask(self) -> None:
        """Read it again soon. Returns at once."""
        self._asked.set()

    async def serve(self) -> None:
        """Read it whenever asked, until cancelled. A checkpoint."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            try:
                lanes, groups = await to_thread.run_sync(self._read)
                changes = self._sup.configure(lanes=lanes, groups=groups)
            except (UsageError, LaneError) as error:
                log("configuration_refused", level="error", file=self._file, error=one_line(str(error)))
            else:
                log("configuration_read", file=self._file, changed=len(changes))
