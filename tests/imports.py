"""What imports what in the three packages, read from the source: also within functions, and for types only."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

FLOORS = ("locks", "lanes", "runtime")
"""From the ground up."""

Kind = Literal["hard", "lazy", "typing"]
"""Whether the import runs when the module is imported, when a function is called, or never."""
Import = tuple[str, int, Kind]
"""The module that is imported, and the line."""


def modules_of(root: Path) -> dict[str, Path]:
    """All modules of the floors, by name."""
    found = {}
    for floor in FLOORS:
        for path in (root / floor).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, modules: Mapping[str, Path]) -> list[Import]:
    """What the module `name` imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            # A submodule, or a name that the package must have defined by then.
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base

    def walk(node: ast.AST, kind: Kind) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets(child):
                    yield target, child.lineno, kind
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, "lazy" if kind == "hard" else kind)
            elif isinstance(child, ast.If) and _is_for_types(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), "typing")
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), kind)
            else:
                yield from walk(child, kind)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), "hard"))


def _is_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def circles(root: Path) -> list[str]:
    """Every import that closes a circle of modules of the floors, as `file:line: kind import of module`."""
    modules = modules_of(root)
    imports = {name: imports_of(name, path, modules) for name, path in modules.items()}
    reached = {name: _reached(name, imports) for name in modules}
    return [
        f"{modules[name].relative_to(root)}:{line}: {kind} import of {target}"
        for name in sorted(modules)
        for target, line, kind in imports[name]
        if target == name or (target in modules and name in reached[target])
    ]


def _reached(start: str, imports: Mapping[str, list[Import]]) -> set[str]:
    """The modules that a module needs, by whatever way."""
    found: set[str] = set()
    left = [start]
    while left:
        for target, _, _ in imports[left.pop()]:
            if target in imports and target not in found:
                found.add(target)
                left.append(target)
    return found
