"""Becomes a `holder` behind a command that sets it apart: `inside PATH asyncio|trio [COMMAND...]`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    path, backend, *apart = sys.argv[1:]
    command = [*apart, sys.executable, "-m", "tests.children.holder", path, "lease", backend]
    os.execvp(command[0], command)
