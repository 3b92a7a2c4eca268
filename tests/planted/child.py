"""Runs a child program of the tests with a defect planted: `python -m tests.planted.child DEFECT SCRIPT ARGS...`."""

from __future__ import annotations

import runpy
import sys

from tests.planted.locks import DEFECTS

if __name__ == "__main__":
    DEFECTS[sys.argv[1]]()
    script = sys.argv[2]
    sys.argv[:] = [script, *sys.argv[3:]]
    runpy.run_module(f"tests.children.{script}", run_name="__main__")
