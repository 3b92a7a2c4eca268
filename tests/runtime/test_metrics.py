"""`SupervisorCollector`: what Prometheus is told agrees with `statistics()`, from any thread, and never falls."""

from __future__ import annotations

import importlib
import re
import sys
import threading
import time
from typing import Any

import anyio
import pytest
from anyio import to_thread
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lanes import GroupSpec, LaneSpec, PoolSpec, RetrySpec
from runtime import Supervisor
from runtime.metrics import SupervisorCollector
from runtime.testing.inline import inline
from tests import blocking
from tests.poll import eventually, eventually_sync
from tests.supervised import HungThread, gone

pytestmark = pytest.mark.backends("asyncio", "trio")

LANES = [
    LaneSpec("session:*", group="two", timeout=60.0, grace=1.0),
    LaneSpec("again", group="two", retry=RetrySpec(2, wait=5.0, max_wait=5.0)),
]
GROUPS = [GroupSpec("two", slots=2)]
NEEDS_NO_LOOP = {
    "lanes_loop_answers",
    "lanes_loop_blocked_seconds",
    "lanes_loop_lag_seconds",
    "lanes_generation",
    "lanes_process_resident_memory_bytes",
    "lanes_process_open_fds",
    "lanes_process_threads",
}


def exposed(sup, **options):
    """What a scrape gives, as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SupervisorCollector(sup, **options))
    return generate_latest(registry).decode()


def scraped(sup, **options):
    """The samples of a scrape: name, and labels if there are any, to value."""
    found = {}
    for family in text_string_to_metric_families(exposed(sup, **options)):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values()) if sample.labels else sample.name
            assert key not in found
            found[key] = sample.value
    return found


async def sleeps(ctx, seconds=10.0):
    await anyio.sleep(seconds)


async def test_what_is_told_is_what_the_statistics_say(virtual, tmp_path):
    async def fails(ctx):
        await anyio.sleep(1.0)
        raise OSError("no")

    body = HungThread()
    virtual.threads_hold = False
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:
        sup.submit("again", fails)
        await anyio.sleep(20.0)  # tried twice, and parked
        done = [sup.submit("session:a", sleeps) for _ in range(2)]
        hung = sup.submit("session:b", body, timeout=3.0)
        for run in [*done, hung]:
            await run.wait()
        for key in "cde":
            sup.submit(f"session:{key}", sleeps, 50.0)
        await anyio.sleep(7.0)
        now, found = sup.statistics(), scraped(sup)
        assert {key: value for key, value in found.items() if "two" in key and value} == {
            ("lanes_runs_total", "two", "done"): 2,
            ("lanes_runs_total", "two", "failed"): 1,
            ("lanes_runs_total", "two", "abandoned"): 1,
            ("lanes_waited_seconds_total", "two"): pytest.approx(15.0),
            ("lanes_ran_seconds_total", "two"): pytest.approx(26.0),
            ("lanes_retries_total", "two"): 1,
            ("lanes_longest_wait_seconds", "two"): pytest.approx(10.0),
            ("lanes_running", "two"): 2,
            ("lanes_queued", "two"): 1,
            ("lanes_oldest_wait_seconds", "two"): pytest.approx(7.0),
            ("lanes_slots", "two"): 2,
        }
        assert (found["lanes_abandoned_bodies"], found["lanes_parked_runs"]) == (1, 1)
        assert (found["lanes_leases_held", "turn"], found["lanes_leases_held", "write"]) == (2, 0)
        assert found["lanes_leases_granted_total"] == now.leases.granted > 0
        assert (found["lanes_live_lanes"], found["lanes_generation"]) == (len(now.lanes), 1)
        assert (found["lanes_healthy"], found["lanes_loop_answers"]) == (1, 1)
        assert (found["lanes_slots", "main"], found["lanes_reserved_slots", "main"]) == (32, 4)
        sup.cancel()
        body.release()
        virtual.threads_hold = True
        await gone(sup)


async def test_pools_are_told_of_a_supervisor_that_has_some(virtual, tmp_path):
    async def calls(ctx):
        async with ctx.pool("model", tokens=7) as grant:
            await anyio.sleep(1.0)
            grant.settle(5)

    pools = [PoolSpec("model", slots=1, tokens=(10, 60.0)), PoolSpec("other", rate=(1, 1.0))]
    async with Supervisor(tmp_path, lanes=[LaneSpec("main", capacity=2)], pools=pools) as sup:
        for _ in range(2):
            sup.submit("main", calls)
        await anyio.sleep(1.5)
        found = {key[0]: value for key, value in scraped(sup).items() if "model" in key}
        assert found.pop("lanes_pool_oldest_wait_seconds") == pytest.approx(1.5)
        assert found == {
            "lanes_pool_held": 0,
            "lanes_pool_slots": 1,
            "lanes_pool_waiting": 1,
            "lanes_pool_share": 1,
            "lanes_pool_paused_seconds": 0,
            "lanes_pool_granted_total": 1,
            "lanes_pool_tokens_total": 5,
            "lanes_pool_waited_seconds_total": 0,
            "lanes_pool_throttled_total": 0,
        }
        assert ("lanes_pool_slots", "other") not in scraped(sup)
        sup.cancel()


async def test_labels_are_groups_states_and_rights_only(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:
        size = len(scraped(sup))
        for number in range(50):
            sup.submit(f"session:{number}", sleeps, 1.0)
        assert len(scraped(sup)) == size
        await anyio.sleep(100.0)
        assert len(scraped(sup)) == size
        labels = {
            name
            for family in text_string_to_metric_families(exposed(sup))
            for sample in family.samples
            for name in sample.labels
        }
    assert labels == {"group", "state", "right", "quantile"}


async def test_every_metric_has_a_help_text_and_a_name_after_the_conventions(virtual, tmp_path):
    with inline():
        async with Supervisor(tmp_path, inbox=True) as sup:  # which has all of them
            registry = CollectorRegistry()
            registry.register(SupervisorCollector(sup))
            families = list(parse_openmetrics(generate_openmetrics(registry).decode()))
            described = {family.name for family in SupervisorCollector(sup).describe()}
    assert {family.name for family in families} == described and len(described) >= 30
    for family in families:
        assert re.fullmatch(r"lanes_[a-z_]+[a-z]", family.name)
        assert family.documentation.endswith(".") and family.samples
        assert ("seconds" in family.name) == (family.unit == "seconds")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)


async def test_no_counter_falls_over_a_restart_in_the_process(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:
        for _ in range(3):
            await sup.run("session:a", sleeps, 1.0)
        before = scraped(sup)
        await sup.restart()
        after = scraped(sup)
        await sup.run("session:a", sleeps, 1.0)
        later = scraped(sup)
    counters = [key for key in before if (key if isinstance(key, str) else key[0]).endswith("_total")]
    assert all(before[key] <= after[key] <= later[key] for key in counters)
    assert [found["lanes_runs_total", "two", "done"] for found in (before, after, later)] == [3, 3, 4]
    assert [found["lanes_generation"] for found in (before, after)] == [1, 2]


async def test_another_thread_is_answered_by_the_event_loop(tmp_path, monkeypatch):
    asked_on, statistics = [], Supervisor.statistics

    def noted(sup):
        asked_on.append(threading.get_ident())
        return statistics(sup)

    monkeypatch.setattr(Supervisor, "statistics", noted)
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:
        await sup.run("session:a", sleeps, 0.0)
        found = await to_thread.run_sync(lambda: scraped(sup, wait_s=30.0))
    assert asked_on == [threading.get_ident()]
    assert (found["lanes_runs_total", "two", "done"], found["lanes_loop_answers"]) == (1, 1)


async def test_a_loop_that_does_not_answer_leaves_out_what_needs_it(tmp_path):
    found = {}
    async with Supervisor(tmp_path) as sup:
        thread = threading.Thread(target=lambda: found.update(scraped(sup, wait_s=0.01)))
        with blocking.permitted("a body that blocks the loop"):
            thread.start()
            thread.join(30)
        assert (await to_thread.run_sync(lambda: scraped(sup, wait_s=30.0)))["lanes_loop_answers"] == 1
    assert {key if isinstance(key, str) else key[0] for key in found} == NEEDS_NO_LOOP
    assert found["lanes_loop_answers"] == 0


@pytest.mark.backends("asyncio")
async def test_a_frozen_loop_is_told_and_not_waited_for(tmp_path):
    found: dict[Any, float] = {}
    took: list[float] = []

    def look():
        eventually_sync(sup.watchdog.blocked, within=60)
        began = time.monotonic()
        found.update(scraped(sup, wait_s=1000.0))
        took.append(time.monotonic() - began)
        goes_on.set()

    goes_on = threading.Event()

    async def freezes(ctx):
        with blocking.permitted("a body that freezes the loop"):
            goes_on.wait(30)

    async with Supervisor(tmp_path) as sup:
        thread = threading.Thread(target=look)
        thread.start()
        await sup.run("main", freezes)
        await eventually(lambda: not thread.is_alive(), within=60)
    assert found["lanes_loop_blocked_seconds"] >= 0.5 and took[0] < 30
    assert {key if isinstance(key, str) else key[0] for key in found} == NEEDS_NO_LOOP


async def test_before_the_start_and_after_the_end_there_is_an_answer_too(tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES, groups=GROUPS)
    assert (await to_thread.run_sync(scraped, sup))["lanes_generation"] == 0
    async with sup:
        await sup.run("session:a", sleeps, 0.0)
    assert (await to_thread.run_sync(scraped, sup))["lanes_runs_total", "two", "done"] == 1


def test_without_its_library_the_module_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "runtime.metrics")
    with pytest.raises(ImportError, match=r"pip install 'session-lanes\[metrics\]'"):
        importlib.import_module("runtime.metrics")
