"""The pages about kept work: sessions, the inbox, questions, parked and abandoned runs, and what ran when."""

from __future__ import annotations

import re
from urllib.parse import quote

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec, RetrySpec
from runtime import Supervisor
from runtime.status import protocol
from runtime.status.life import Lives
from runtime.status.rows import Bar
from runtime.web import dashboard, timeline
from runtime.web.app import Dashboard
from runtime.web.guard import Guard
from runtime.web.source import Inside, Outside
from runtime.web.views import Views
from tests.poll import eventually
from tests.supervised import gone, lines_of, on_trio, path_of
from tests.web.reader import abandoned, browser, ended, order, secret_of, tags_of, text_of

pytestmark = pytest.mark.backends("asyncio", "trio")
HOSTILE = "a\"'<script>alert(1)</script>&{{7*7}}/../\u202e?x=1#y%00\N{GRINNING FACE}"
BODY = "</code><img src=x onerror=alert(1)>\x1b[2J"


async def handle(ctx, messages):
    body = messages[-1].body
    if messages[-1].answer is not None:
        return messages[-1].answer.value
    if body == "ask":
        raise await ctx.ask("Delete <b>notes</b>?", options=["yes", {"no": 1}])
    if body == "fail":
        raise RuntimeError("<failed>")
    await ctx.session.append({"content": body})
    if body == "wait":
        await anyio.sleep_forever()
    return None


@pytest.fixture
async def sup(tmp_path):
    lanes = [
        LaneSpec("session:*", handler=handle, grace=0.05, retry=RetrySpec(attempts=2, wait=0.001)),
        LaneSpec("one", grace=0.05),
    ]
    async with Supervisor(
        tmp_path / "sessions", lanes=lanes, drain_timeout=0.0, inbox=True, status_socket=tmp_path / "s"
    ) as sup:
        await anyio.wait_all_tasks_blocked()  # the tasks of its inbox have begun: none of them is the test's
        yield sup


@pytest.fixture
async def app(sup, tmp_path):
    """The same pages: on asyncio from this process, on trio through its socket."""
    if not on_trio():
        return dashboard(sup, allow_control=True, show_content=True)
    return Dashboard(Views(Outside(str(tmp_path / "s")), show_content=True), Guard(None, (), allow_control=True))


class Noted(Inside):
    """A source that keeps what it has answered."""

    def __init__(self, sup):
        super().__init__(sup)
        self.answers = []

    async def ask(self, question, by):
        self.answers.append(await super().ask(question, by))
        return self.answers[-1]


def session_of(key):
    return f"/session?key={quote(key, safe='')}"


async def test_a_session_shows_who_conducts_it_who_waits_and_its_end(sup, app):
    first = sup.post(f"session:{HOSTILE}", "wait")
    second = sup.post(f"session:{HOSTILE}", BODY)
    await eventually(lambda: first.started_at is not None)
    async with browser(app) as web:

        async def shown():
            return (await web.get(session_of(HOSTILE))).text

        with anyio.fail_after(30):
            while "has no records" in await shown():
                await anyio.sleep(0.01)
        page = await shown()
        now = (await web.get("/")).text
        first.cancel()
        await second.wait()
        later = await shown()
        unknown = await web.get(session_of("never"))
        bad = [await web.get(path) for path in ("/session", session_of("x" * 1025), session_of("a\x00b"))]
    text = text_of(page)
    assert re.search(rf"run {first.id} on lane .*, running for .* run {second.id} on lane .*, queued for", text)
    assert f"Its turn is held by run {first.id} on lane" in text and '{"content":"wait"}' in text
    assert any(given.get("href") == session_of(HOSTILE)[1:] for _, given in tags_of(now))
    assert "</code><img src=x onerror=alert(1)>\\u001b[2J" in text_of(later)
    assert not [tag for tag, _ in tags_of(later) if tag == "img"]
    assert unknown.status_code == 200 and "It has no records" in unknown.text
    assert [one.status_code for one in bad] == [422, 422, 404]
    await ended(sup)


