"""One page with all pictures and figures of a result. It needs no other file, no script and no network."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from html import escape

from .explain import CHOICES, explained
from .results import Answer, Result, Row
from .summary import lines
from .text import number, peers_of

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1, h2 { line-height: 1.2 } h2 { margin-top: 3rem }
img { width: 100%; height: auto }
table { border-collapse: collapse; font-size: 0.85rem }
th, td { padding: 0.15rem 0.6rem; border-bottom: 1px solid #ccc }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
summary { cursor: pointer } .bad { font-weight: bold; border: 2px solid #111; padding: 0.5rem }
"""


def page(result: Result, pictures: Mapping[str, bytes], without: str = "") -> str:
    """The page, with the SVG of each question that has one. `without` says why there are none."""
    body = "\n".join(_body(result, pictures, without))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>lanes bench</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(result: Result, pictures: Mapping[str, bytes], without: str) -> Iterator[str]:
    yield "<h1>Locks and lanes, measured</h1>"
    machine = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in result.machine.items())
    yield f"<p>{escape(result.started)}. {escape(machine)}.</p>"
    yield f"<p>{escape(', '.join(f'{name} {version}' for name, version in result.versions.items()))}.</p>"
    yield (
        "<p>Bars and points are medians of rounds in which all peers had their turn; the thin line is the range of the "
        "samples. × is the ratio to the hatched floor in the same rounds. This project's peers are black.</p>"
    )
    if without:
        yield f'<p class="bad">No pictures: {escape(without)}</p>'
    yield from _summary(result)
    answers = {name: answer for name, answer in result.questions.items() if answer.rows}
    for name, answer in answers.items():
        yield from _question(name, answer, pictures.get(name))
    if result.left_out:
        yield "<h2>Left out</h2>"
        yield _list(f"{one.question}: {one.peer}: {one.why}" for one in result.left_out)
    yield "<h2>Peers</h2>"
    yield _list(peers_of(result))


def _summary(result: Result) -> Iterator[str]:
    """What each question says of this project beside the best of the others. Where a peer is faster, it is bold."""
    yield "<h2>What to choose</h2>"
    yield "<ul>"
    for situation, choice in CHOICES.items():
        linked = re.sub(r"\[([\w-]+)\]", r'(<a href="#\1">\1</a>)', escape(choice))
        yield f"<li><b>{escape(situation)}</b>: {linked}</li>"
    yield "</ul>"
    yield "<h2>In short</h2>"
    yield (
        "<p>In bold: a peer that is better than this project. Why, and what it leaves out for that, stands at its "
        "question. The floor is no peer: it is what a lock or a task costs at least.</p>"
    )
    yield f"<table>{_heads('question', '', 'lanes', 'best peer', 'floor')}"
    for line in lines(result):
        best = f"<b>{escape(line.best)}</b>" if line.faster else escape(line.best)
        cells = [escape(line.subject), escape(line.measured), best, escape(line.floor)]
        link = f'<a href="#{escape(line.question)}">{escape(line.question)}</a>'
        yield f"<tr><td>{link}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</table>"


def _heads(*heads: str) -> str:
    return f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"


def _question(name: str, answer: Answer, picture: bytes | None) -> Iterator[str]:
    text = explained(name)
    yield f'<h2 id="{escape(name)}">{escape(answer.title)}</h2>'
    if text.asks:
        yield f"<p>{escape(text.asks)}</p>"
    for row in answer.rows:
        if row.violations and row.metric == answer.rows[0].metric:
            yield (
                f'<p class="bad">{escape(_subject(answer, row))} let another holder in {row.violations:,} times: '
                "its figures are those of a lock that does not exclude.</p>"
            )
    if picture is not None:
        data = b64encode(picture).decode("ascii")
        alt = escape(f"{answer.title} The figures are in the table below.")
        yield f'<img src="data:image/svg+xml;base64,{data}" alt="{alt}">'
    if text.why:
        yield f"<p>{escape(text.why)}</p>"
    yield f"<details{'' if picture else ' open'}><summary>All figures</summary>"
    yield f"<table>{_heads('peer', 'metric', 'median', 'least', 'most', '× floor', '')}"
    for row in answer.rows:
        yield _row(answer, row)
    yield "</table></details>"


def _row(answer: Answer, row: Row) -> str:
    ratio = answer.ratio(row)
    samples = [row.median, min(row.samples), max(row.samples)] if row.samples else [None] * 3
    numbers = "".join(
        f'<td class="number">{"–" if value is None else number(value)}</td>' for value in (*samples, ratio)
    )
    subject, metric, note = (f"<td>{escape(text)}</td>" for text in (_subject(answer, row), row.metric, row.note))
    return f"<tr>{subject}{metric}{numbers}{note}</tr>"


def _subject(answer: Answer, row: Row) -> str:
    at = "" if row.x is None else f", {row.x:,.0f} {answer.x}"
    return f"{row.peer} ({row.backend}{at})"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
