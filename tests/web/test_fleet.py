"""The dashboard of several processes: a page of all of them, the pages of each, and who may see them."""

from __future__ import annotations

import anyio
import pytest

from lanes import LaneSpec
from runtime import Supervisor
from runtime.fleet.seen import FleetError, FleetSeen, ProcessSeen, SessionSeen
from runtime.status import protocol
from runtime.status.figures import figures_of, frozen_figures
from runtime.web.fleet import FleetDashboard
from runtime.web.guard import Guard
from runtime.web.source import Inside
from tests.poll import eventually
from tests.web.reader import browser, ended, order, secret_of, streaming, tags_of, text_of

pytestmark = pytest.mark.backends("asyncio", "trio")
HOSTILE = "<img src=x onerror=alert(1)>\u202e"
TOKEN = "0123456789abcdef-token"


async def waits(ctx):
    await anyio.sleep_forever()


class Together:
    """Two supervisors of this process, a frozen process and a dead one."""

    name = "on a test"

    def __init__(self, *sups: Supervisor) -> None:
        self._sources = {str(number): Inside(sup) for number, sup in enumerate(sups, 1)}
        self.down = ""
        self.closed = False

    async def look(self) -> FleetSeen:
        if self.down:
            raise FleetError(self.down)
        figures = {}
        for key, source in self._sources.items():
            picture = (await source.ask(protocol.Status(), "test")).status
            assert picture is not None
            figures[key] = figures_of(picture)
        stood = protocol.Frozen(pid=3, sessions="", for_s=7.0, place="x.py:1 in <b>", stack="", run="run 9 on lane x")
        rows = [
            ("1", "a", "alive", figures["1"]),
            ("2", HOSTILE, "alive", figures["2"]),
            ("3", "c", "frozen", frozen_figures(figures["1"], stood)),
            ("4", "d", "dead", None),
        ]
        processes = [
            ProcessSeen(
                key=key,
                name=name,
                host=HOSTILE,
                pid=int(key),
                place="",
                state=state,  # type: ignore[arg-type]  # one of those allowed
                silent_s=1.0,
                sessions=1,
                open=1,
                figures=figures,
            )
            for key, name, state, figures in rows
        ]
        return FleetSeen(processes=processes, sessions=3, conducted=2, unowned=1)

    async def sessions(self, *, process=None, at_most=500) -> list[SessionSeen]:
        return [SessionSeen(session=HOSTILE, process="a", open=2, oldest_s=3.0, wanted=True)]

    async def ask(self, key, question, by) -> protocol.Answer:
        if self.down or key not in self._sources:
            raise FleetError(self.down or f"{key} has <gone>")
        return await self._sources[key].ask(question, by)

    async def aclose(self) -> None:
        self.closed = True


@pytest.fixture
async def sups(tmp_path):
    lanes = [LaneSpec("session:*", grace=0.05)]
    async with (
        Supervisor(tmp_path / "a", lanes=lanes, drain_timeout=0.0) as one,
        Supervisor(tmp_path / "b", lanes=lanes, drain_timeout=0.0) as other,
    ):
        yield one, other


@pytest.fixture
def fleet(sups):
    return Together(*sups)


def shown(fleet, token=None):
    return FleetDashboard(fleet, Guard(token, (), allow_control=True), show_content=False)


async def test_all_processes_are_seen_problems_first_and_whatever_they_are_called_is_text(fleet):
    app = shown(fleet)
    async with browser(app) as web:
        page = (await web.get("/")).text
        fleet.down = "the database <left>"
        later = text_of((await web.get("/")).text)
    text = text_of(page)
    assert text.index("Problems") < text.index("blocked for 7.0 s by run 9 on lane x, at x.py:1 in <b>")
    assert text.index("d: dead, last heard of 1.0 s ago") < text.index("Processes")
    assert "4 processes on a test; 3 sessions, 2 of them conducted, 1 wait for a process" in text
    assert "<img src=x onerror=alert(1)>\\u{202e} a; another process wants it 2 3.0 s" in text
    assert not [tag for tag, _ in tags_of(page) if tag == "img"]
    links = {given.get("href") for tag, given in tags_of(page) if tag == "a"}
    assert {"node/1/", "node/2/", "node/1/session?key=%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E%E2%80%AE"} <= links
    assert "No answer" in later and "the database <left>" in later and "4 processes" in later
    fleet.down = ""
    async with streaming(app) as stream:
        await eventually(lambda: "4 processes" in stream.latest())