async def test_what_people_have_written_is_not_shown_unless_it_may_be(sup):
    await (await sup.accept("session:alice", BODY)).wait()
    run = sup.post("session:bob", "fail")
    asks = await sup.accept("session:carol", "ask")
    await run.wait()
    await asks.wait()
    await eventually(lambda: not sup.runs())
    source = Noted(sup)
    async with browser(Dashboard(Views(source, show_content=False), Guard(None, (), allow_control=False))) as web:
        for path in (session_of("alice"), "/inbox?state=done", "/asks", "/parked", "/timeline"):
            page = (await web.get(path)).text
            assert "session:" in page or "alice" in page
            assert "onerror" not in page and "notes" not in page and "&#34;fail&#34;" not in page
    sent = b"".join(map(protocol.encoded, source.answers))
    assert len(source.answers) >= 10 and not any(word in sent for word in (b"onerror", b"notes", b'\\"fail'))


async def test_a_question_is_answered_on_its_page(sup, app):
    await sup.accept("session:alice", "ask")
    with capture_logs() as lines:
        async with browser(app) as web:
            with anyio.fail_after(30):
                while "Delete" not in (page := (await web.get("/asks")).text):
                    await anyio.sleep(0.01)
            (ask,) = {given["value"] for _, given in tags_of(page) if given.get("name") == "id"}
            secret = secret_of(page)
            assert "Delete <b>notes</b>?" in text_of(page)
            assert {given["value"] for tag, given in tags_of(page) if tag == "button"} == {'"yes"', '{"no":1}'}
            bad = [
                (await order(web, secret, do="answer", id=ask, value=value)).status_code
                for value in ('"maybe"', "no json")
            ]
            done = await order(web, secret, do="answer", id=ask, value='{"no":1}')
            again = await order(web, secret, do="answer", id=ask, value='"yes"')
            assert "is answered" in text_of((await web.get(f"/{done.headers['location'][2:]}")).text)
            await eventually(lambda: not sup.runs())
            assert "No question waits" in (await web.get("/asks")).text
    assert (bad, done.status_code, again.status_code) == ([409, 422], 303, 409)
    assert [(one["what"], one["ask"]) for one in lines if one["event"] == "operator_asked"] == [("answer", ask)]


async def test_messages_of_the_inbox_are_listed_requeued_and_discarded(sup, app):
    for _ in range(2):
        await sup.accept("session:alice", "fail")
    await sup.accept("session:alice", "ask")
    await eventually(lambda: len(sup.parked()) == 2 and not sup.runs())
    async with browser(app) as web:
        page = (await web.get("/inbox?state=parked")).text
        secret = secret_of(page)
        ids = sorted({int(given["value"] or 0) for _, given in tags_of(page) if given.get("name") == "message"})
        assert "<failed>" in text_of(page) and '"fail"' in text_of(page)
        dropped = await order(web, secret, do="drop", message=ids[0], state="parked")
        assert dropped.headers["location"].startswith("./inbox?state=parked&notice=")
        assert (await order(web, secret, do="drop", message=ids[0])).status_code == 409
        assert len(sup.parked()) == 1
        assert (await order(web, secret, do="requeue", message=ids[1])).status_code == 303
        refused = [await order(web, secret, do="requeue", message=number) for number in (ids[0], 999, 0, "x", "1" * 30)]
        assert [one.status_code for one in refused] == [409, 409, 422, 422, 422]
        assert "asked a person" in (await web.get("/inbox?state=waiting")).text
        assert (await web.get("/inbox?state=nonsense")).status_code == 422
    await eventually(lambda: not sup.runs())


