"""The page and the pictures of `lanes bench`."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from runtime.bench import illustrate, results
from runtime.bench.explain import CHOICES, explained
from runtime.bench.page import page
from runtime.bench.pictures.draw import drawn, pictures
from runtime.bench.pictures.growth import apart
from runtime.bench.pictures.style import look_of, quantity
from runtime.bench.questions import QUESTIONS
from runtime.bench.results import Answer, LeftOut, Result, Row
from runtime.bench.stories.journal import Lifeline, Played
from runtime.bench.stories.story import STORIES
from runtime.bench.stories.verdict import LATE, LOST, MEMORY, STUCK
from runtime.cli import main

BARS = Answer(
    "What does <it> cost?",
    "µs",
    "lower",
    floor="floor",
    rows=[
        Row("floor", "blocking", "pair", samples=[1.0, 1.1]),
        Row("lanes", "trio", "pair", samples=[90.0, 80.0]),
        Row("legacy", "asyncio", "pair", samples=[5.0], violations=3, note="<b>"),
        Row("other", "asyncio", "pair", samples=[2.0]),
        Row("lanes", "trio", "of nothing", samples=[0.0]),
        Row("gone", "asyncio", "pair", note="never got the lock"),
    ],
)
GROWTH = Answer(
    "How does it grow?",
    "holds/s",
    "higher",
    x="waiters",
    rows=[
        Row(peer, "asyncio", "holds", x, [1000 / x], violations=int(peer == "b"))
        for peer in ("lanes", "lanes-no-lock-file", "b")
        for x in (1.0, 3.0, 9.0)
    ],
)
TWO_SIZES = Answer(
    "How?",
    "ms",
    "lower",
    x="processes",
    rows=[
        Row("lanes", "trio", "p50", 8.0, [2.0]),
        Row("b", "trio", "p50", 8.0, [1.0]),
        Row("lanes", "trio", "p50", 2.0, [1.0]),
    ],
)
NOUGHT = Answer("Of nothing?", "B", "lower", x="keys", rows=[Row("a", "asyncio", "kept", x, [0.0]) for x in (1, 2, 3)])
PLAYED = Played(
    "story-86004",
    200.0,
    {LOST: 1, STUCK: 700.0, LATE: 1, MEMORY: 3.0},
    [
        Lifeline("first", "session", True, 0, 1, 300, "timed out", late_s=1110),
        Lifeline("lost", "session", True, 20, None, 80, "gave up"),
        Lifeline("waits", "main", False, 1300),
        Lifeline("refused", "main", True, 1, 2, 300, "abandoned", refused_s=400),
    ],
    [(0.0, 0.0), (1320.0, 3.0)],
    restarted_s=700.0,
)
STORY = Answer("A story", "", "lower", rows=[Row("legacy", "asyncio", LOST, samples=[1.0])], played={"legacy": PLAYED})


def result_of(**answers):
    return Result(
        started="2026-01-01",
        machine={"processor": "<fast>", "cores": 2},
        versions={"python": "3"},
        budget_s=1,
        questions=answers,
        left_out=[LeftOut("bars", "redis", "not <installed>")],
    )


RESULT = result_of(bars=BARS, growth=GROWTH, story=STORY, empty=Answer("Nothing?", "s", "lower"))


class Tags(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.references = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module", autouse=True)
def figures():
    """The pictures, drawn once: matplotlib keeps the files of its fonts open from then on."""
    found = dict(pictures(RESULT))
    return found, {name: drawn(figure, "svg").decode() for name, figure in found.items()}


def test_each_measured_question_gets_a_picture_of_its_kind(figures):
    figures, svgs = figures
    assert list(svgs) == ["bars", "growth", "story"]
    assert all("</svg>" in svg for svg in svgs.values())
    assert [len(figure.axes) for figure in figures.values()] == [2, 1, 2]
    bars, _ = figures["bars"].axes
    assert bars.get_xscale() == "log"  # 1 and 85 in one picture
    assert any("3 VIOLATIONS" in text.get_text() for text in bars.texts)
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == ["gone · asyncio", "lanes · trio", "legacy · asyncio", "other · asyncio", "floor"]
    assert any(text.get_text() == "never got the lock" for text in bars.texts)
    (growth,) = figures["growth"].axes
    assert growth.get_xscale() == growth.get_yscale() == "log"
    assert "b · asyncio 3 VIOLATIONS" in {text.get_text() for text in growth.texts}
    story, _ = figures["story"].axes
    assert {"late write", "refused", "soft restart", "timed out"} <= {text.get_text() for text in story.texts}


def test_the_same_figure_gives_the_same_bytes(figures):
    _, svgs = figures
    assert drawn(dict(pictures(RESULT))["bars"], "svg").decode() == svgs["bars"]


def test_pictures_have_no_colours(figures):
    _, svgs = figures
    colours = set(re.findall(r"#([0-9a-f]{6})\b", "".join(svgs.values())))
    assert len(colours) > 2
    assert all(colour[:2] == colour[2:4] == colour[4:] for colour in colours), colours


def test_own_peers_floor_and_legacy_model_are_told_apart_without_colour():
    looks = [look_of(peer, "floor") for peer in ("lanes", "floor", "legacy", "other")]
    assert len({(look.face, look.hatch) for look in looks}) == 4


def test_two_sizes_are_bars_side_by_side(figures):
    ((_, figure),) = pictures(result_of(two=TWO_SIZES))
    assert [axes.get_title("left") for axes in figure.axes] == ["p50, 2 processes", "p50, 8 processes"]


def test_nought_and_less_are_drawn(figures):
    less = Answer("Less?", "B", "lower", rows=[Row("a", "asyncio", "kept", samples=[-1.0]), *BARS.rows[3:4]])
    found = dict(pictures(result_of(nought=NOUGHT, less=less)))
    assert all(drawn(figure, "png") for figure in found.values())
    assert found["less"].axes[0].get_xlim()[0] == -1


def test_labels_are_moved_apart_as_little_as_needed():
    assert apart([0.1, 0.9], 0.05) == [0.1, 0.9]
    assert apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert apart([0.98, 1.0, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    found = apart([0.1, 0.12, 0.13, 0.3, 0.31], 0.05)
    assert all(b - a >= 0.0499 for a, b in pairwise(found))


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (12.34, "12.3"),
        (1234, "1,230"),
        (56_789, "56.8k"),
        (2_500_000, "2.5M"),
        (3e9, "3G"),
    ],
)
def test_numbers_are_short(value, text):
    assert quantity(value) == text


# The page


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(tmp_path):
    assert illustrate.write_page(str(tmp_path / "report.html"), RESULT).endswith("report.html: 3 pictures")
    text = (tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert all(reference.startswith(("#", "data:image/svg+xml;base64,")) for reference in tags.references)
    assert "<script" not in text and "<it>" not in text and "<fast>" not in text and "<installed>" not in text
    assert "What does &lt;it&gt; cost?" in text
    assert "legacy (asyncio) let another holder in 3 times" in text
    assert "bars: redis: not &lt;installed&gt;" in text


def test_the_page_begins_with_what_is_better_than_this_project():
    rows = [Row("lanes", "trio", "pair", samples=[2.0]), Row("lanes", "asyncio", "pair", samples=[2.0])]
    rows += [Row("fast", "trio", "pair", samples=[1.0]), Row("slow", "asyncio", "pair", samples=[9.0])]
    text = page(result_of(bars=Answer("?", "µs", "lower", rows=rows)), {})
    short = text[text.index("In short") : text.index("<h2 id=")]
    assert "<td>pair, trio</td><td>2 µs</td><td><b>fast: 1 µs</b></td>" in short
    assert "<td>pair, asyncio</td><td>2 µs</td><td>slow: 9 µs</td>" in short


def test_without_matplotlib_the_page_is_text_and_says_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "old.json").write_bytes(results.encode(RESULT))
    for name in [name for name in sys.modules if name.startswith("runtime.bench.pictures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["--html", str(tmp_path / "a.html"), "--pictures", str(tmp_path / "p")]
    assert main(["bench", "--from", str(tmp_path / "old.json"), *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"a.html: without pictures: {illustrate.NO_MATPLOTLIB}" in printed
    assert f"p: no pictures: {illustrate.NO_MATPLOTLIB}" in printed
    text = (tmp_path / "a.html").read_text()
    assert "<img" not in text and "No pictures: matplotlib is not installed" in text
    assert "<details open>" in text and "<td>lanes (trio)</td>" in text


def test_a_page_of_nothing_is_a_page():
    text = page(result_of(), {})
    assert "What to choose" in text and "<img" not in text


def test_every_question_is_explained_in_two_sentences():
    for question in QUESTIONS:
        text = explained(question.name)
        assert text.asks and text.why, question.name
    names = {question.name for question in QUESTIONS}
    assert {*STORIES} <= names
    assert {*re.findall(r"\[([\w-]+)\]", " ".join(CHOICES.values()))} <= names


# The command


def test_an_earlier_run_is_shown_and_drawn_without_measuring(tmp_path, capsys):
    (tmp_path / "old.json").write_bytes(results.encode(RESULT))
    assert main(["bench", "--from", str(tmp_path / "old.json"), "--pictures", str(tmp_path / "made" / "p")]) == 0
    assert sorted(path.name for path in (tmp_path / "made" / "p").iterdir()) == [
        f"{name}.{kind}" for name in ("bars", "growth", "story") for kind in ("png", "svg")
    ]
    assert "What does <it> cost?" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--from", "/no/such.json"], "/no/such.json: cannot be read: No such file"),
        (["--from", "x.json", "cost"], "--from: nothing is measured then, so QUESTION is not allowed beside it"),
        (["--from", "x.json", "--full"], "so --full is not allowed beside it"),
        (["--pictures", "/proc/none"], "--pictures: /proc/none: cannot be made: No such file"),
    ],
)
def test_what_contradicts_an_earlier_run_or_cannot_be_written_is_refused(capsys, arguments, said):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and said in printed.err
