"""Restarts under `lanes run`: SIGUSR1 at any moment, in the process and into a new one, and what the verdict says."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import pytest

from lanes import SessionLayout
from runtime.process.signals import Signals
from runtime.supervisor import Supervisor
from runtime.trial import harness, verdict
from runtime.trial.generation_secrets import NAME, GenerationSecrets
from runtime.trial.ledger import Ledger
from runtime.trial.model_bodies import ModelBodies
from runtime.trial.report import Result
from runtime.trial.scenario import Overrides, plan
from runtime.trial.work import Scenario
from runtime.usage_error import UsageError
from tests import blocking
from tests.command import lanes, records, result_of, started
from tests.poll import eventually, eventually_sync

pytestmark = pytest.mark.backends("asyncio", "trio")
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])
ROUNDS = 500 if os.environ.get("LANES_LONG") else 5
"""On each of the two backends."""


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


# In one process: the harness itself, with signals that are raised where the test says

LOAD = """
[[groups]]
name = "main"
slots = 4

[[lanes]]
pattern = "session:*"
timeout = 20.0
grace = 2.0

[[load]]
lane = "session:{session}"
sessions = 8
count = 40
end = 0.1
think = [0.002, 0.02]
"""


class Served:
    """A run of the harness over `LOAD`; what the test wants done is done in its hooks."""

    def __init__(self, directory, text=LOAD):
        (directory / "load.toml").write_text(text)
        self.root = str(directory / "sessions")
        self.plan = plan(directory / "load.toml", "load", SessionLayout(self.root), Overrides())
        self.ledger = Ledger()
        self.result = Result(self.ledger, verdict.Survey(), "", self.root, plans_abandoned=True)
        self.bodies = ModelBodies(self.ledger, 1.0)
        self.vault = GenerationSecrets(0.005, self.ledger.instance)
        self.sup = Supervisor(
            self.root,
            lanes=[replace(spec, handler=self.bodies.handle) for spec in self.plan.lanes],
            groups=self.plan.groups,
            services={NAME: self.vault.service},
            drain_timeout=5.0,
            on_run_start=self.ledger.run_started,
            on_run_end=self.ledger.run_ended,
        )

    def at_record(self, number, do, restarting=None):
        """Have something done in the body that has just written its n-th record, or the first one in a restart."""
        left = [restarting] if restarting is not None else []

        def acknowledged(key, what):
            if len(self.ledger.acknowledged) == number:
                do()
            if left and self.sup.state == "restarting":
                left.pop()()

        self.ledger.on_acknowledged = acknowledged

    async def serve(self, signals):
        async def display(sup):
            await anyio.sleep_forever()

        with anyio.fail_after(60):
            await harness.serve(self.sup, Scenario(self.plan, self.bodies, self.ledger), self.result, signals, display)
        self.bodies.release()  # in a process of its own, these would be gone with it
        await eventually(lambda: not self.sup.statistics().abandoned, within=60)
        self.result.findings = verdict.examine(self.root, self.result.before, self.ledger.acknowledged)
        return self.result


def send(*numbers):
    for number in numbers:
        signal.raise_signal(number)


def assert_all_is_told(served):
    result = served.result
    assert (result.verdict, result.failure) == ("green", None), list(result.lines())
    assert (result.lost, result.findings.doubled, result.untold, result.findings.overlaps) == (0, 0, 0, 0)
    assert (served.vault.overlaps, served.vault.old_uses) == (0, 0)
    assert sum(served.ledger.told.values()) == served.ledger.posted


async def test_one_restart_keeps_all_that_is_queued(tmp_path):
    served = Served(tmp_path)
    served.at_record(10, lambda: send(signal.SIGUSR1))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert len(result.restarts_s) == 1 and served.sup.generation == 2
    assert served.ledger.told == {"answered": 40}
    shown = json.loads(result.as_json())
    assert [shown[name] for name in ("restarts", "doubled", "untold")] == [1, 0, 0]
    assert any(line.startswith("  restarts     1 in the process") for line in result.lines())


async def test_ten_signals_in_a_row_restart_and_lose_nothing(tmp_path):
    served = Served(tmp_path)
    served.at_record(10, lambda: send(*[signal.SIGUSR1] * 10))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert served.ledger.told == {"answered": 40}
    assert 1 <= len(result.restarts_s) == served.sup.generation - 1 <= 10


async def test_a_signal_from_before_the_loop_restarts_what_has_just_begun(tmp_path):
    served = Served(tmp_path)
    with Signals() as signals:
        send(signal.SIGUSR1)
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert len(result.restarts_s) == 1
    assert served.ledger.told == {"answered": 40}


async def test_a_signal_at_the_very_end_does_no_harm(tmp_path):
    served = Served(tmp_path)

    def ended(run, messages):
        if sum(served.ledger.told.values()) == 40:
            send(signal.SIGUSR1)

    work = Scenario.__init__

    with Signals() as signals, pytest.MonkeyPatch.context() as patched:

        def init(self, *args):
            work(self, *args)
            served.ledger.on_end = ended

        patched.setattr(Scenario, "__init__", init)
        await served.serve(signals)
    assert_all_is_told(served)
    assert served.ledger.told == {"answered": 40}


async def test_a_message_that_comes_during_a_restart_is_sent_when_it_is_over(tmp_path):
    served = Served(tmp_path, LOAD.replace("end = 0.1", "end = 0.4"))
    served.vault = GenerationSecrets(0.3, served.ledger.instance)
    served.sup._standing.services._factories[NAME] = served.vault.service
    served.at_record(2, lambda: send(signal.SIGUSR1))
    with Signals() as signals:
        await served.serve(signals)
    assert_all_is_told(served)
    assert served.ledger.told == {"answered": 40}


WEDGES = """
[[lanes]]
pattern = "cron"
grace = 0.1

