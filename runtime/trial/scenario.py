"""Scenario files: lanes, groups, a time scale, and traffic, generated or from a file. Those shipped are read alike.

All times in a file are seconds as they would be in production; `scale` shortens them all alike, so that a limit of
300 s and a call of 310 s keep their relation in a run of seconds.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from lanes import GroupSpec, LaneError, LaneSpec, RetrySpec, SessionLayout
from lanes.core.intake import DEBOUNCE_AT_MOST
from lanes.spec import DEFAULT_LANES, DedupeKeeps, PriorityName, WhenBusy, WhenFull
from lanes.spec_table import SpecTable
from locks import InvalidSession

from ..usage_error import UsageError
from . import traffic
from .crash_plan import CrashTable, InvalidCrash, check_messages, check_table
from .generate import InvalidLoad, Load, generate
from .model_bodies import summarize
from .traffic import Line
from .validation import explain

SHIPPED = Path(__file__).parent.parent / "scenarios"
BUILT_IN = "mixed"
_TIMES = ("timeout", "idle_timeout", "queue_timeout", "debounce", "grace")


class RetryTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When a failed run of a lane is tried again."""

    attempts: int = 3
    wait: float = 1.0
    max_wait: float = 60.0
    timeouts: bool = False


class LaneTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A lane of a scenario; what is not given is as in the default lane of that pattern, if there is one."""

    pattern: str
    capacity: int | UnsetType = UNSET
    group: str | UnsetType = UNSET
    priority: PriorityName | UnsetType = UNSET
    timeout: float | UnsetType = UNSET
    idle_timeout: float | UnsetType = UNSET
    queue_timeout: float | UnsetType = UNSET
    queue_limit: int | UnsetType = UNSET
    grace: float | UnsetType = UNSET
    when_busy: WhenBusy | UnsetType = UNSET
    when_full: WhenFull | UnsetType = UNSET
    debounce: float | UnsetType = UNSET
    dedupe_keeps: DedupeKeeps | UnsetType = UNSET
    retry: RetryTable | UnsetType = UNSET
    repeat: bool | UnsetType = UNSET


class GroupTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A group of a scenario."""

    name: str
    slots: int
    reserve: int = 0


class RestartTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """That the scenario is a service: a process that is restarted, and started again when it asks for that."""

    at: list[float] = []
    """When SIGUSR1 is sent, since the first process took work."""
    drain: float = 5.0
    """Seconds that running runs get to finish before a restart, and before the end."""
    secrets: float = 0.0
    """Seconds that the service takes to be entered, and to be left, which gives each generation its secret."""
    processes: int = 3
    """How many may be started, the first one included."""


class ScenarioFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A scenario as it stands in its file."""

    description: str = ""
    """One line, for `lanes run --list`."""
    scale: float = 1.0
    """What all times are multiplied by."""
    duration: float = 10.0
    """Seconds over which generated traffic arrives."""
    seed: int = 1
    lanes: list[LaneTable] = []
    groups: list[GroupTable] = []
    load: list[Load] = []
    """Generated traffic."""
    traffic: str | None = None
    """A traffic file, relative to this one."""
    restart: RestartTable | None = None
    crash: CrashTable | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: everything checked, all times scaled."""

    name: str
    lanes: tuple[LaneSpec, ...]
    groups: tuple[GroupSpec, ...]
    lines: tuple[Line, ...]
    scale: float
    seed: int
    sleeps_at_most: float
    """Seconds within which some run must begin or end, as long as there is any."""
    restart: RestartTable | None = None
    crash: CrashTable | None = None

    @property
    def service(self) -> bool:
        """Whether it is served by processes of its own, one after the other."""
        return self.restart is not None or self.crash is not None

    @property
    def plans_abandoned(self) -> bool:
        """Whether bodies that ignore their cancellation are part of it."""
        return any(line.behave in ("block", "swallow") for line in self.lines)


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the command line sets instead of the file."""

    scale: float | None = None
    seed: int | None = None
    duration: float | None = None
    """In seconds of the wall clock."""

    def __post_init__(self) -> None:
        for field in ("scale", "duration"):
            if (value := getattr(self, field)) is not None:
                _positive(f"--{field}", value)


def shipped() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


def described() -> list[tuple[str, str]]:
    """Name and description of each shipped scenario, the built-in one first."""
    found = [(name, load_file(path).description) for name, path in shipped().items()]
    return sorted(found, key=lambda one: (one[0] != BUILT_IN, one[0]))


def load_file(path: Path) -> ScenarioFile:
    """Read a scenario file.

    Raises:
        UsageError: it cannot be read, is no TOML, or has a field or a value that is not allowed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    try:
        return msgspec.convert(data, ScenarioFile)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path}: {explain(error, data, ScenarioFile)}") from error


def plan(path: Path, name: str, layout: SessionLayout, overrides: Overrides) -> Plan:
    """A scenario file, or a traffic file on default lanes, ready to run.

    Raises:
        UsageError: it cannot be used; nothing was created.
    """
    file = ScenarioFile(traffic=path.name) if path.suffix == ".jsonl" else load_file(path)
    try:
        return _planned(file, path, name, layout, overrides)
    except (LaneError, InvalidLoad, InvalidCrash, InvalidSession) as error:
        raise UsageError(f"{path}: {error}") from error


