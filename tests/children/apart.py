"""Becomes a program of this folder behind a command that sets it apart: `apart SCRIPT PATH LOOP A B C [COMMAND...]`."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    script, *args = sys.argv[1:7]
    command = [*sys.argv[7:], sys.executable, "-m", f"tests.children.{script}", *args]
    os.execvp(command[0], command)
