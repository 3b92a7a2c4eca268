"""Suite F1: the seam for the operating system, with a call of it that fails.

    seam = FaultySeam(monkeypatch)
    with seam.fails(Fault(errno.EIO), 3):       # the third call from here on
        ...
    assert seam.fired == "fstat"

Every function of the seam is wrapped, whatever is added to it later. A call that fails does nothing, with two
exceptions, for so Linux does it: a `close` that fails has closed, and a write may come up short. A sync that succeeds
is left out, since nothing here can tell the difference and a disk takes milliseconds for it.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from locks import _os

NAMES = sorted(
    name
    for name, value in vars(_os).items()
    if callable(value) and not isinstance(value, type) and not name.startswith("_")
)
"""All functions of the seam."""

_SYNCS = ("fsync", "fdatasync")


@dataclass(frozen=True)
class Fault:
    """How a call fails."""

    code: int = 0
    """The error number; 0: a write comes up short, and the next one goes on."""
    lasting: bool = False
    """Whether all later calls of the same function fail as well."""
    short: bool = False
    """Whether it is a write that comes up short; with a code, the writes after it fail, as on a full disk."""

    def __str__(self) -> str:
        name = errno.errorcode.get(self.code, "")
        return "-".join(filter(None, ["short" * self.short, name, "lasting" * self.lasting]))


class FaultySeam:
    """The functions of the seam, counted, one of which fails. Callable from any thread, as they are."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fired: str | None = None
        """The function that failed, if one did."""
        self.distrust_ignored: list[str] = []
        """Writes to an open file whose sync had failed: nobody knows what such a file has."""
        self._fault: Fault | None = None
        self._n = self._count = 0
        self._mutex = threading.Lock()
        self._open_files: dict[int, object] = {}  # by descriptor; duplicates share one
        self._distrusted: set[object] = set()
        for name in NAMES:
            patch.setattr(_os, name, functools.partial(self._call, name, getattr(_os, name)))

    @contextmanager
    def fails(self, fault: Fault, n: int) -> Iterator[None]:
        """Inside, the `n`-th call fails, counted from 1; of short writes, the `n`-th write."""
        self.fired, self._fault, self._n, self._count = None, fault, n, 0
        try:
            yield
        finally:
            self._fault = None

    def _call(self, name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        fault = self._fault
        if fault is None or not self._is_due(fault, name, args):
            result = None if name in _SYNCS else real(*args, **kwargs)
            self._note(name, args, result)
            return result
        if fault.short and (not fault.code or self.fired is None):
            self.fired = name
            return real(args[0], args[1][: len(args[1]) // 2])
        self.fired = name
        if name == "close":
            real(*args)
            self._note(name, args, None)
        if name in _SYNCS:
            with self._mutex:
                self._distrusted.add(self._open_files.get(args[0]))
        raise OSError(fault.code, os.strerror(fault.code))

    def _is_due(self, fault: Fault, name: str, args: tuple[Any, ...]) -> bool:
        with self._mutex:
            if fault.short and (name != "write" or len(args[1]) < 2):
                return False
            self._count += 1
            if self._count <= self._n:
                return self._count == self._n
            return name == self.fired and (fault.lasting or (fault.short and bool(fault.code)))

    def _note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        with self._mutex:
            if name == "open":
                self._open_files[result] = object()
            elif name == "dup":
                self._open_files[result] = self._open_files.get(args[0])
            elif name == "close":
                self._open_files.pop(args[0], None)
            elif name == "write" and self._open_files.get(args[0]) in self._distrusted:
                self.distrust_ignored.append(f"{args[1]!r:.60} was written after a failed sync")
