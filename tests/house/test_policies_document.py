"""`docs/lanes.md` quotes `examples/policies.py` and what it prints, `docs/pools.md` quotes `examples/pools.py`: both as
they are, on both event loops."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from tests import ROOT

DOCUMENTS = {"policies": (ROOT / "docs" / "lanes.md").read_text(), "pools": (ROOT / "docs" / "pools.md").read_text()}
"""What quotes each example."""
PRINTED = re.compile(r"```text\n\$ python examples/\w+\.py (\w+)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def functions(example):
    """The text of each function of an example, decorators included, by name."""
    source = (ROOT / "examples" / f"{example}.py").read_text()
    lines = source.splitlines()
    return {
        node.name: "\n".join(
            lines[min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1 : node.end_lineno]
        )
        for node in ast.parse(source).body
        if isinstance(node, (ast.AsyncFunctionDef, ast.FunctionDef))
    }


REAL = ("threads", "processes")
"""Examples that wait for what virtual time does not know of."""
PLAYED = """
import importlib, sys
import anyio
from runtime.testing.virtual import virtual_time

backend, name, *real = sys.argv[1:]
example = importlib.import_module(f"examples.{name}")
every = [one.__name__ for one in getattr(example, "EXAMPLES", ())]  # without names, main plays all
with virtual_time() as clock:  # or what is printed would depend on how busy the machine is
    clock.run(backend, example.main, *(one for one in every if one not in real))
if real := [one for one in every if one in real]:
    anyio.run(example.main, *real, backend=backend)
"""


@pytest.mark.parametrize("example", DOCUMENTS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_example_prints_what_the_document_quotes(backend, example):
    done = subprocess.run(
        [sys.executable, "-c", PLAYED, backend, example, *REAL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert printed == dict(PRINTED.findall(DOCUMENTS[example]))


@pytest.mark.parametrize("example", DOCUMENTS)
def test_every_piece_of_code_in_the_document_stands_in_the_example(example):
    found, document = functions(example), DOCUMENTS[example]
    quoted = re.findall(r"^(?:async )?def (\w+)", "\n".join(CODE.findall(document)), re.MULTILINE)
    assert set(quoted) == set(found) - {"main"}
    for name in quoted:
        assert found[name] in document, f"{name} is not as in examples/{example}.py"


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
        section = DOCUMENTS["policies"].split(f"\n### {title}\n", 1)[1].split("\n#", 1)[0]
        assert re.search(r"^    .*[├└┌─]", section, re.MULTILINE), title
