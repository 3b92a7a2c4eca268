"""`docs/failures.md` and the marks of the tests say the same."""

from __future__ import annotations

import ast
import functools
import re

from tests import ROOT

DOCUMENT = ROOT / "docs" / "failures.md"


@functools.cache
def marked() -> dict[str, set[str]]:
    """Row id to the modules that have a test marked with it."""
    rows: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or getattr(node.func, "attr", "") != "failure":
                continue  # most calls: `unparse` is slow
            if ast.unparse(node.func) == "pytest.mark.failure":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        rows.setdefault(str(argument.value), set()).add(path.stem)
    return rows


def documented() -> dict[str, set[str]]:
    """Row id to the modules that the document names for it."""
    rows = re.findall(r"^\| ([A-HT-Z]\d+) \|.*\| ([^|]*) \|$", DOCUMENT.read_text(), re.MULTILINE)
    return {row: set(re.findall(r"`(test_\w+)`", where)) for row, where in rows}


def test_every_row_that_a_test_is_marked_with_stands_in_the_document():
    assert sorted(marked().keys() - documented().keys()) == []


def test_every_row_of_the_document_has_a_test_in_each_module_that_it_names():
    rows = marked()
    missing = {row: where - rows.get(row, set()) for row, where in documented().items() if not where}
    wrong = {row: where - rows.get(row, set()) for row, where in documented().items() if where - rows.get(row, set())}
    assert (missing, wrong) == ({}, {})
    assert len(documented()) >= 40