async def test_readers_are_bounded_over_all_processes_and_each_is_shown_its_own(fleet, sups, monkeypatch):
    for lane, sup in zip(("session:alice", "session:bob"), sups, strict=True):
        sup.submit(lane, waits)
    app = shown(fleet)
    async with streaming(app, "/node/1/") as one, streaming(app, "/node/2/") as other, browser(app) as web:
        await eventually(lambda: "session:alice" in text_of(one.latest()) and "session:bob" in text_of(other.latest()))
        monkeypatch.setattr("runtime.web.app.MOST_READERS", 2)
        for path in ("/node/1/", "/node/3/", "/"):
            assert (await web.get(path, headers={"Accept": "text/event-stream"})).status_code == 503
    for sup in sups:
        await ended(sup)


async def test_a_process_has_its_pages_below_and_orders_go_to_that_one(fleet, sups):
    runs = [sup.submit("session:alice", waits) for sup in sups]
    await anyio.wait_all_tasks_blocked()  # they stand where they wait
    app = shown(fleet)
    async with browser(app) as web:
        assert (await web.get("/node/2")).headers["location"] == "2/"
        page = (await web.get("/node/2/")).text
        assert "in waits: await anyio.sleep_forever()" in text_of(page)
        assert ("a", "../../") in [(tag, given.get("href")) for tag, given in tags_of(page)]
        assert (await web.get("/node/2/static/lanes.css")).status_code == 200
        data = {"secret": secret_of(page), "do": "stop", "run": runs[1].id}
        done = await web.post("/node/2/act", data=data, headers={"Sec-Fetch-Site": "same-origin"})
        assert done.status_code == 303 and done.headers["location"].startswith(f"./run?id={runs[1].id}&notice=")
        await runs[1].wait()
        assert (await web.get("/node/9/")).status_code == 200
        assert "9 has <gone>" in text_of((await web.get("/node/9/")).text)
        for path in ("/node/x/", "/node//", "/node/" + "1" * 30 + "/", "/node/1/nothing", "/run?id=1"):
            assert (await web.get(path)).status_code == 404
    async with browser(app) as web:
        assert (await order(web, secret_of(page), do="stop", run=runs[0].id)).status_code == 403  # of which process?
    async with streaming(app, "/node/1/") as stream:
        await eventually(lambda: f"run {runs[0].id}</a>" in stream.latest())
    assert runs[0].outcome is None
    for sup in sups:
        await ended(sup)


async def test_a_token_opens_all_of_it_and_nothing_is_shown_without(fleet):
    async with browser(shown(fleet, TOKEN), "http://gateway.example", "192.0.2.7") as web:
        for path in ("/node/1/", "/node/1/run?id=1"):
            refused = await web.get(path)
            assert (refused.status_code, refused.headers["location"]) == (303, "../../")
        assert (await web.post("/node/1/act", data={})).status_code == 401
        assert (await web.get("/")).status_code == 401
        assert (await web.get(f"/node/1/?token={TOKEN}")).status_code == 303
        assert [(await web.get(path)).status_code for path in ("/", "/node/1/", "/node/2/timeline")] == [200] * 3
    async with browser(shown(fleet), "http://evil.example") as web:
        assert [(await web.get(path)).status_code for path in ("/", "/node/1/")] == [403, 403]


async def test_it_closes_the_fleet_when_the_server_ends(fleet):
    said = iter(["lifespan.startup", "lifespan.shutdown"])
    sent = []

    async def receive():
        return {"type": next(said)}

    async def send(message):
        sent.append((message["type"], fleet.closed))

    await shown(fleet)({"type": "lifespan"}, receive, send)
    assert sent == [("lifespan.startup.complete", False), ("lifespan.shutdown.complete", True)]
