"""The machine and the versions that a result belongs to. No name of a host, user or directory is among them."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from .peers import PEERS

_LIBRARIES = ("session-lanes", "anyio", "trio", "filelock", "matplotlib")


def machine() -> dict[str, str | int | float]:
    """Processor, cores that this process may use, memory, system, file system of temporary files, and the load."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file_system": _file_system(tempfile.gettempdir()),
        "load_before": round(os.getloadavg()[0], 2),
        "callgrind": "yes" if shutil.which("valgrind") else "no",
    }


def versions() -> dict[str, str]:
    """Python, and each library that is measured or measures."""
    found = {"python": f"{platform.python_implementation()} {platform.python_version()}"}
    for name in sorted({*_LIBRARIES, *(peer.needs for peer in PEERS if peer.needs)}):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _file_system(path: str) -> str:
    """The type of the file system that a path is on: the longest mount point that leads to it."""
    path = os.path.realpath(path)
    found = [
        part for part in psutil.disk_partitions(all=True) if path == part.mountpoint or _below(path, part.mountpoint)
    ]
    return max(found, key=lambda part: len(part.mountpoint)).fstype if found else "unknown"


def _below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
