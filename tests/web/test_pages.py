"""The pages of the dashboard: what an operator reads there, whatever the keys look like, and what an order does."""

from __future__ import annotations

import re

import anyio
import pytest
from starlette.applications import Starlette
from structlog.testing import capture_logs

from lanes import LaneSpec, RunSuperseded
from runtime import Supervisor
from runtime.web import dashboard
from runtime.web.visible import visible
from tests.poll import eventually
from tests.supervised import gone
from tests.web.reader import abandoned, browser, ended, order, secret_of, streaming, tags_of, text_of

pytestmark = pytest.mark.backends("asyncio", "trio")
HOSTILE = "a\"'<script>alert(1)</script>&amp;{{7*7}}/../\u202e\u200b?x=1#y%00\N{GRINNING FACE}"


async def waits(ctx):
    await anyio.sleep_forever()


@pytest.fixture
async def sup(tmp_path):
    lanes = [LaneSpec("session:*", grace=0.05), LaneSpec("one", grace=0.05)]
    async with Supervisor(tmp_path, lanes=lanes, drain_timeout=0.0) as sup:
        yield sup


@pytest.fixture
def app(sup):
    return dashboard(sup, allow_control=True)


async def test_it_shows_what_runs_what_waits_and_for_whom(sup, app):
    first = sup.submit("session:alice", waits)
    second = sup.submit("session:alice", waits)
    async with browser(app) as web:
        await anyio.sleep(0.01)
        page = await web.get("/")
    text = text_of(page.text)
    assert page.status_code == 200 and len(page.content) < 50_000
    assert re.search(rf"run {first.id} session:alice ran 0\.\d s, . min \d+ s left; 1 waits for it", text)
    assert re.search(rf"run {second.id} session:alice waited 0\.\d s for .*run {first.id} on lane session:alice", text)
    assert "in waits: await anyio.sleep_forever()" in text
    assert re.search(r'aria-label="1 of \d+ slots taken"', page.text)
    await ended(sup)


async def test_problems_come_first_and_a_stuck_run_shows_its_guilty_line(sup, app):
    bodies = await abandoned(sup, *(f"session:{number}" for number in range(7)))
    async with browser(app) as web:
        text = text_of((await web.get("/")).text)
        all_of_them = text_of((await web.get("/abandoned")).text)
    stuck, groups = text.index("Stuck"), text.index("Groups")
    assert stuck < text.index("supervised.py") < groups and "await self._released.wait()" in text
    assert text.count("and still runs") == 5 and "and 2 more abandoned" in text
    assert all_of_them.count("and still runs") == 7
    for body in bodies:
        body.release()
    await gone(sup)


async def test_a_run_shows_where_it_stands_line_by_line(sup, app):
    run = sup.submit("session:alice", waits)
    await anyio.sleep(0.01)
    async with browser(app) as web:
        page = await web.get(f"/run?id={run.id}")
        unknown = await web.get("/run?id=99")
        bad = [
            await web.get(f"/run?id={given}") for given in ("", "x", "0", "-1", "1e3", "9" * 30, "%F0%9F%98%80", "²")
        ]
        none = await web.get("/nothing")
    text = text_of(page.text)
    assert f"run {run.id} on lane session:alice" in text and "in waits await anyio.sleep_forever()" in text
    assert unknown.status_code == 404 and "99 is not known here" in text_of(unknown.text)
    assert [one.status_code for one in bad] == [422] * len(bad)
    assert none.status_code == 404 and "no such page" in none.text
    await ended(sup)


async def test_a_stopped_run_ends_and_the_next_of_its_session_starts(sup, app):
    first = sup.submit("session:alice", waits)
    second = sup.submit("session:alice", waits)
    async with browser(app) as web:
        secret = secret_of((await web.get("/")).text)
        with capture_logs() as lines:
            done = await order(web, secret, do="stop", run=first.id, reason="too long <b>")
        assert done.status_code == 303
        page = await web.get("/" + done.headers["location"].removeprefix("./"))
        again = await web.get("/" + done.headers["location"].removeprefix("./"))
        await first.wait()
        late = await order(web, secret, do="stop", run=first.id)
    assert f"run {first.id} on lane session:alice, running, was asked to end: too long <b>" in text_of(page.text)
    assert "was asked to end: too long <b></p>" not in again.text  # it is said once
    assert first.reason == "too long <b>" and late.status_code == 409 and "has ended already" in late.text
    await eventually(lambda: second.started_at is not None)
    told = [(one["what"], one["run"], one["by"]) for one in lines if one["event"] == "operator_asked"]
    assert told == [("stop", first.id, "dashboard, 127.0.0.1")]
    await ended(sup)
    await ended(sup)


