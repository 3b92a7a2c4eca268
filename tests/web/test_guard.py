"""Who may see the dashboard, and whose orders count: each rule, and what it keeps out."""

from __future__ import annotations

import anyio
import pytest

from lanes import LaneSpec
from runtime import Supervisor
from runtime.web import dashboard
from tests.web.reader import HERE, browser, ended, secret_of

pytestmark = pytest.mark.backends("asyncio")  # the rules know no event loop; forms are read on both in test_work
TOKEN = "0123456789abcdef-token"
HIM = "http://gateway.example"


async def waits(ctx):
    await anyio.sleep_forever()


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("one", grace=0.05)], drain_timeout=0.0) as sup:
        yield sup


@pytest.mark.parametrize(
    "base, client, status",
    [
        ("http://127.0.0.1:8765", "127.0.0.1", 200),
        ("http://localhost:1", "::1", 200),
        ("http://[::1]:8765", "127.0.0.9", 200),
        ("http://evil.example:8765", "127.0.0.1", 403),
        ("http://127.0.0.1.evil.example", "127.0.0.1", 403),
        ("http://localhost", "192.0.2.7", 403),
        ("http://gateway.example", "192.0.2.7", 403),
    ],
)
async def test_without_a_token_only_this_machine_is_answered_under_its_own_names(sup, base, client, status):
    async with browser(dashboard(sup), base, client) as web:
        assert (await web.get("/")).status_code == status
        if status == 403:
            assert (await web.get("/", headers={"Accept": "text/event-stream"})).status_code == status


async def test_a_host_that_knows_its_visitors_names_itself(sup):
    async with browser(dashboard(sup, hosts=["Gateway.example"]), HIM, "192.0.2.7") as web:
        assert (await web.get("/")).status_code == 200


async def test_a_token_opens_it_once_and_the_cookie_from_then_on(sup):
    app = dashboard(sup, token=TOKEN)
    async with browser(app, HIM, "192.0.2.7") as web:
        first = await web.get("/run?id=1")
        assert first.status_code == 401 and 'type="password"' in first.text and "sessions" not in first.text
        assert (await web.get(f"/?token={TOKEN}x")).status_code == 401
        assert (await web.get("/", headers={"Accept": "text/event-stream"})).status_code == 401
        assert (await web.get("/", headers={"Cookie": "lanes-dashboard=x"})).status_code == 401
        shown = await web.get(f"/run?id=1&token={TOKEN}")
        assert (shown.status_code, shown.headers["location"]) == (303, "./run?id=1")
        cookie = shown.headers["set-cookie"]
        assert TOKEN not in cookie and "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        assert (await web.get("/")).status_code == 200
    async with browser(app, HIM, "192.0.2.7", headers={"Authorization": f"Bearer {TOKEN}"}) as web:
        assert (await web.get("/")).status_code == 200


async def test_a_token_can_be_typed_on_our_own_page_only(sup):
    async with browser(dashboard(sup, token=TOKEN), HIM, "192.0.2.7") as web:
        for token, site in (("wrong", "same-origin"), (TOKEN, "cross-site")):
            refused = await web.post("/login", data={"token": token}, headers={"Sec-Fetch-Site": site})
            assert refused.status_code == 403 and "set-cookie" not in refused.headers
        given = await web.post("/login", data={"token": TOKEN}, headers={"Sec-Fetch-Site": "same-origin"})
        assert given.status_code == 303 and (await web.get("/")).status_code == 200


def test_a_token_that_is_easily_guessed_or_cannot_be_sent_is_refused(tmp_path):
    for token in ("", "short", "x" * 201, "with a space in it ", "é" * 20):
        with pytest.raises(ValueError, match="16 to 200 printable"):
            dashboard(lambda: None, token=token)


async def test_nothing_is_changed_unless_control_is_allowed(sup):
    run = sup.submit("one", waits)
    app = dashboard(sup)
    async with browser(app) as web:
        page = (await web.get("/")).text
        assert "<form" not in page
        order = {"secret": app._guard.form_secret, "do": "stop", "run": run.id}  # type: ignore[attr-defined]  # what no page shows
        done = await web.post("/act", data=order, headers={"Sec-Fetch-Site": "same-origin", "Origin": HERE})
    assert done.status_code == 403 and "only shows" in done.text and not run.reason
    await ended(sup)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"Origin": HERE}, 303),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "same-site", "Origin": HERE}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({}, 403),
    ],
)
async def test_an_order_comes_from_a_page_of_ours(sup, headers, status):
    run = sup.submit("one", waits)
    async with browser(dashboard(sup, allow_control=True)) as web:
        secret = secret_of((await web.get("/")).text)
        done = await web.post("/act", data={"secret": secret, "do": "stop", "run": run.id}, headers=headers)
    assert done.status_code == status and bool(run.reason) == (status == 303)
    await ended(sup)
    await ended(sup)


@pytest.mark.parametrize("secret", ["", "x", "é"])
async def test_an_order_needs_the_secret_of_our_forms(sup, secret):
    run = sup.submit("one", waits)
    async with browser(dashboard(sup, allow_control=True)) as web:
        done = await web.post("/act", data={"secret": secret, "do": "stop", "run": run.id}, headers={"Origin": HERE})
        many = await web.post("/act", content=b"a=1&" * 100, headers={"Origin": HERE})
        long = await web.post("/act", content=b"x" * 100_000, headers={"Origin": HERE})
        asked = await web.get(f"/act?do=stop&run={run.id}")
    assert (done.status_code, many.status_code, long.status_code, asked.status_code) == (403, 422, 422, 405)
    assert not run.reason
    await ended(sup)


async def test_every_response_tells_the_browser_to_trust_nothing_else(sup):
    async with browser(dashboard(sup, token=TOKEN)) as web:
        pages = [await web.get(path) for path in ("/", "/nothing", f"/?token={TOKEN}", "/static/lanes.js", "/static/x")]
        pages += [await web.get("/"), await web.get("/nothing"), await web.post("/act", data={})]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert "server" not in page.headers
