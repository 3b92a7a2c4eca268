"""What `lanes run TARGET` means: a scenario, a traffic file, or a function of the user's own."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..usage_error import UsageError
from .scenario import BUILT_IN, shipped

Main = Callable[[Any], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Target:
    """Either a file or a function."""

    name: str
    file: Path | None = None
    main: Main | None = None

    @property
    def is_scenario(self) -> bool:
        """Whether it is a file with lanes and groups."""
        return self.file is not None and self.file.suffix == ".toml"


def resolve(text: str | None) -> Target:
    """What to run.

    Raises:
        UsageError: there is no such thing.
    """
    name = BUILT_IN if text is None else text
    known = shipped()
    if name in known:
        return Target(name, file=known[name])
    if name.endswith((".toml", ".jsonl")):
        return Target(name, file=Path(name))
    if ":" in name:
        return Target(name, main=_function(name))
    raise UsageError(
        f"target: {name!r} is unknown; allowed: {', '.join(known)}, FILE.toml, FILE.jsonl, module:function"
    )


def _function(name: str) -> Main:
    module_name, _, path = name.partition(":")
    if not module_name or not path or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"target: {name!r} is not allowed; allowed: module:function")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(f"target: there is no module {error.name!r}, neither here nor installed") from error
        raise UsageError(f"target: module {module_name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"target: module {module_name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"target: module {module_name!r} has no {path!r}; allowed: an `async def main(sup)`")
        found = getattr(found, part)
    if not inspect.iscoroutinefunction(found):
        raise UsageError(f"target: {name!r} is not async; allowed: an `async def main(sup)`")
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise UsageError(f"target: {name!r} {error}; allowed: an `async def main(sup)`") from error
    main: Main = found
    return main
