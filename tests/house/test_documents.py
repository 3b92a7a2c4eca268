"""The documents: their code runs, each public name is shown with an example, and each page is in the site."""

from __future__ import annotations

import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import structlog

from locks import LockRegistry
from tests import ROOT
from tests.documents import blocks_of, run_page, sections_of, used_in

DOCS = ROOT / "docs"
ELSEWHERE = {
    "lanes.md": "its code is quoted from examples/policies.py, which test_policies_document runs",
    "pools.md": "its code is quoted from examples/pools.py, which test_policies_document runs",
    "docs/testing.md": "its code is a test file: tests/testing/test_plugin.py",
    "cluster.md": "its code needs a database: tests/postgres/test_cluster_document.py",
}
PAGES = [
    page
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if not {page.name, str(page.relative_to(ROOT))} & ELSEWHERE.keys()
    and any(True for _ in blocks_of(page.read_text("utf-8")))
]
FACES = {"locks": "locks", "lanes": "lanes", "runtime": "runtime", "lanes.testing": "testing"}
"""What has a page of the reference, and its name."""
BESIDE = {"runtime.asgi": ["Supervised"], "runtime.log": ["configure"], "runtime.metrics": ["SupervisorCollector"]}
"""Public names in modules of their own, since they need an extra or a program's own logging."""


GIVEN: dict[str, Any] = {"README.md": {"LockRegistry": LockRegistry}}
"""Names that the code of a page takes for granted."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))  # where processes look for each other's sockets
    settings, variables = structlog.get_config(), dict(os.environ)
    try:
        run_page(page, **GIVEN.get(page.name, {}))
    finally:
        structlog.configure(**settings)  # the page on log lines changes them
        os.environ.clear()
        os.environ.update(variables)  # and the one on the dashboard sets a token


def public_names():
    for package in FACES:
        yield from ((package, name) for name in import_module(package).__all__)
    for module, names in BESIDE.items():
        yield from ((module, name) for name in names)


def without_example(text: str, package: str, names: list[str]) -> list[str]:
    """The names that a page of the reference does not document beside code that uses them."""
    shown = dict[str, set[str]]()
    for section in sections_of(text):
        used = set[str]().union(*(used_in(block.code) for block in blocks_of(section) if block.shown))
        for found in re.findall(r"^::: ([\w.]+)$", section, re.MULTILINE):
            shown[found] = used
    return [
        f"{package}.{name}: {'no example in its section' if f'{package}.{name}' in shown else 'not documented'}"
        for name in names
        if name not in shown.get(f"{package}.{name}", ())
    ]


def test_every_public_name_is_documented_with_an_example():
    missing = []
    for package in (*FACES, *BESIDE):
        text = (DOCS / "reference" / f"{FACES.get(package, package.partition('.')[0])}.md").read_text("utf-8")
        missing += without_example(text, package, [name for of, name in public_names() if of == package])
    assert missing == []


def test_a_name_without_an_example_is_found():
    page = "# x\n\n## One\n\n```python\nRun(Lane.b)\n```\n\n::: x.Run\n::: x.b\n::: x.c\n\n## Two\n\n::: x.Lane\n"
    assert without_example(page, "x", ["Run", "b"]) == []
    assert without_example(page, "x", ["Lane", "c", "d"]) == [
        "x.Lane: no example in its section",
        "x.c: no example in its section",
        "x.d: not documented",
    ]


def documented(package: str, name: str):
    """A public name and its members, each with its docstring."""
    thing = getattr(import_module(package), name)
    yield f"{package}.{name}", inspect.getdoc(thing) or ""
    if isinstance(thing, type):
        for member in (one for one in dir(thing) if not one.startswith("_")):
            yield f"{package}.{name}.{member}", inspect.getdoc(inspect.getattr_static(thing, member)) or ""


def test_the_reference_can_read_the_docstrings_of_public_names():
    """`make docs` warns of parameters that share a line, and of errors that have no name, and a warning fails it."""
    found = [
        f"{where}: {line.strip()}"
        for package, name in public_names()
        for where, text in documented(package, name)
        for line in "\n".join(re.findall(r"^(?:Args|Raises):\n((?:    .*\n?|\n)+)", text, re.MULTILINE)).splitlines()
        if re.match(r"    (What .*|\w+(, \w+)+: as .*)$", line)
    ]
    assert found == []


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]))
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages - listed == set(), "put them into `nav` of mkdocs.yml"


# Links


LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]*))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
CODE = re.compile(r"^```.*?^```$|^    .*$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def anchor_of(heading: str) -> str:
    """As the site makes it, and as a plain file shown by a forge has it: where the two differ, no link is sure."""
    words = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)).strip().lower()
    return re.sub(r"\s", "-", words)


def broken_links(page: Path, text: str) -> list[str]:
    """The links of a document to files that are not there, or to headings that the other document does not have."""
    found = []
    for target, anchor in LINK.findall(CODE.sub("", text)):
        other = (page.parent / target) if target else page
        if not other.exists():
            found.append(f"{page.name}: {target}")
        elif anchor and anchor not in map(anchor_of, HEADING.findall(other.read_text("utf-8"))):
            found.append(f"{page.name}: {target}#{anchor}")
    return found


def test_every_link_between_documents_leads_somewhere():
    pages = [
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    ]
    assert [link for page in pages for link in broken_links(page, page.read_text("utf-8"))] == []


def test_a_link_that_leads_nowhere_is_found():
    text = "[a](lanes.md) [b](nowhere.md) [c](lanes.md#queue) [d](lanes.md#nothing) [e](https://x.y/z) `[f](g.md)`"
    assert broken_links(DOCS / "concepts.md", text) == ["concepts.md: nowhere.md", "concepts.md: lanes.md#nothing"]
