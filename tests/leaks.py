"""What a test must not leave behind: tasks, threads, descriptors, child processes, leases, variables.

Each kind has a look at what exists; `conftest.py` takes one before and one after. Objects are compared by identity,
never by count: a leak beside a release is still a leak.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests import forks

ENDS_WITHIN = 5.0
"""Seconds that a thread, a descriptor or a child may take to end after its loop has closed, on a busy machine."""


def busy_registries() -> list[tuple[object, str]]:
    """The arbiters of all lock registries that are not empty, and how. A lease keeps no registry alive, but that."""
    module = sys.modules.get("locks.registry")
    if module is None:
        return []
    found = []
    for arbiter in module.live_arbiters():
        if not len(arbiter.grants.files):
            continue  # nothing to count: most of them wait for a collection of garbage
        statistics = module.count(arbiter.grants, 0)
        if statistics.held or statistics.waiting:
            found.append((arbiter, f"held={statistics.held} waiting={statistics.waiting}"))
    return found


def descriptors() -> frozenset[tuple[int, str]]:
    """All open descriptors and what they refer to; empty where the kernel does not tell."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir("/proc/self/fd"):
            try:  # no context manager: this looks at a dozen of them, twice in each test
                target = os.readlink("/proc/self/fd/" + name)
            except FileNotFoundError:
                continue  # the descriptor of this very listing is not there any more
            found.append((int(name), target))
    return frozenset(found)


def children() -> frozenset[int]:
    """The ids of all child processes, dead ones that nobody has waited for included, and of living forks."""
    found: set[int] = set()
    for parent in filter(None, (os.getpid(), forks.id_of_server())):
        with contextlib.suppress(FileNotFoundError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found.update(map(int, Path(f"/proc/{parent}/task/{task}/children").read_bytes().split()))
    return frozenset(found)


def environment() -> dict[str, str]:
    """The variables of this process that later tests, and their children, would have."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@dataclass(frozen=True)
class Look:
    """What exists outside of loops."""

    threads: frozenset[threading.Thread] = field(default_factory=lambda: frozenset(threading.enumerate()))
    descriptors: frozenset[tuple[int, str]] = field(default_factory=descriptors)
    children: frozenset[int] = field(default_factory=children)
    environment: dict[str, str] = field(default_factory=environment)
    busy_registries: frozenset[int] = field(default_factory=lambda: frozenset(id(one) for one, _ in busy_registries()))


def complaints(before: Look) -> list[str]:
    """What has come to exist since `before` and is still there. Waits for threads that are about to end."""

    def new_descriptors() -> list[tuple[int, str]]:
        stay = (_tracker("_fd"), forks.descriptor_of_server())
        return sorted(one for one in descriptors() - before.descriptors if one[0] not in stay)

    found = []
    if threads := _after_all(lambda: [t for t in threading.enumerate() if t not in before.threads and not _stays(t)]):
        found.append(f"leaked threads: {', '.join(repr(thread) for thread in threads)}")
    if left := _after_all(new_descriptors):
        found.append(f"leaked descriptors: {', '.join(f'{number} ({target})' for number, target in left)}")
    if pids := _after_all(lambda: sorted(children() - before.children - {_tracker("_pid"), forks.id_of_server()})):
        found.append(f"leaked processes: {', '.join(map(str, pids))}")
    if changed := before.environment.items() ^ environment().items():
        found.append(f"changed variables: {', '.join(sorted({name for name, _ in changed}))}")
    found += busy_now(before)
    return found


def busy_now(before: Look) -> list[str]:
    """The lock registries in which somebody still holds or waits, unless he did in `before`."""
    busy = _after_all(lambda: [one for one in busy_registries() if id(one[0]) not in before.busy_registries], within=0)
    return [f"registry not idle: {registry!r}: {state}" for registry, state in busy]


def _after_all(look: Callable[[], list], within: float | None = None) -> list:
    """What `look` finds in the end: collected cycles and ended threads are not leaks."""
    if not look():
        return []
    gc.collect()
    deadline = time.monotonic() + (ENDS_WITHIN if within is None else within)
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def _tracker(attribute: str) -> int | None:
    """Of the child that `multiprocessing` keeps for as long as the process lives."""
    module = sys.modules.get("multiprocessing.resource_tracker")
    return None if module is None else getattr(module._resource_tracker, attribute, None)


def _stays(thread: threading.Thread) -> bool:
    """Threads of the process: steward and watchdog, and those that trio keeps for the next caller."""
    if thread.name in ("locks-steward", "locks-notes", "lanes-watchdog") and thread.daemon:
        return True
    from trio._core._thread_cache import THREAD_CACHE  # trio has no public word for "idle"

    return any(worker._thread is thread for worker in list(THREAD_CACHE._idle_workers))
