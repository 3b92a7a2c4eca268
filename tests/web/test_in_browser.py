"""The dashboard in a real browser, as an operator uses it: on asyncio from its own process, on trio by its socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from urllib.parse import quote

import anyio
import pytest
import uvicorn
from anyio import to_thread

from lanes import LaneSpec, RetrySpec
from runtime import Supervisor
from runtime.web import dashboard, serve
from runtime.web.guard import Guard
from runtime.web.pages import MOST_ROWS
from tests import blocking
from tests.children import crowded
from tests.peers import peer
from tests.poll import eventually
from tests.supervised import gone, lines_of, on_trio, path_of
from tests.web.reader import abandoned, ended

pytestmark = pytest.mark.backends("asyncio", "trio")
HOSTILE = "a\"'<script>alert(1)</script>&amp;{{7*7}}/../\u202e\u200b?x=1#y%00\N{GRINNING FACE}"
SHOWN = "a\"'<script>alert(1)</script>&amp;{{7*7}}/../\\u{202e}\\u{200b}?x=1#y%00\N{GRINNING FACE}"
BODY = "</code><img src=x onerror=alert(1)>\x1b[2J"


LANE = f"session:{HOSTILE}"


async def handle(ctx, messages):
    body = messages[-1].body
    if messages[-1].answer is not None:
        await ctx.session.append({"answered": messages[-1].answer.value})
        return
    if body == "ask":
        raise await ctx.ask(f"Delete {BODY}?", options=[BODY, "no"])
    if body == "ask freely":
        raise await ctx.ask("Which one?")
    if body == "fail":
        raise RuntimeError(BODY)
    await ctx.session.append({"content": body})
    if body == "wait":
        await anyio.sleep_forever()


def supervisor(tmp_path):
    lanes = [
        LaneSpec("session:*", handler=handle, grace=0.05, retry=RetrySpec(attempts=2, wait=0.001)),
        LaneSpec("one", grace=0.05),
    ]
    return Supervisor(tmp_path / "sessions", lanes=lanes, drain_timeout=0.0, inbox=True, status_socket=tmp_path / "s")


@pytest.fixture
async def sup(tmp_path):
    async with supervisor(tmp_path) as sup:
        await anyio.wait_all_tasks_blocked()  # the tasks of its inbox have begun: none of them is the test's
        yield sup


class Beside(uvicorn.Server):
    """A server that leaves the signals to the tests."""

    @contextmanager
    def capture_signals(self):
        yield


@asynccontextmanager
async def served(sup, chromium, tmp_path) -> AsyncIterator[str]:
    """The address of the pages of a supervisor, as long as the block runs."""
    with blocking.permitted("takes a port"):
        listener = serve.listening("127.0.0.1", 0, "--port")
    async with AsyncExitStack() as stack:
        if on_trio():
            server = serve.server_of(str(tmp_path / "s"), Guard(None, (), allow_control=True), show_content=True)
            beside = serve.beside(server, listener)
            beside.__enter__()
            stack.push_async_callback(to_thread.run_sync, beside.__exit__, None, None, None)
        else:
            app = dashboard(sup, allow_control=True, show_content=True)
            server = Beside(uvicorn.Config(app, log_level="error", lifespan="off"))
            tasks = await stack.enter_async_context(anyio.create_task_group())
            tasks.start_soon(server.serve, [listener])
            stack.callback(setattr, server, "should_exit", True)
        stack.callback(chromium.leave)  # first, since a server that ends waits for its streams
        yield serve.url_of(listener, "127.0.0.1")


@pytest.fixture
async def stuck(sup):
    """An abandoned body."""
    (body,) = await abandoned(sup, "one")
    yield
    body.release()
    await gone(sup)


async def test_whatever_is_written_it_is_text_on_each_page(sup, stuck, chromium, tmp_path):
    for text in ("fail", "ask"):
        await sup.accept(LANE, text)
    await eventually(lambda: len(sup.parked()) == 1 and not sup.runs())
    first, _ = sup.post(LANE, "wait"), sup.post(LANE, BODY)
    await eventually(lambda: first.started_at is not None)
    keyed = f"session?key={quote(HOSTILE, safe='')}"
    paths = ["", f"run?id={first.id}", keyed, "timeline", "abandoned", "inbox?state=waiting"]
    bodies = ["inbox?state=parked", "asks", "parked"]
    found: dict[str, str] = {}

    def reads(page):
        for path in paths + bodies:
            page.goto(url + path)
            page.wait_for_selector("#connection:text-is('Live')")
            found[path] = page.inner_text("main")
            assert not page.query_selector_all("main script, main img, main [onerror], main [style]"), path
        page.set_viewport_size({"width": 390, "height": 844})
        for path in paths + bodies:
            page.goto(url + path)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path

    async with served(sup, chromium, tmp_path) as url:
        await chromium.do(reads)
    assert [path for path, text in found.items() if SHOWN not in text] == ["abandoned"]
    assert [path for path, text in found.items() if "<img src=x onerror=alert(1)>" in text] == bodies
    assert "_released.wait()" in found["abandoned"] and "_released.wait()" in found[""]
    await ended(sup)


async def test_a_page_keeps_up_and_what_is_stuck_is_stopped_from_it(sup, chromium, tmp_path):
    first = sup.post("session:alice", "wait")

    def opens(page):
        page.goto(url)
        page.wait_for_selector(f"#part_running >> text=run {first.id}")
        page.evaluate("window.loaded = 'once'")

    def stops(page):
        page.wait_for_selector(f"#part_waiting >> text=run {second.id}")
        assert page.evaluate("window.loaded") == "once"
        page.click(f"#part_running >> [aria-label='Stop run {first.id}']")
        page.wait_for_selector(f"main [role=status]:has-text('run {first.id} on lane session:alice, running, was')")
        assert page.evaluate("location.search") == f"?id={first.id}"  # not what the notice was kept under

    def sees_the_next(page):
        page.goto(url)
        page.wait_for_selector(f"#part_running >> text=run {second.id}")
        page.evaluate("window.loaded = 'once'")

    def sees_it_end(page):
        page.wait_for_selector("#part_running >> text=Nothing runs.")
        assert page.evaluate("window.loaded") == "once"

    async with served(sup, chromium, tmp_path) as url:
        await chromium.do(opens)
        second = sup.post("session:alice", "wait")
        await chromium.do(stops)
        await eventually(lambda: second.started_at is not None)
        assert first.reason == "stopped by an operator"
        await chromium.do(sees_the_next)
        await ended(sup)
        await chromium.do(sees_it_end)


async def asked(sup, number):
    """Wait until so many questions wait for a person."""
    with anyio.fail_after(30):
        while len(await sup.asks()) != number:
            await anyio.sleep(0.01)


async def test_questions_are_answered_by_hand_and_no_news_takes_away_what_is_typed(sup, chromium, tmp_path):
    await sup.accept("session:alice", "ask freely")
    await asked(sup, 1)

    def begins(page):
        page.goto(url + "asks")
        page.wait_for_selector("#connection:text-is('Live')")
        page.type("[name=text]", "the first")
        page.evaluate(
            "new EventSource(location.href).addEventListener('part', e => { if (e.data.includes('session:bob'))"
            " document.body.dataset.told = 'yes'; })"
        )

    def ends(page):
        page.wait_for_selector("body[data-told=yes]", state="attached")
        page.type("[name=text]", " one")
        page.keyboard.press("Enter")
        page.wait_for_selector("main [role=status]:has-text('is answered')")
        page.click("button:has-text('onerror')")
        page.wait_for_selector("text=No question waits")

    async with served(sup, chromium, tmp_path) as url:
        await chromium.do(begins)
        await sup.accept("session:bob", "ask")
        await asked(sup, 2)
        await chromium.do(ends)
    await asked(sup, 0)
    await eventually(lambda: not sup.runs())
    alice, bob = (lines_of(path_of(sup, key)) for key in ("alice", "bob"))
    assert alice == [{"answered": "the first one"}] and bob == [{"answered": BODY}]


@pytest.mark.backends("trio")  # a process that serves its own pages takes them along
async def test_a_process_that_goes_away_is_said_to_have_and_comes_back_by_itself(chromium, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def opens(page):
        page.goto(url)
        page.evaluate("window.loaded = 'once'")
        page.wait_for_selector("#part_running >> text=Nothing runs.")

    def comes_back(page):
        page.wait_for_selector("#gone", state="detached")
        assert page.evaluate("window.loaded") == "once"

    async with served(None, chromium, tmp_path) as url:
        async with supervisor(tmp_path):
            await chromium.do(opens)
        await chromium.do(lambda page: page.wait_for_selector("#gone >> text=No answer for"))
        async with supervisor(tmp_path):
            await chromium.do(comes_back)


@pytest.mark.backends("asyncio")
async def test_a_hundred_thousand_waiting_runs_freeze_neither_the_page_nor_the_loop_that_serves_it(chromium, tmp_path):
    def looks(page):
        page.goto(url)
        page.wait_for_selector("#connection:text-is('Live')")
        page.wait_for_selector(f"#part_lanes >> text=and {crowded.LANES - MOST_ROWS} more")
        elements = page.evaluate("document.querySelectorAll('*').length")
        page.click("nav >> text=Timeline")
        page.wait_for_selector("#part_timeline >> text=more runs")
        return elements

    with peer("crowded", tmp_path) as other:
        url = await eventually(lambda: next(iter(other.lines), ""), within=150.0)
        assert await chromium.do(looks) < 2000
        chromium.leave()
        other.tell("enough")
        await eventually(lambda: len(other.lines) == 2)
        assert float(other.lines[1]) < 1.0