async def test_a_parked_run_is_submitted_again_or_forgotten(sup, app):
    runs = [sup.post("session:alice", "fail") for _ in range(2)]
    await eventually(lambda: len(sup.parked()) == 2)
    async with browser(app) as web:
        page = (await web.get("/parked")).text
        secret = secret_of(page)
        assert f"run {runs[0].id}" in text_of(page) and "RuntimeError: <failed>" in text_of(page)
        assert (await order(web, secret, do="discard", run=runs[0].id)).status_code == 303
        assert (await order(web, secret, do="discard", run=runs[0].id)).status_code == 409
        done = await order(web, secret, do="resubmit", run=runs[1].id)
        assert "was submitted again, as run" in text_of((await web.get(f"/{done.headers['location'][2:]}")).text)
        assert (await order(web, secret, do="resubmit", run=runs[1].id)).status_code == 409
    await eventually(lambda: not sup.runs())


async def test_a_session_is_started_afresh(sup, app):
    run, file = sup.post(f"session:{HOSTILE}", "wait"), path_of(sup, HOSTILE)
    await eventually(lambda: file.exists() and b'"wait"' in file.read_bytes())
    async with browser(app) as web:
        page = (await web.get(session_of(HOSTILE))).text
        done = await order(web, secret_of(page), do="reset", key=HOSTILE)
        assert done.headers["location"].startswith(f".{session_of(HOSTILE)}&notice=")
        bad = [await order(web, secret_of(page), do="reset", key=key) for key in ("", "x" * 2000, "a\x01b")]
        shown = text_of((await web.get(session_of(HOSTILE))).text)
    assert run.outcome is not None and "reset" in run.reason
    (aside,) = file.parent.glob("*.reset.*")
    assert f"Files that were put aside, the latest first {aside.name} The end of its transcript" in shown
    assert [one.status_code for one in bad] == [422, 422, 409]


async def test_a_run_shows_its_life_what_belongs_to_it_and_what_it_emits(sup, app):
    emit = anyio.Event()

    async def child(ctx):
        await anyio.sleep_forever()

    async def parent(ctx):
        ctx.submit("one", child)
        await ctx.session.append({"content": BODY})
        await emit.wait()
        for number in range(60):
            ctx.emit({"token": f"{number}{BODY}"})
        await anyio.sleep_forever()

    first = sup.submit("session:alice", parent)
    with anyio.fail_after(30):
        while len(sup.runs()) < 2:
            await anyio.sleep(0.01)
    second = next(run for run in sup.runs() if run.parent == first.id)
    async with browser(app) as web:
        page = text_of((await web.get(f"/run?id={first.id}")).text)
        assert f"run {second.id} submitted by it" in page and "this run running submitted 0." in page
        assert "What it holds turn of /" in page
        assert "What it emits 0 events since somebody looks." in page
        emit.set()
        with anyio.fail_after(30):
            while "60 events since somebody looks, 10 of them too fast" not in (
                shown := text_of((await web.get(f"/run?id={first.id}")).text)
            ):
                await anyio.sleep(0.01)
        assert '{"token":"59</code><img src=x onerror=alert(1)>\\u001b[2J"}' in shown and '"9</code>' not in shown
        assert f"run {first.id} submitted it" in text_of((await web.get(f"/run?id={second.id}")).text)
    async with browser(dashboard(sup)) as web:
        hidden = (await web.get(f"/run?id={first.id}")).text
        assert "events since somebody looks" in hidden and "token" not in hidden.partition("Where it stands")[0]
    await ended(sup)
    async with browser(app) as web:
        assert "cancelled: cancelled submitted" in text_of((await web.get(f"/run?id={first.id}")).text)


async def test_runs_that_are_looked_at_are_bounded_and_let_go(sup, monkeypatch):
    lives, runs = Lives(sup), [sup.submit("session:alice", handle, None) for _ in range(12)]
    for run in runs:
        assert lives.look(protocol.Life(run=run.id)) is not None
    assert len(lives._watched) == 8 and set(lives._watched) == {run.id for run in runs[4:]}
    monkeypatch.setattr("runtime.status.life._UNUSED_S", -1.0)
    assert lives.look(protocol.Life(run=99)) is None and not lives._watched
    await ended(sup)


