"""The figures of the house: circles of imports, records that other files write, lines. No time is measured here.

mypy determines the class of each attribute, so that a common field name is not counted for another class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from mypy import build
from mypy.nodes import AssignmentStmt, DelStmt, Expression, FuncDef, MemberExpr, Node, OperatorAssignmentStmt, TupleExpr
from mypy.options import Options
from mypy.types import Instance, Type, UnionType, get_proper_type

from tests.imports import FLOORS, circles, modules_of

from .measure import Figure

ROOT = Path(__file__).parent.parent
EXECUTION = "lanes.core.execution.Execution"
SCHEDULER = "lanes.core.scheduler.Scheduler"
CLAIM = "locks.rights.claim.Claim"
SINCE = ("runtime/bench", "runtime/inbox")
"""What has come since the house was redrawn."""
BOUNDS = {"written": 8, "reached": 12, "lines": 27_482}
"""The lines are those of the commit before the house was redrawn."""


def figures() -> list[Figure]:
    """The figures with their bounds."""
    found = circles(ROOT)
    kinds = {kind: sum(f": {kind} import" in line for line in found) for kind in ("hard", "lazy", "typing")}
    paths = modules_of(ROOT).values()
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in paths}
    by_floor = ", ".join(
        f"{floor} {sum(n for p, n in lines.items() if p.is_relative_to(ROOT / floor)):,}" for floor in FLOORS
    )
    parts = {part: sum(n for p, n in lines.items() if p.is_relative_to(ROOT / part)) for part in SINCE}
    since, newer = sum(parts.values()), ", ".join(f"{part} {count:,}" for part, count in parts.items())
    longest = max(lines, key=lines.__getitem__)
    uses, functions = read()
    written, claims = written_outside(uses, EXECUTION), written_outside(uses, CLAIM)
    reached = reached_from_outside(uses, SCHEDULER, "lanes.core")
    return [
        *(Figure(f"imports in a circle, {kind}", count, "", 0) for kind, count in kinds.items()),
        Figure(
            "fields of `Execution` written outside its file",
            len(written),
            "",
            BOUNDS["written"],
            detail=_names(written),
        ),
        Figure("fields of `Claim` written outside its file", len(claims), "", detail=_names(claims)),
        Figure(
            "attributes of the scheduler reached from outside lanes.core",
            len(reached),
            "",
            BOUNDS["reached"],
            detail=_names(reached),
        ),
        Figure("lines but for what has come since", sum(lines.values()) - since, "", BOUNDS["lines"], detail=newer),
        Figure("lines of the three packages", sum(lines.values()), "", detail=by_floor),
        Figure("files", len(lines), "", detail=f"longest: {longest.relative_to(ROOT)}, {lines[longest]} lines"),
        Figure("lines of a function, median", median(functions), ""),
    ]


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


@dataclass(frozen=True, slots=True)
class Use:
    """One place that names an attribute of an object of ours."""

    module: str
    of: str
    """The full name of the class."""
    field: str
    is_write: bool


_ELSEWHERE = frozenset(
    (
        "analyzed",
        "def_var",
        "expanded",
        "imports",
        "info",
        "metaclass",
        "names",
        "node",
        "original_def",
        "type",
        "unanalyzed_type",
    )
)
"""Attributes of mypy's nodes that lead to other modules, or to types."""


def _nodes(tree: Node) -> Iterator[Node]:
    """All nodes of a module. mypy's own visitors are compiled, and nothing interpreted can inherit from them."""
    seen: set[int] = set()
    left: list[object] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, list | tuple):
            left += node
        elif isinstance(node, Node) and id(node) not in seen:
            seen.add(id(node))
            yield node
            names = getattr(type(node), "__mypyc_attrs__", ())
            left += [getattr(node, name, None) for name in names if name not in _ELSEWHERE]


def _targets(node: Node) -> list[Expression]:
    """What a statement assigns to or deletes."""
    left: list[Expression] = (
        list(node.lvalues)
        if isinstance(node, AssignmentStmt)
        else [node.lvalue]
        if isinstance(node, OperatorAssignmentStmt)
        else [node.expr]
        if isinstance(node, DelStmt)
        else []
    )
    for target in left:  # grows meanwhile
        if isinstance(target, TupleExpr):
            left += target.items
    return left


def _classes(of: Type) -> Iterator[str]:
    """The classes that a value of a type may have, and what they inherit from."""
    kind = get_proper_type(of)
    if isinstance(kind, UnionType):
        for item in kind.items:
            yield from _classes(item)
    elif isinstance(kind, Instance):
        yield from (base.fullname for base in kind.type.mro)


def read() -> tuple[list[Use], list[int]]:
    """Every use of an attribute in the three packages, and the length of every function."""
    modules = modules_of(ROOT)
    options = Options()
    options.export_types = options.preserve_asts = True
    options.incremental = False
    options.mypy_path = [str(ROOT)]
    result = build.build([build.BuildSource(str(path), name) for name, path in modules.items()], options)
    uses: list[Use] = []
    functions: list[int] = []
    for name in modules:
        nodes = list(_nodes(result.files[name]))
        written = {id(target) for node in nodes for target in _targets(node)}
        for node in nodes:
            if isinstance(node, FuncDef):
                functions.append((node.end_line or node.line) - node.line + 1)
            elif isinstance(node, MemberExpr) and (owner := result.types.get(node.expr)) is not None:
                uses += (Use(name, of, node.name, id(node) in written) for of in _classes(owner))
    return uses, functions


def written_outside(uses: Iterable[Use], of: str) -> set[str]:
    """The fields of a class that other files assign to."""
    home = of.rpartition(".")[0]
    return {use.field for use in uses if use.of == of and use.is_write and use.module != home}


def reached_from_outside(uses: Iterable[Use], of: str, package: str) -> set[str]:
    """The attributes of a class that files outside of a package name."""
    return {use.field for use in uses if use.of == of and not use.module.startswith(f"{package}.")}
