"""Pages that keep up: what is sent, to how many, at what cost, and what becomes of a reader that does not read."""

from __future__ import annotations

import anyio
import pytest

from lanes import LaneSpec
from runtime import Supervisor
from runtime.status import protocol
from runtime.web import dashboard, live
from runtime.web.app import Dashboard
from runtime.web.guard import Guard
from runtime.web.views import Views
from tests.poll import eventually
from tests.web.reader import browser, ended, streaming

pytestmark = pytest.mark.backends("asyncio", "trio")


async def waits(ctx):
    await anyio.sleep_forever()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(live, "EVERY_S", 0.02)


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("one", grace=0.05)], drain_timeout=0.0) as sup:
        yield sup


class Counted:
    """A source that says what it is told to, and counts how often it is asked."""

    def __init__(self, picture: protocol.Picture | None = None) -> None:
        self.picture = picture
        self.asked = 0

    async def ask(self, question, by):
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        return protocol.Answer(error=protocol.Refused(kind="failed", message="gone <away>"))


def shows(source):
    return Dashboard(Views(source, show_content=False), Guard(None, (), allow_control=False))


async def test_a_page_is_told_what_has_changed_and_nothing_else(sup, fast):
    async with streaming(dashboard(sup)) as stream:
        await eventually(lambda: "Nothing runs." in stream.latest())
        assert stream.headers["content-type"].startswith("text/event-stream") and stream.status == 200
        run = sup.submit("one", waits)
        await eventually(lambda: f"run {run.id}</a>" in stream.latest())
        run.cancel()
        await eventually(lambda: "Nothing runs." in stream.latest())
    assert [one["id"] for one in stream.parts()].count("part_banner") == 1  # it never changed
    await ended(sup)


async def test_readers_of_a_page_share_what_is_made_for_it():
    source = Counted()
    app = shows(source)
    async with anyio.create_task_group() as tasks:
        async with streaming(app) as first, streaming(app) as second, streaming(app) as third:
            await eventually(lambda: all(one.parts() for one in (first, second, third)))
            assert source.asked == 1 and app._feeds.readers == 3
            assert first.latest() == second.latest() == third.latest()
            assert "gone &lt;away&gt;" in first.latest()
        tasks.cancel_scope.cancel()
    assert app._feeds.readers == 0 and not app._feeds._by_page


async def test_a_reader_that_does_not_read_is_dropped_and_the_others_go_on(fast, monkeypatch):
    monkeypatch.setattr(live, "READ_WITHIN_S", 0.1)
    app = shows(Counted())
    async with streaming(app, reads=lambda: False) as stuck, streaming(app) as reader:
        await eventually(lambda: app._feeds.readers == 1)
        assert not stuck.chunks
        before = len(reader.chunks)
        await eventually(lambda: len(reader.chunks) > before)
        await eventually(lambda: stuck.over)


async def test_a_stream_ends_by_itself_so_that_a_host_can_shut_down(fast, monkeypatch):
    monkeypatch.setattr(live, "LASTS_S", 0.1)
    app = shows(Counted())
    async with streaming(app) as stream:
        await eventually(lambda: stream.over)
        assert stream.chunks[0].startswith(b"retry: 1000\n\n") and stream.chunks[-1] == b""


async def test_more_readers_than_are_bounded_are_refused(monkeypatch):
    monkeypatch.setattr(live, "MOST_READERS", 1)
    monkeypatch.setattr("runtime.web.app.MOST_READERS", 1)
    app = shows(Counted())
    async with streaming(app) as first:
        await eventually(lambda: bool(first.parts()))
        async with browser(app) as web:
            refused = await web.get("/?x=1", headers={"Accept": "text/event-stream"})
            assert refused.status_code == 503
            assert (await web.get("/")).status_code == 200
