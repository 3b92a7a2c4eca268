"""The Python code in documents: found with its place, and run as a reader would run it, a page from top to bottom.

A page is one program. Each block of it may use what earlier blocks have made, and may `await` at the top, as in
`python -m asyncio`. What a block needs and a reader does not need to see, such as a handler that was shown on another
page, stands before it in a comment that no page shows:

    <!--python
    async def answer(ctx, messages): ...
    -->
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio

_BLOCK = re.compile(r"^(?:```python\n(?P<shown>.*?)^```|<!--python\n(?P<hidden>.*?)^-->)$", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^## .*$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A piece of code in a document."""

    code: str
    line: int
    """Its first line in the document, from 1."""
    shown: bool


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a document, hidden ones included, in order."""
    for found in _BLOCK.finditer(text):
        kind = "hidden" if found["shown"] is None else "shown"
        yield Block(found[kind], text.count("\n", 0, found.start(kind)) + 1, kind == "shown")


def run_page(page: Path, text: str | None = None, **given: Any) -> dict[str, Any]:
    """Run the blocks of a page, in the current directory; returns what they have made.

    Args:
        text: instead of what the page has.
        given: names that are there before the first block.
    """
    names: dict[str, Any] = {"__name__": page.stem, **given}
    for block in blocks_of(page.read_text("utf-8") if text is None else text):
        # Newlines before the code, so that a traceback has the line of the document.
        source = "\n" * (block.line - 1) + block.code
        code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            anyio.run(partial(_evaluate, code, names))
        else:
            exec(code, names)
    return names


async def _evaluate(code: Any, names: dict[str, Any]) -> None:
    await eval(code, names)


def sections_of(text: str) -> list[str]:
    """A document, cut before each heading of the second level."""
    starts = [0, *(found.start() for found in _HEADING.finditer(text)), len(text)]
    return [text[one:other] for one, other in itertools.pairwise(starts)]


def used_in(code: str) -> set[str]:
    """The names that code uses, whether alone or as attributes."""
    tree = compile(code, "<block>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
    return {
        node.id if isinstance(node, ast.Name) else node.attr
        for node in ast.walk(tree)
        if isinstance(node, (ast.Name, ast.Attribute))
    }
