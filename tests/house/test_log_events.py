"""Every log event of the three packages stands in the table of `docs/operations.md`, with its level and its fields.

The calls are read, not run: `log("event", level=..., field=...)`, and the same through `partial`, or through a method
`_log` (which posts to the loop) or `note` (which logs as a warning once a mutex is free).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests import ROOT

DOCUMENT = ROOT / "docs" / "operations.md"
HEADER = "| event | level | fields | means |"
LEVELS = ("debug", "info", "warning", "error", "critical")
LOGGERS = {"log": "info", "_log": "info", "note": "warning"}
"""What logs, and the level that it has when none is given."""


@dataclass
class Event:
    """An event, over all places that log it."""

    levels: set[str] = field(default_factory=set)
    fields: dict[str, None] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)

    def cells(self) -> tuple[str, str]:
        """Its level, or levels, and its fields, as the table has them."""
        return ", ".join(level for level in LEVELS if level in self.levels), ", ".join(self.fields)


class Unreadable(Exception):
    """A call whose event, level or fields cannot be told from its text."""


def sources() -> dict[str, ast.Module]:
    """All modules of the three packages, by path."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for package in ("locks", "lanes", "runtime")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def logged(modules: dict[str, ast.Module]) -> dict[str, Event]:
    """What is logged, by the name of the event."""
    found: dict[str, Event] = {}
    records = dict(_records(modules))
    for path, module in modules.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and (read := _call(node)) is not None:
                default, first, keywords = read
                place = f"{path}:{node.lineno}"
                try:
                    levels, fields = _levels(keywords, default), _fields(keywords, records)
                    names = _texts(first)
                except Unreadable as error:
                    raise Unreadable(f"{place}: {error}: {ast.unparse(node)}") from None
                for name in names:
                    event = found.setdefault(name, Event())
                    event.levels |= levels
                    event.fields |= fields
                    event.places.append(place)
    return found


def _call(node: ast.Call) -> tuple[str, ast.expr, list[ast.keyword]] | None:
    """Default level, event and keywords of a call that logs; `None` for others, and for what passes an event on."""
    function, arguments = node.func, node.args
    if isinstance(function, ast.Name) and function.id == "partial" and arguments:
        function, arguments = arguments[0], arguments[1:]
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    if name not in LOGGERS or not arguments or ast.unparse(function) == "math.log":
        return None
    if isinstance(arguments[0], ast.Name) and arguments[0].id == "event":
        return None  # the function around it is one of `LOGGERS`, or hands on what one has noted
    return LOGGERS[name], arguments[0], node.keywords


