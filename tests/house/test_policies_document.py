"""`docs/lanes.md` quotes `examples/policies.py` and what it prints: both as they are, on both event loops."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests import ROOT

DOCUMENT = (ROOT / "docs" / "lanes.md").read_text()
SOURCE = (ROOT / "examples" / "policies.py").read_text()
PRINTED = re.compile(r"```text\n\$ python examples/policies\.py (\w+)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def functions():
    """The text of each function of the example, decorators included, by name."""
    lines = SOURCE.splitlines()
    return {
        node.name: "\n".join(
            lines[min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1 : node.end_lineno]
        )
        for node in ast.parse(SOURCE).body
        if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef))
    }


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_example_prints_what_the_document_quotes(backend):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import anyio, examples.policies as policies; anyio.run(policies.main, backend={backend!r})",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert printed == dict(PRINTED.findall(DOCUMENT))


def test_every_piece_of_code_in_the_document_stands_in_the_example():
    found = functions()
    quoted = re.findall(r"^(?:async )?def (\w+)", "\n".join(CODE.findall(DOCUMENT)), re.MULTILINE)
    assert set(quoted) == set(found) - {"main"}
    for name in quoted:
        assert found[name] in DOCUMENT, f"{name} is not as in examples/policies.py"


def test_every_policy_has_a_section_with_a_picture():
    for title in (
        "queue",
        "reject",
        "interrupt",
        "replace",
        "collect",
        "steer",
        "drop_oldest",
        "summarize",
        "debounce",
    ):
        section = DOCUMENT.split(f"\n### {title}\n", 1)[1].split("\n#", 1)[0]
        assert re.search(r"^    .*[├└┌─]", section, re.MULTILINE), title