[[load]]
lane = "cron"
sessions = ["chat-01", "chat-02"]
count = 2
end = 0.0
behave = "swallow"
"""


async def test_a_restart_that_needs_a_new_process_tells_everybody_and_ends_with_75(tmp_path):
    served = Served(tmp_path, LOAD + WEDGES)
    served.sup.drain_timeout = 0.3
    served.at_record(20, lambda: send(signal.SIGUSR1))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    shown = json.loads(result.as_json())
    assert (result.exit_code, shown["new_process"], shown["restarts"]) == (75, True, 0)
    assert len(result.not_started) == len(shown["not_started"]) > 0
    assert len(result.abandoned) == 2
    assert served.ledger.states["cancelled"] >= len(result.not_started)


@pytest.mark.parametrize("drain_s", [0.5, 0.0], ids=["while runs finish", "after they were cancelled"])
async def test_who_is_told_to_stop_during_a_restart_does_not_ask_for_a_new_process(tmp_path, drain_s):
    served = Served(tmp_path, LOAD + WEDGES)
    served.sup.drain_timeout = drain_s
    served.at_record(20, lambda: send(signal.SIGUSR1), restarting=lambda: send(signal.SIGTERM))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert signals.received == [signal.SIGTERM]
    assert (result.exit_code, result.new_process, result.restarts_s) == (0, False, [])


async def test_what_is_to_be_sent_again_during_a_restart_is_sent_when_it_is_over(tmp_path):
    load = LOAD.replace("end = 0.1", "end = 0.0").replace("count = 40", 'count = 4\nagain = 1\nbehave = "raise"')
    served = Served(tmp_path, load)
    served.vault = GenerationSecrets(0.1, served.ledger.instance)
    served.sup._standing.services._factories[NAME] = served.vault.service
    served.at_record(4, lambda: send(signal.SIGUSR1))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert (served.ledger.posted, served.ledger.told, len(result.restarts_s)) == (8, {"failed": 8}, 1)


async def test_hangup_stops_like_sigterm(tmp_path):
    served = Served(tmp_path)
    served.at_record(10, lambda: send(signal.SIGHUP))
    with Signals() as signals:
        result = await served.serve(signals)
    assert_all_is_told(served)
    assert signals.received == [signal.SIGHUP]
    assert 0 < served.ledger.told["answered"] < 40
    assert (result.exit_code, len(result.not_started)) == (0, served.ledger.told["failed"])


# The suite


@pytest.mark.suite("R2")
@pytest.mark.failure("G1")
@pytest.mark.failure("G2")
async def test_restarts_under_load_lose_and_double_nothing(tmp_path):
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        served, rng = Served(directory), random.Random(seed)
        served.at_record(rng.randint(1, 75), lambda: send(signal.SIGUSR1))
        with Signals() as signals:
            result = await served.serve(signals)
        assert_all_is_told(served)
        assert served.ledger.told == {"answered": 40}, seed
        assert len(result.restarts_s) == served.sup.generation - 1 == 1


@pytest.mark.suite("R2")
@pytest.mark.parametrize("step", ["drain", "leaving", "entering"])
async def test_sigterm_during_a_restart_stops_in_order(tmp_path, step):
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        served, rng = Served(directory), random.Random(f"{step}/{seed}")
        stop = partial(send, signal.SIGTERM)
        served.at_record(
            rng.randint(5, 40), partial(send, signal.SIGUSR1), restarting=stop if step == "drain" else None
        )
        if step != "drain":
            inform(served, step, stop)
        with Signals() as signals:
            result = await served.serve(signals)
        assert_all_is_told(served)
        assert signals.received == [signal.SIGTERM], seed
        assert (result.exit_code, served.sup.state, served.sup.runs()) == (0, "stopped", [])
        assert len(result.restarts_s) == (0 if step == "drain" else 1)


@pytest.mark.suite("R2")
async def test_a_loop_that_stands_still_during_a_restart_loses_nothing(tmp_path):
    for seed in range(ROUNDS):
        directory = tmp_path / str(seed)
        directory.mkdir()
        served = Served(directory)
        stalled: list[Any] = []

        def stall(served=served, stalled=stalled):
            if served.sup.state == "restarting" and not stalled:
                stalled.append(True)
                with blocking.permitted("the fault to be survived"):
                    time.sleep(1.0)  # blocks the loop: the body of a run that computes

        def acknowledged(key, what, served=served, stall=stall):
            if len(served.ledger.acknowledged) == 10:
                send(signal.SIGUSR1)
            stall()

        served.ledger.on_acknowledged = acknowledged
        with Signals() as signals:
            result = await served.serve(signals)
        assert_all_is_told(served)
        assert stalled and len(result.restarts_s) == 1
        assert served.sup.watchdog.quantiles().max > 0.5
        assert served.ledger.told == {"answered": 40}


def inform(served, step, do):
    """Have something done while the first generation's service leaves, or the second one's enters."""
    made = []

    def factory():
        made.append(1)
        return Telling(served.vault.service(), step, len(made), do)

    served.sup._standing.services._factories[NAME] = factory


class Telling:
    """A service that does something first."""

    def __init__(self, service, step, number, do):
        self.service, self.number, self.do = service, (step, number), do

    async def __aenter__(self):
        if self.number == ("entering", 2):
            self.do()
        return await self.service.__aenter__()

    async def __aexit__(self, *error):
        if self.number == ("leaving", 1):
            self.do()
        return await self.service.__aexit__(*error)


# The command


@both
@pytest.mark.suite("R2")
@pytest.mark.failure("G1")
@pytest.mark.failure("G2")
@pytest.mark.failure("G3")
def test_the_shipped_scenario_is_green_in_two_processes(tmp_path, backend):
    done = lanes("run", "soft-restart", "--scale", "0.5", "--json", "--backend", backend, "--sessions", tmp_path)
    result = result_of(done)
    assert (done.returncode, result["verdict"], result["backend"]) == (0, "green", backend), done.stderr
    assert (result["restarts"], result["processes"], result["new_processes"], result["died"]) == (1, 2, 1, 0)
    assert result["messages"] == result["answered"] + result["failed"] == 280
    assert (result["failed"], result["timed_out"]) == (5, 0), "the wedged one and the hung threads, and nobody else"
    for name in ("lost", "doubled", "untold", "overlaps", "old_secrets", "unbounded", "stuck_sessions"):
        assert result[name] == 0, name
    assert result["acknowledged"] == result["verified"] > 280
    assert result["probes"] > 10 and result["probe_ms"]["max"] >= result["probe_ms"]["p99"] > 0
    assert result["not_started"]
    found = records(tmp_path)
    answers = [name for record in found for name in record.get("answers", [])]
    assert len(answers) == len(set(answers)) == result["answered"]
    assert len({record["generation"] for record in found}) == 3
    assert done.stderr.count("run_not_started") == len(result["not_started"])
    assert done.stderr.count("supervisor_started") == 2


def test_mixed_is_green_when_it_is_restarted(tmp_path):
    options = ("--scale", "0.2", "--json", "--sessions", tmp_path / "s")
    with started("run", "mixed", *options, log=tmp_path / "log") as child:
        eventually_sync(lambda: len(records(tmp_path / "s")) > 5, within=60)
        child.send_signal(signal.SIGUSR1)
        out, _ = child.communicate(timeout=60)
    result = json.loads(out)
    assert (result["verdict"], result["untold"], result["doubled"]) == ("green", 0, 0), (tmp_path / "log").read_text()
    # One that ignores its cancellation may have been among them already: then only a new process helps.
    assert (child.returncode, result["restarts"]) in [(0, 1), (75, 0)]


SERVICE = """
duration = 0.6

