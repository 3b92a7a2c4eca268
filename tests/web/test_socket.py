"""The dashboard of another process, through its status socket: `lanes web`, and what it is refused for."""

from __future__ import annotations

import re
import threading
from functools import partial

import anyio
import httpx
import pytest
from anyio import to_thread

from lanes import LaneSpec
from runtime import Supervisor
from runtime.status.client import Client
from runtime.web import serve, source
from runtime.web.app import Dashboard
from runtime.web.guard import Guard
from runtime.web.source import Outside
from runtime.web.views import Views
from tests import blocking
from tests.command import lanes, started
from tests.poll import eventually_sync
from tests.web.reader import browser, ended, order, secret_of, text_of

pytestmark = pytest.mark.backends("asyncio", "trio")


async def waits(ctx):
    await anyio.sleep_forever()


def supervisor(tmp_path):
    lanes = [LaneSpec("one", grace=0.05)]
    return Supervisor(tmp_path / "sessions", lanes=lanes, drain_timeout=0.0, status_socket=tmp_path / "s.sock")


def outside(tmp_path):
    guard = Guard(None, (), allow_control=True)
    return Dashboard(Views(Outside(str(tmp_path / "s.sock")), show_content=False), guard)


async def test_it_shows_and_steers_another_process_and_finds_it_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with browser(outside(tmp_path)) as web:
        before = await web.get("/")
        assert before.status_code == 200 and "does not exist" in before.text
        async with supervisor(tmp_path) as sup:
            run = sup.submit("one", waits)
            await anyio.sleep(0.01)
            page = (await web.get("/")).text
            assert "No answer" not in page and "in waits: await anyio.sleep_forever()" in text_of(page)
            assert (await order(web, secret_of(page), do="stop", run=run.id)).status_code == 303
            await ended(sup)
        page = (await web.get("/")).text
        assert "No answer for 0." in text_of(page) and "It was last seen like this" in page and "<form" not in page
        assert "in waits" in page  # what was last known of it
        async with supervisor(tmp_path):
            page = (await web.get("/")).text
            assert "No answer" not in page and "Nothing runs." in page


async def test_a_frozen_process_shows_the_line_that_blocks_it(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.status.server.PATIENCE_S", 0.05)
    found: list[str] = []
    begun, done = threading.Event(), threading.Event()

    async def blocks(ctx):
        with blocking.permitted("a body that freezes the loop"):
            begun.set()
            done.wait(120.0)

    def asks():
        async def look():
            async with browser(outside(tmp_path)) as web:
                found.extend([(await web.get("/")).text, (await web.get("/run?id=1")).text])

        try:
            assert begun.wait(60.0)
            anyio.run(look)
        finally:
            done.set()

    async with supervisor(tmp_path) as sup:
        thread = threading.Thread(target=asks)
        sup.submit("one", blocks)
        thread.start()
        await to_thread.run_sync(thread.join)
        await ended(sup)
    for page in map(text_of, found):
        assert "Frozen: the event loop does not answer" in page and "in blocks" in page and "run 1 on lane one" in page


async def test_a_process_that_answers_late_delays_no_other_page(tmp_path, monkeypatch):
    entered, leave = anyio.Event(), threading.Event()

    class Slow(Client):
        def ask(self, question):
            if not entered.is_set():
                anyio.from_thread.run_sync(entered.set)
                leave.wait(120)
            return super().ask(question)

    monkeypatch.setattr(source, "Client", Slow)
    async with supervisor(tmp_path), browser(outside(tmp_path)) as web, anyio.create_task_group() as tasks:
        tasks.start_soon(web.get, "/")
        await entered.wait()
        assert "Nothing runs." in (await web.get("/")).text
        leave.set()


async def test_a_thread_of_its_own_serves_a_process_beside_any_event_loop(tmp_path):
    async with supervisor(tmp_path):
        with blocking.permitted("starts and ends a server"), serve.listening("127.0.0.1", 0, "--web") as listener:
            url = serve.url_of(listener, "127.0.0.1")
            shows = Guard(None, (), allow_control=False)
            with serve.beside(serve.server_of(str(tmp_path / "s.sock"), shows, show_content=False), listener):
                async with httpx.AsyncClient(trust_env=False) as web:
                    page = await web.get(url)
                    assert page.status_code == 200 and "Nothing runs." in page.text and "<form" not in page.text


@pytest.mark.parametrize(
    "options, told",
    [
        (["--host", "0.0.0.0"], "--host: '0.0.0.0' can be reached by others"),
        (["--host", "no such host."], "--host: 'no such host.' can be reached by others"),
        (["--token", "short"], "--token: has 5 characters"),
        (["--port", "70000"], "70000 is not in the range"),
        (["--socket", "/nowhere/s.sock"], "does not exist"),
    ],
)
def test_what_is_unsafe_or_cannot_be_used_is_refused_in_one_line(options, told):
    given = options if "--socket" in options else [*options, "--socket", "/nowhere/s.sock"]
    done = lanes("web", *given)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.backends("asyncio")
async def test_a_taken_port_is_refused(tmp_path):
    async with supervisor(tmp_path):
        with blocking.permitted("takes a port"):
            taken = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        async with taken:
            port = taken.extra(anyio.abc.SocketAttribute.local_port)
            run = partial(lanes, "web", "--port", str(port), "--socket", tmp_path / "s.sock")
            done = await to_thread.run_sync(run)
    assert done.returncode == 2 and f"--port: {port} is taken" in done.stderr


def address_of(child):
    """What `lanes web` says."""
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line.startswith("dashboard: http://127.0.0.1:")
    return line.split()[1]


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("options, needs_token", [(["--allow-control"], True), (["--show-content"], True), ([], False)])
async def test_what_may_steer_or_tell_makes_a_token_of_its_own(tmp_path, options, needs_token):
    """A port of this machine is open to all who use it, and the socket is not."""
    command = ("web", *options, "--port", "0", "--socket", tmp_path / "s.sock")
    async with supervisor(tmp_path), httpx.AsyncClient(trust_env=False) as web:
        with blocking.permitted("starts a process"), started(*command) as child:
            url = await to_thread.run_sync(address_of, child)
            bare, _, token = url.partition("?token=")
            assert (len(token) == 32) == needs_token
            assert (await web.get(bare)).status_code == (401 if needs_token else 200)
            if needs_token:
                opened = await web.get(url)
                assert opened.status_code == 303 and "Max-Age" not in opened.headers["set-cookie"]
                assert "Nothing runs." in (await web.get(bare)).text


def test_several_processes_are_shown_together(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LANES_SOCKET", raising=False)
    with started("run", "stuck", "--sessions", tmp_path / "a"), started("run", "stuck", "--sessions", tmp_path / "b"):
        eventually_sync(lambda: len(list(tmp_path.glob("lanes/*.sock"))) == 2)
        with started("web", "--port", "0") as child, httpx.Client(trust_env=False) as web:
            url = address_of(child)
            page = web.get(url).text
            assert "2 processes of this user on this host" in text_of(page)
            first, _ = re.findall(r'<th scope="row"><a href="(node/\d+/)"', page)
            assert "Running, the longest first" in web.get(url + first).text