def limits(path: Path, overrides: Overrides) -> tuple[tuple[LaneSpec, ...], tuple[GroupSpec, ...]]:
    """The lanes and groups of a scenario file, scaled, as they stand in it now.

    Raises:
        UsageError: it cannot be read, or has a field or a value that is not allowed.
    """
    file = load_file(path)
    scale = _positive(f"{path}: scale", file.scale) if overrides.scale is None else overrides.scale
    try:
        return _limits(file, scale)
    except LaneError as error:
        raise UsageError(f"{path}: {error}") from error


def _limits(file: ScenarioFile, scale: float) -> tuple[tuple[LaneSpec, ...], tuple[GroupSpec, ...]]:
    specs = _specs(file)
    return tuple(_scaled(spec, scale) for spec in specs.lanes.values()), tuple(specs.groups.values())


def _specs(file: ScenarioFile) -> SpecTable:
    return SpecTable(
        [_lane(table) for table in file.lanes], [GroupSpec(g.name, g.slots, g.reserve) for g in file.groups]
    )


def _planned(file: ScenarioFile, path: Path, name: str, layout: SessionLayout, overrides: Overrides) -> Plan:
    scale = _positive(f"{path}: scale", file.scale) if overrides.scale is None else overrides.scale
    duration = _positive(f"{path}: duration", file.duration)
    if overrides.duration is not None:
        duration = overrides.duration / scale
    seed = file.seed if overrides.seed is None else overrides.seed
    specs = _specs(file)
    lines = generate(file.load, duration=duration, seed=seed)
    for line in lines:
        traffic.check(line, specs, layout)
    if file.traffic is not None:
        lines += traffic.read(path.parent / file.traffic, specs, layout)
    if overrides.duration is not None:
        lines = [line for line in lines if line.at <= duration]
    if not lines:
        raise UsageError(f'{path}: sends no messages; allowed: a [[load]], or traffic = "FILE.jsonl"')
    lanes, groups = _limits(file, scale)
    used = {specs.find(line.lane) for line in lines}
    return Plan(
        name=name,
        lanes=lanes,
        groups=groups,
        lines=tuple(traffic.in_order(lines)),
        scale=scale,
        seed=seed,
        sleeps_at_most=max(map(_sleeps_at_most, used)) * scale,
        restart=_restart(file, lines, path, scale),
        crash=_crash(file, lines, [*used], scale),
    )


def _crash(file: ScenarioFile, lines: list[Line], used: list[LaneSpec], scale: float) -> CrashTable | None:
    given = file.crash
    check_messages(lines, crashes=given is not None)
    if given is None:
        return None
    if file.restart is not None:
        raise InvalidCrash("crash, restart: only one of them is allowed")
    check_table(given, used)
    return msgspec.structs.replace(given, person=given.person * scale)


def _restart(file: ScenarioFile, lines: list[Line], path: Path, scale: float) -> RestartTable | None:
    given = file.restart
    if given is None:
        return None
    for field, value in (("drain", given.drain), ("secrets", given.secrets), *(("at", at) for at in given.at)):
        if not 0 <= value < math.inf:
            raise UsageError(f"{path}: restart.{field}: {value!r} is not allowed; allowed: seconds from 0")
    if given.processes < 1:
        raise UsageError(f"{path}: restart.processes: {given.processes!r} is not allowed; allowed: a number from 1")
    if any(line.again or line.dedupe is not None for line in lines):
        raise UsageError(f"{path}: again, dedupe: not with [restart]: there, who was not answered sends again anyway")
    return RestartTable(
        at=sorted(at * scale for at in given.at),
        drain=given.drain * scale,
        secrets=given.secrets * scale,
        processes=given.processes,
    )


def _lane(table: LaneTable) -> LaneSpec:
    given: dict[str, Any] = {
        name: value for name in LaneTable.__struct_fields__ if (value := getattr(table, name)) is not UNSET
    }
    if isinstance(table.retry, RetryTable):
        given["retry"] = RetrySpec(**msgspec.structs.asdict(table.retry))
    if table.when_full == "summarize":
        given["on_drop"] = summarize
    for default in DEFAULT_LANES:
        if default.pattern == table.pattern:
            return replace(default, **given)
    return LaneSpec(**given)


def _sleeps_at_most(spec: LaneSpec) -> float:
    """Seconds, unscaled, within which a run of a lane begins, is tried again, or ends, unless it waits for another."""
    between = spec.retry.max_wait if spec.retry is not None else 0.0
    return spec.timeout + spec.grace + max(between, spec.debounce * DEBOUNCE_AT_MOST)


def _scaled(spec: LaneSpec, scale: float) -> LaneSpec:
    times: dict[str, Any] = {name: value * scale for name in _TIMES if (value := getattr(spec, name)) is not None}
    if spec.retry is not None:
        times["retry"] = replace(spec.retry, wait=spec.retry.wait * scale, max_wait=spec.retry.max_wait * scale)
    return replace(spec, **times)


def _positive(field: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UsageError(f"{field}: {value!r} is not allowed; allowed: a number above 0")
    return value
