"""`lanes example`: writes a program to read and to change, of those that this package has been tested with."""

from __future__ import annotations

import ast
from pathlib import Path

from ..trial.output import Output
from ..usage_error import UsageError

FOLDER = "examples"


def run(name: str | None, to: str) -> int:
    """List the examples, or write one, with those that it imports, into the folder `examples` of a directory.

    Raises:
        UsageError: there is no such example; a file is there already, and is another one; the directory cannot be
            written. Then nothing was written, but perhaps some of the files that one needs.
    """
    out, found = Output(json=False), examples()
    if name is None:
        width = max(map(len, found))
        for one, source in sorted(found.items()):
            out.line(f"{one:{width}}  {first_line(source)}")
        return 0
    if name not in found:
        raise UsageError(f"example: {name!r} is unknown; allowed: {', '.join(sorted(found))}")
    target = Path(to) / FOLDER
    sources = {target / f"{one}.py": found[one] for one in needed(name, found)}
    try:
        for path, source in sources.items():
            if path.exists() and path.read_bytes() != source:
                raise UsageError(f"{path}: is there already, and has been changed; allowed: --to another directory")
        target.mkdir(parents=True, exist_ok=True)
        for path, source in sources.items():
            path.write_bytes(source)
            out.line(f"wrote {path}")
    except OSError as error:
        raise UsageError(f"{error.filename or target}: {error.strerror}; allowed: --to a directory of yours") from None
    out.line(f"Its first lines say what to install and how to run it: head -30 {target / name}.py")
    return 0


def examples() -> dict[str, bytes]:
    """The source of each example, by name."""
    return {path.stem: path.read_bytes() for path in folder().glob("*.py") if path.stem != "__init__"}


def folder() -> Path:
    """Where they are: shipped inside this package, and beside it in a checkout."""
    package = Path(__file__).parents[1]
    shipped = package / FOLDER
    return shipped if shipped.is_dir() else package.parent / FOLDER


def needed(name: str, found: dict[str, bytes]) -> list[str]:
    """An example, and those that it imports, directly or not."""
    seen: list[str] = []
    todo = [name]
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.append(one)
        imports = [node.module or "" for node in ast.walk(ast.parse(found[one])) if isinstance(node, ast.ImportFrom)]
        todo += [module.removeprefix(f"{FOLDER}.") for module in imports if module.startswith(f"{FOLDER}.")]
    return seen


def first_line(source: bytes) -> str:
    """What an example is, in its own words."""
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