async def test_a_note_is_appended_beside_whatever_runs(sup, app):
    run = sup.post("session:alice", "wait")
    await eventually(lambda: run.started_at is not None)
    async with browser(app) as web:
        page = (await web.get(session_of("alice"))).text
        secret = secret_of(page)
        with capture_logs() as lines:
            done = await order(web, secret, do="note", key="alice", text=f"careful {BODY}", role="system")
        assert done.status_code == 303
        shown = text_of((await web.get(f"/{done.headers['location'][2:]}")).text)
        bad = [
            await order(web, secret, do="note", **fields)
            for fields in ({"key": "alice"}, {"key": "", "text": "x"}, {"key": "a", "text": "x" * 8001})
        ]
        unsafe = await order(web, secret, do="note", key="a\x01b", text="x")
    assert "the note was appended to session alice" in shown and '"role":"system","content":"careful </code>' in shown
    assert [one.status_code for one in bad] == [422] * 3 and unsafe.status_code == 409 and run.outcome is None
    assert [(one["what"], one["session"]) for one in lines if one["event"] == "operator_asked"] == [("note", "alice")]
    assert [record["role"] for record in lines_of(path_of(sup, "alice")) if "role" in record] == ["system"]
    await ended(sup)


async def test_an_abandoned_body_is_shown_with_where_it_stood(sup, app):
    (body,) = await abandoned(sup, "one")
    async with browser(app) as web:
        page = text_of((await web.get("/abandoned")).text)
    assert "abandoned 0." in page and "Where it stood when it was abandoned File" in page
    body.release()
    await gone(sup)


async def test_a_timeline_shows_what_ran_when(sup, app):
    done, failed, waits = (sup.post("session:alice", body) for body in ("hello", "fail", "wait"))
    await eventually(lambda: waits.started_at is not None)
    async with browser(app) as web:
        page = (await web.get("/timeline?window=60")).text
        for window in ("", "x", "1", "nan", "-60", "61"):
            assert "The last 5 min 0 s" in text_of((await web.get(f"/timeline?window={window}")).text)
    links = [given.get("href") for _, given in tags_of(page)]
    assert {f"run?id={run.id}" for run in (done, failed, waits)} <= set(links)
    assert f"run {failed.id}, failed: RuntimeError: <failed>" in text_of(page)
    assert {"timeline?window=30", "timeline?window=300"} <= set(links)
    await ended(sup)


def test_runs_that_overlap_stand_on_lines_of_their_own():
    def bar(number, submitted, started, ended):
        return Bar(
            run=number,
            lane="a",
            session=None,
            state="done",
            reason="",
            submitted=submitted,
            started=started,
            ended=ended,
        )

    bars = [bar(1, 90.0, 80.0, 50.0), bar(2, 70.0, 60.0, None), bar(3, 45.0, None, None), bar(4, 40.0, 40.0, 30.0)]
    (row,) = timeline.rows_of(protocol.TimelinePart(window_s=100.0, bars=bars, left_out=0))
    placed = {mark.bar.run: (mark.line, mark.x, mark.waits, mark.width) for mark in row.marks}
    assert placed == {
        1: (0, 200.0, 100.0, 300.0),
        2: (1, 400.0, 100.0, 600.0),
        3: (0, 1000.0, 450.0, 0.0),
        4: (2, 600.0, 0.0, 100.0),
    }


async def test_a_full_process_costs_a_bounded_page(tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("*", queue_limit=None)], drain_timeout=0.0) as sup:
        for number in range(9000):
            sup.submit(f"lane {number % 1000}", handle, None)
        app = dashboard(sup)
        async with browser(app) as web:
            page = await web.get("/")
            sizes = [len((await web.get(f"/static/{name}")).content) for name in ("lanes.css", "lanes.js")]
            line = await web.get("/timeline")
        sup.cancel()
        await eventually(lambda: not sup.runs())
    assert len(page.content) + sum(sizes) < 50_000 and len(line.content) < 250_000
    assert "and 970 more" in text_of(page.text)