[restart]
at = [0.3]
drain = 0.5
secrets = 0.02

[[groups]]
name = "main"
slots = 4

[[lanes]]
pattern = "session:*"
timeout = 2.0
grace = 0.1
queue_limit = 100

[[load]]
lane = "session:{session}"
sessions = 6
count = 40
end = 0.6
think = [0.05, 0.1]
"""
WEDGED = """
[[lanes]]
pattern = "cron"
timeout = 60.0
grace = 0.1

[[load]]
lane = "cron"
sessions = ["chat-01"]
count = 1
behave = "swallow"
hold = 2.0
"""

PLANTED = {
    "nothing": ("", [], ""),
    "a restart that drops what is queued": (
        "from lanes import RunState\n"
        "from runtime.restart import Restarts\n"
        "change = Restarts._change_services\n"
        "async def dropping(self):\n"
        "    await change(self)\n"
        "    hooks = self._scheduler.board.hooks\n"
        "    told, hooks._on_end = hooks._on_end, None\n"
        "    for execution in list(self._scheduler.board.live.values()):\n"
        "        execution.ask_to_end(RunState.CANCELLED, 'dropped')\n"
        "    hooks._on_end = told\n"
        "Restarts._change_services = dropping\n",
        ["untold"],
        "",
    ),
    "bodies that keep the old secret": (
        "from runtime.trial.model_bodies import ModelBodies\n"
        "secret, kept = ModelBodies._secret, {}\n"
        "ModelBodies._secret = lambda self, ctx: kept.setdefault('secret', secret(self, ctx))\n",
        ["old_secrets"],
        "",
    ),
    "a generation that does not wait for the one before": (
        "from runtime.services import Services\n"
        "async def leave(self, timeout):\n"
        "    self._leave.set()\n"
        "    return True\n"
        "Services.leave = leave\n",
        ["overlaps"],
        "",
    ),
    "everything is sent again to a new process": (
        "from runtime.trial.totals import ServiceTotals\n"
        "ServiceTotals.left = lambda self: list(range(self._messages))\n",
        ["doubled"],
        WEDGED,
    ),
    "a restart that never ends": (
        "import anyio\n"
        "from runtime.trial import processes\n"
        "from runtime.restart import Restarts\n"
        "processes._MARGIN_S = 1.0\n"
        "async def never(self):\n"
        "    with anyio.CancelScope(shield=True):\n"
        "        await anyio.sleep_forever()\n"
        "Restarts._change_services = never\n",
        ["unbounded", "died"],
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", PLANTED)
def test_a_planted_defect_makes_the_verdict_red(tmp_path, defect):
    patch, found, more = PLANTED[defect]
    (tmp_path / "sitecustomize.py").write_text(patch)  # reaches the processes that the command starts
    (tmp_path / "service.toml").write_text(SERVICE + more)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = lanes("run", tmp_path / "service.toml", "--json", env={**os.environ, "PYTHONPATH": path})
    result = result_of(done)
    assert (result["verdict"], done.returncode) == (("red", 1) if found else ("green", 0)), done.stderr
    assert all(result[name] > 0 for name in found), (result, done.stderr)


# Signals, kills, and who is left


FROZEN = """
import time
from runtime.trial.model_bodies import ModelBodies
async def compute(self, *args): time.sleep(600)
ModelBodies._think = compute
"""


@pytest.fixture
def service(tmp_path, request, monkeypatch):
    """Starts a service that lasts; gives the parent, the ids of the processes that it has started, and its log."""
    (tmp_path / "sitecustomize.py").write_text(getattr(request, "param", ""))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    lasting = SERVICE.replace("duration = 0.6", "duration = 2.0").replace("end = 0.6", "end = 2.0")
    (tmp_path / "service.toml").write_text(lasting.replace("at = [0.3]", "at = []"))
    log = tmp_path / "log"

    def pids():
        return [int(pid) for pid in re.findall(r"supervisor_started +pid=(\d+)", log.read_text())]

    with started("run", tmp_path / "service.toml", "--json", "--sessions", tmp_path / "s", log=log) as parent:
        eventually_sync(lambda: pids() and records(tmp_path / "s"), within=30)
        yield parent, pids, log
    for pid in pids():
        assert gone(pid)


def gone(pid):
    """Whether a process ends."""
    with suppress(ProcessLookupError):
        return eventually_sync(lambda: not os.path.exists(f"/proc/{pid}"), within=60) or True
    return True


def test_a_process_that_is_killed_is_started_again_and_answers_the_rest_once(service):
    parent, pids, log = service
    os.kill(pids()[0], signal.SIGKILL)
    out, _ = parent.communicate(timeout=60)
    result = json.loads(out)
    assert (parent.returncode, result["verdict"]) == (0, "green"), log.read_text()
    assert (result["processes"], result["died"], result["new_processes"]) == (2, 1, 0)
    assert (result["answered"], result["doubled"], result["untold"], result["lost"]) == (40, 0, 0, 0)
    assert "process_ended" in log.read_text()


@pytest.mark.parametrize("service", ["", FROZEN], ids=["busy", "frozen"], indirect=True)
def test_no_process_outlives_its_parent(service):
    parent, pids, _ = service
    parent.kill()
    parent.wait()
    assert gone(pids()[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_stops_the_parent_stops_the_process_in_order(service, number):
    parent, pids, log = service
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=60)
    result = json.loads(out)
    assert (parent.returncode, result["verdict"], result["processes"]) == (0, "green", 1), log.read_text()
    assert 0 < result["messages"] == result["answered"] + result["failed"] < 40
    assert "supervisor_stopped" in log.read_text()
    assert gone(pids()[0])


def test_a_signal_to_the_parent_restarts_the_process(service):
    parent, _, log = service
    parent.send_signal(signal.SIGUSR1)
    out, _ = parent.communicate(timeout=60)
    result = json.loads(out)
    assert (parent.returncode, result["verdict"], result["restarts"]) == (0, "green", 1), log.read_text()
    assert result["answered"] == 40


# The status socket of a run


def test_a_run_can_be_asked_at_the_place_that_was_given(tmp_path):
    (tmp_path / "load.toml").write_text(LOAD.replace("end = 0.1", "end = 3.0"))
    place, directory = tmp_path / "s.sock", tmp_path / "s"
    with started("run", tmp_path / "load.toml", "--json", "--sessions", directory, "--socket", place) as child:
        eventually_sync(lambda: directory.exists() and records(directory), within=60)
        assert str(directory) in lanes("status", "--socket", place).stdout
        assert lanes("restart", "--socket", place).returncode == 0
        out, _ = child.communicate(timeout=60)
    assert (child.returncode, json.loads(out)["answered"]) == (0, 40)
    assert not place.exists()


@pytest.mark.parametrize("place, why", [("x" * 200, "has 200 bytes"), ("/", "")], ids=["too long", "a directory"])
def test_a_place_that_cannot_be_had_is_refused(place, why, tmp_path):
    (tmp_path / "load.toml").write_text(LOAD)
    done = lanes("run", tmp_path / "load.toml", "--socket", place)
    assert done.returncode == 2
    assert done.stderr.startswith("lanes: --socket: ") and why in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--socket", "--trace"])
def test_what_only_the_process_can_tell_to_be_unusable_is_refused_too(tmp_path, option):
    (tmp_path / "service.toml").write_text(SERVICE)
    done = lanes("run", tmp_path / "service.toml", option, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lanes: {option}: ") and done.stderr.count("\n") == 1


def test_without_the_usual_place_it_goes_on_and_says_so(tmp_path, monkeypatch):
    (tmp_path / "load.toml").write_text(LOAD)
    (tmp_path / "lanes").write_text("in the way")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = lanes("run", tmp_path / "load.toml", "--json")
    assert (done.returncode, result_of(done)["answered"]) == (0, 40)
    assert done.stderr.count("status_unavailable") == 1


@pytest.mark.parametrize(
    "field, complaint",
    [
        ("at = [-1.0]", "restart.at: -1.0 is not allowed; allowed: seconds from 0"),
        ("drain = inf", "restart.drain: inf is not allowed; allowed: seconds from 0"),
        ("secrets = nan", "restart.secrets: nan is not allowed; allowed: seconds from 0"),
        ("processes = 0", "restart.processes: 0 is not allowed; allowed: a number from 1"),
        ("when = 1", "restart.when: unknown field; allowed: at, drain, secrets, processes"),
    ],
)
def test_a_bad_restart_is_refused(tmp_path, field, complaint):
    file = tmp_path / "load.toml"
    file.write_text(f"{LOAD}\n[restart]\n{field}\n")
    with pytest.raises(UsageError, match=re.escape(complaint)):
        plan(file, "load", SessionLayout(tmp_path), Overrides())


@pytest.mark.parametrize("field", ["again = 1", 'dedupe = "{number}"'])
def test_messages_that_are_sent_again_by_themselves_are_refused_with_a_restart(tmp_path, field):
    file = tmp_path / "load.toml"
    file.write_text(f"{LOAD}{field}\n[restart]\n")
    with pytest.raises(UsageError, match=re.escape("again, dedupe: not with [restart]")):
        plan(file, "load", SessionLayout(tmp_path), Overrides())
