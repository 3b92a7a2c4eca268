"""The specifications of one supervisor, by name; the most specific pattern wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .checks import shown
from .errors import InvalidLane
from .pool_spec import PoolSpec
from .spec import DEFAULT_GROUPS, DEFAULT_LANES, GroupSpec, LaneSpec

T = TypeVar("T")


class SpecTable:
    """The lanes, groups and pools of a supervisor, by name; lanes and groups that are given override the defaults.

    Raises:
        InvalidLane: two specifications of one name, or a lane whose group does not exist.
    """

    def __init__(self, lanes: Iterable[LaneSpec], groups: Iterable[GroupSpec], pools: Iterable[PoolSpec] = ()) -> None:
        self.was_changed = False
        self.lanes = _merged(DEFAULT_LANES, lanes, lambda spec: spec.pattern, ("lanes", "pattern"), LaneSpec)
        self.groups = _merged(DEFAULT_GROUPS, groups, lambda spec: spec.name, ("groups", "group"), GroupSpec)
        self.pools = _merged((), pools, lambda spec: spec.name, ("pools", "pool"), PoolSpec)
        self._exact = {spec.pattern: spec for spec in self.lanes.values() if not spec.wild}
        self._wild = sorted((s for s in self.lanes.values() if s.wild), key=lambda s: -len(s.pattern))
        for spec in self.lanes.values():
            if spec.group not in self.groups:
                known = ", ".join(sorted(self.groups))
                raise InvalidLane(f"lane {spec.pattern!r}, group: {spec.group!r} is unknown; allowed: {known}")

    def changed(self, lanes: Iterable[LaneSpec], groups: Iterable[GroupSpec], pools: Iterable[PoolSpec]) -> SpecTable:
        """These specifications, with some more or others in their place.

        Raises:
            InvalidLane: as on making one.
        """
        return SpecTable(
            _merged(self.lanes.values(), lanes, lambda spec: spec.pattern, ("lanes", "pattern"), LaneSpec).values(),
            _merged(self.groups.values(), groups, lambda spec: spec.name, ("groups", "group"), GroupSpec).values(),
            _merged(self.pools.values(), pools, lambda spec: spec.name, ("pools", "pool"), PoolSpec).values(),
        )

    def become(self, other: SpecTable) -> None:
        """Be as another one from now on, for all who have this one."""
        self.__dict__.update(other.__dict__)
        self.was_changed = True

    def find(self, name: Any) -> LaneSpec:
        """The specification of a lane: that of its name, else that with the longest prefix of it.

        Raises:
            InvalidLane: no pattern matches.
        """
        if isinstance(name, str):
            if (exact := self._exact.get(name)) is not None:
                return exact
            for spec in self._wild:
                if spec.matches(name):
                    return spec
        known = ", ".join(sorted(self.lanes))
        raise InvalidLane(f"lane: {shown(name)} is unknown; allowed: {known}")


def _merged(
    defaults: Iterable[T], given: Iterable[T], name: Callable[[T], str], fields: tuple[str, str], kind: type[T]
) -> dict[str, T]:
    merged = {name(spec): spec for spec in defaults}
    seen: set[str] = set()
    whole, part = fields
    if not isinstance(given, Iterable):
        raise InvalidLane(f"{whole}: {shown(given)} is not allowed; allowed: a list of {kind.__name__}")
    for spec in given:
        if not isinstance(spec, kind):
            raise InvalidLane(f"{whole}: {shown(spec)} is not allowed; allowed: {kind.__name__}")
        if name(spec) in seen:
            raise InvalidLane(f"{part}: {name(spec)!r} is specified twice; allowed: once")
        seen.add(name(spec))
        merged[name(spec)] = spec
    return merged