def _texts(node: ast.expr) -> set[str]:
    """What a text, or a choice between texts, may be."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp():
            return _texts(node.body) | _texts(node.orelse)
    raise Unreadable(f"{ast.unparse(node)!r} is no text")


def _levels(keywords: list[ast.keyword], default: str) -> set[str]:
    given = [keyword.value for keyword in keywords if keyword.arg == "level"]
    return _texts(given[0]) if given else {default}


def _fields(keywords: list[ast.keyword], records: dict[str, list[str]]) -> dict[str, None]:
    fields: dict[str, None] = {}
    for keyword in keywords:
        if keyword.arg is not None:
            fields |= dict.fromkeys([keyword.arg] if keyword.arg != "level" else [])
            continue
        name = ast.unparse(keyword.value.func) if isinstance(keyword.value, ast.Call) else ""
        if name not in records:
            raise Unreadable(f"the fields of **{ast.unparse(keyword.value)} are not known")
        fields |= dict.fromkeys(records[name])
    return fields


def _records(modules: dict[str, ast.Module]) -> Iterator[tuple[str, list[str]]]:
    """The functions that return a dictionary with known keys, for calls with `**fields(run)`."""
    for module in modules.values():
        for node in ast.walk(module):
            match node:
                case ast.FunctionDef(name=name, body=[*_, ast.Return(value=ast.Dict(keys=keys))]) if all(
                    isinstance(key, ast.Constant) for key in keys
                ):
                    yield name, [ast.literal_eval(key) for key in keys if key is not None]


def documented(text: str) -> list[tuple[str, str, str]]:
    """The rows of the table: event, level, fields."""
    table = text[text.index(HEADER) :].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| [^|]+ \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n") - (table.endswith("\n")) - 1, (
        "a row that is none: | `event` | level | fields | means |"
    )
    return rows


def complaints(events: dict[str, Event], rows: list[tuple[str, str, str]]) -> list[str]:
    """What the code and the table do not agree about, each with the row that should be there."""
    found = [f"`{name}` has {number} rows" for name, number in Counter(row[0] for row in rows).items() if number > 1]
    for name, event in events.items():
        level, fields = event.cells()
        row, where = f"| `{name}` | {level} | {fields} | … |", ", ".join(event.places)
        if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", name):
            found.append(f"{where}: {name!r} is no event name: words in snake case")
        of_it = [one for one in rows if one[0] == name]
        if not of_it:
            found.append(f"{where}: not in the table; add\n    {row}")
        for _, its_level, its_fields in of_it:
            if its_level != level or set(its_fields.split(", ")) != set(fields.split(", ")):
                found.append(f"{where}: the table says {its_level} | {its_fields}; it should say\n    {row}")
    found += [f"nothing logs `{name}`: remove its row" for name, *_ in rows if name not in events]
    return found


def test_the_table_of_log_events_and_the_code_say_the_same():
    events = logged(sources())
    found = complaints(events, documented(DOCUMENT.read_text()))
    assert not found, "docs/operations.md, log lines:\n" + "\n".join(found)
    assert len(events) >= 40


# The checker

CODE = """
def fields(run):
    return {"run": run.id, "lane": run.lane}
log("one_thing", x=1)
log("bad_end", level="error", **fields(run), why="")
post(partial(log, "one_thing", level="warning" if x else "error", y=2))
self._log(event, **fields)
entry.note("note_made" if x else "note_kept", path="")
math.log(2)
"""
TABLE = f"""{HEADER}
|---|---|---|---|
| `one_thing` | info, warning, error | x, y | … |
| `bad_end` | error | run, lane, why | … |
| `note_made` | warning | path | … |
| `note_kept` | warning | path | … |

| `elsewhere` | info | x | another table |
"""


def of(code: str, table: str = TABLE) -> list[str]:
    return complaints(logged({"a.py": ast.parse(code)}), documented(table))


def test_all_ways_to_log_are_read():
    assert of(CODE) == []


@pytest.mark.parametrize(
    "what, by, complaint",
    [
        (
            "| `bad_end` | error | run, lane, why | … |\n",
            "",
            "not in the table; add\n    | `bad_end` | error | run, lane, why | … |",
        ),
        ("run, lane, why", "run, lane, reason", "the table says error | run, lane, reason; it should say"),
        ("`bad_end` | error", "`bad_end` | warning", "the table says warning | run, lane, why; it should say"),
        ("`note_kept`", "`note_lost`", "nothing logs `note_lost`: remove its row"),
        ("| `note_kept`", "| `note_made` | warning | path | … |\n| `note_kept`", "`note_made` has 2 rows"),
    ],
    ids=["removed", "field", "level", "renamed", "twice"],
)
def test_a_table_that_is_wrong_is_found(what, by, complaint):
    assert what in TABLE
    assert any(complaint in one for one in of(CODE, TABLE.replace(what, by)))


@pytest.mark.parametrize(
    "code", ["log(name, x=1)", "log('a_b', level=x)", "log('a_b', **those)", "log('a_b', **other(x))"]
)
def test_what_cannot_be_read_is_not_passed_over(code):
    with pytest.raises(Unreadable, match=r"a\.py:1: "):
        of(code)


@pytest.mark.parametrize("name", ["OneThing", "one-thing", "one thing", "_one"])
def test_an_event_is_named_in_snake_case(name):
    assert any("is no event name" in one for one in of(f"log({name!r})"))