async def test_a_superseded_run_says_so_to_its_sender_and_the_next_one_starts(sup, app):
    first, second = sup.submit("session:alice", waits), sup.submit("session:alice", waits)
    async with browser(app) as web:
        secret = secret_of((await web.get(f"/run?id={first.id}")).text)
        with capture_logs() as lines:
            done = await order(web, secret, do="supersede", run=first.id)
        assert done.status_code == 303
        with pytest.raises(RunSuperseded):
            await first.result()
        assert (await order(web, secret, do="supersede", run=first.id)).status_code == 409
    assert first.reason == "superseded by an operator"
    assert [(one["what"], one["run"]) for one in lines if one["event"] == "operator_asked"] == [("supersede", first.id)]
    await eventually(lambda: second.started_at is not None)
    await ended(sup)


@pytest.mark.parametrize("fields", [{"do": "stop"}, {"do": "x", "run": 1}, {"do": "stop", "run": "x"}, {}])
async def test_an_order_that_makes_no_sense_is_refused(sup, app, fields):
    run = sup.submit("session:alice", waits)
    async with browser(app) as web:
        secret = secret_of((await web.get("/")).text)
        refused = await order(web, secret, **fields)
    assert refused.status_code == 422 and run.outcome is None and not run.reason
    await ended(sup)


async def test_whatever_a_key_looks_like_it_is_text(sup, app):
    run = sup.submit(f"session:{HOSTILE}", waits)
    sup.submit(f"session:{HOSTILE}", waits)
    await anyio.sleep(0.01)
    async with browser(app) as web:
        pages = [await web.get(path) for path in ("/", f"/run?id={run.id}")]
    async with streaming(app) as stream:
        await eventually(lambda: bool(stream.parts()))
    for page in [one.text for one in pages] + [stream.latest()]:
        assert "a\"'<script>alert(1)</script>&amp;{{7*7}}/../\\u{202e}\\u{200b}?x=1#y%00\N{GRINNING FACE}" in text_of(
            page
        )
        scripts = [attributes for tag, attributes in tags_of(page) if tag == "script"]
        assert all((one.get("src") or "").startswith("static/lanes.js?") for one in scripts)
        assert not any(name.startswith("on") or name == "style" for _, given in tags_of(page) for name in given)
    await ended(sup)


def test_what_cannot_be_seen_is_made_visible():
    assert visible("plain é 漢字") == "plain é 漢字"
    assert visible("a\0\x1b[1m\x7f\x85\n\udc80\u2066\u00a0b") == "a␀␛[1m␡\\u{85}␊\\u{dc80}\\u{2066} b"
    assert visible("a\n\tb\r", lines=True) == "a\n\tb␍"


async def test_it_is_mounted_in_two_lines_wherever_that_is(sup):
    host = Starlette()
    host.mount("/lanes", dashboard(sup, allow_control=True))
    run = sup.submit("session:alice", waits)
    async with browser(host, follow_redirects=True) as web:
        page = await web.get("/lanes")
        assert page.url.path == "/lanes/" and "session:alice" in page.text
        links = [given.get("href") or given.get("src") or given.get("action") for _, given in tags_of(page.text)]
        assert not [link for link in links if link and link.startswith(("/", "http", "//"))]
        for name in ("lanes.css", "lanes.js"):
            assert (await web.get(f"/lanes/static/{name}")).status_code == 200
        assert (await web.get("/lanes/static/app.py")).status_code == 404
        done = await web.post(
            "/lanes/act",
            data={"secret": secret_of(page.text), "do": "stop", "run": run.id},
            headers={"Sec-Fetch-Site": "same-origin"},
        )
        assert done.status_code == 200 and done.url.path == "/lanes/run"
    await ended(sup)


async def test_a_host_without_a_supervisor_says_so():
    async with browser(dashboard(lambda: None)) as web:
        page = await web.get("/")
    assert page.status_code == 200 and "no supervisor runs" in page.text
