"""What a service manager is told, over a real socket, and that nothing it does or lacks holds anybody up."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from locks import _clock
from runtime.process.notify import Notifier


class Manager:
    """A service manager's end of the protocol."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every message since it last listened."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(1 << 16).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request) -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="lanes-") as directory:  # shorter than pytest's own
        manager = Manager(f"@{uuid.uuid4()}" if request.param == "abstract" else f"{directory}/notify")
        yield manager
        manager.socket.close()


@pytest.fixture
def notifier(manager) -> Iterator[Notifier]:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    assert notifier is not None
    yield notifier
    notifier.close()


def made(**environ: str) -> Notifier:
    notifier = Notifier.from_environment(environ)
    assert notifier is not None
    notifier.close()
    return notifier


def say(notifier: Notifier) -> list[bool]:
    """Everything that can be said."""
    return [
        notifier.ready(),
        notifier.reloading(),
        notifier.stopping(),
        notifier.watchdog(),
        notifier.status("3 running"),
        notifier.extend(1.5),
    ]


def test_each_message_is_one_datagram_as_the_protocol_has_it(manager, notifier, virtual):
    assert say(notifier) == [True] * 6
    assert manager.heard() == [
        "READY=1",
        f"RELOADING=1\nMONOTONIC_USEC={int(virtual.now() * 1e6)}",
        "STOPPING=1",
        "WATCHDOG=1",
        "STATUS=3 running",
        "EXTEND_TIMEOUT_USEC=1500000",
    ]


def test_a_reload_is_dated_by_the_clock_that_the_manager_reads(manager, notifier):
    import time

    assert isinstance(_clock.clock, _clock.SystemClock)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    (message,) = manager.heard()
    assert before - 1 <= int(message.rpartition("=")[2]) <= after


@pytest.mark.parametrize(
    "text, sent",
    [
        ("two\nREADY=1\r\nlines", "two READY=1 lines"),
        ("x" * 5000, "x" * 1000),
        ("half a \ud800 pair", "half a ? pair"),
        ("größer", "größer"),
        ("", ""),
    ],
    ids=["lines", "long", "surrogate", "umlaut", "empty"],
)
def test_a_status_is_one_line_whatever_is_in_it(manager, notifier, text, sent):
    assert notifier.status(text)
    assert manager.heard() == [f"STATUS={sent}"]


@pytest.mark.parametrize(
    "seconds, usec",
    [(0.0, 0), (-5.0, 0), (float("nan"), 0), (float("inf"), 316224000000000)],
    ids=["none", "negative", "nan", "inf"],
)
def test_an_extension_of_any_length_can_be_asked_for(manager, notifier, seconds, usec):
    assert notifier.extend(seconds)
    assert manager.heard() == [f"EXTEND_TIMEOUT_USEC={usec}"]


# A manager that does not listen


def test_a_full_queue_holds_nobody_up_and_is_logged_once(manager, notifier):
    assert notifier._socket is not None
    assert notifier._socket.gettimeout() == 0.0
    with capture_logs() as lines:
        sent = 0
        while notifier.watchdog():
            sent += 1
        assert say(notifier) == [False] * 6
    assert [(line["event"], line["log_level"], line["message"]) for line in lines] == [
        ("notify_failed", "warning", "WATCHDOG=1")
    ]
    assert manager.heard() == ["WATCHDOG=1"] * sent
    assert notifier.ready()  # there is room again
    assert manager.heard() == ["READY=1"]


def test_a_manager_that_is_gone_harms_nothing_and_one_that_comes_back_is_spoken_to(manager, notifier):
    manager.socket.close()
    with capture_logs() as lines:
        assert say(notifier) == [False] * 6
    assert [line["event"] for line in lines] == ["notify_failed"]
    Path(manager.address).unlink(missing_ok=True)
    again = Manager(manager.address)
    assert notifier.ready()
    assert again.heard() == ["READY=1"]
    again.socket.close()


def test_what_is_said_after_closing_is_not_sent_and_not_complained_about(manager, notifier):
    notifier.close()
    notifier.close()
    with capture_logs() as lines:
        assert say(notifier) == [False] * 6
    assert (lines, manager.heard()) == ([], [])
    assert repr(notifier).endswith(", closed>")


def test_many_threads_speak_at_once(manager, notifier):
    barrier = threading.Barrier(4)

    def speak(number: int) -> bool:
        barrier.wait(60)
        return notifier.status(f"thread {number}")

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(speak, range(4)))
    assert sorted(manager.heard()) == [f"STATUS=thread {number}" for number in range(4)]


# The environment


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "5000000"}], ids=str)
def test_without_a_service_manager_there_is_no_notifier(environ):
    with capture_logs() as lines:
        assert Notifier.from_environment(environ) is None
    assert lines == []


def test_the_watchdog_is_to_be_fed_twice_as_often_as_it_is_patient():
    assert made(NOTIFY_SOCKET="/run/n", WATCHDOG_USEC="30000000").watchdog_interval_s == 15.0
    assert made(NOTIFY_SOCKET="/run/n", WATCHDOG_USEC="3", WATCHDOG_PID=str(os.getpid())).watchdog_interval_s == 1.5e-6


def test_the_watchdog_of_another_process_is_not_fed():
    environ: dict[str, Any] = {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}
    assert made(NOTIFY_SOCKET="/run/n", **environ).watchdog_interval_s is None
    assert made(NOTIFY_SOCKET="/run/n").watchdog_interval_s is None


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_the_longest_address_is_spoken_to(abstract):
    with tempfile.TemporaryDirectory(prefix="lanes-") as directory:
        manager = Manager(f"@{uuid.uuid4()}".ljust(108, "x") if abstract else f"{directory}/".ljust(107, "x"))
        notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
        assert notifier is not None
        assert notifier.ready()
        assert manager.heard() == ["READY=1"]
        notifier.close()
        manager.socket.close()


@pytest.mark.parametrize(
    "name, value",
    [
        ("NOTIFY_SOCKET", "relative/path"),
        ("NOTIFY_SOCKET", "/"),
        ("NOTIFY_SOCKET", "@"),
        ("NOTIFY_SOCKET", "vsock:2:1234"),
        ("NOTIFY_SOCKET", "/" + "x" * 107),
        ("NOTIFY_SOCKET", "/" + "ä" * 60),
        ("NOTIFY_SOCKET", "@" + "x" * 108),
        ("NOTIFY_SOCKET", "/zero\0byte"),
        ("WATCHDOG_USEC", "soon"),
        ("WATCHDOG_USEC", "0"),
        ("WATCHDOG_USEC", "-1"),
        ("WATCHDOG_USEC", "1.5"),
        ("WATCHDOG_USEC", "٣"),
        ("WATCHDOG_USEC", "18446744073709551615"),
        ("WATCHDOG_USEC", "9" * 5000),
        ("WATCHDOG_PID", "self"),
        ("WATCHDOG_PID", "0"),
    ],
    ids=lambda value: f"{value!a:.20}",
)
def test_a_value_that_cannot_be_used_is_named_once_and_there_is_no_notifier(name, value):
    environ = {"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "30000000", name: value}
    with capture_logs() as lines:
        assert Notifier.from_environment(environ) is None
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("notify_unusable", "warning")
    assert line["error"].startswith(f"{name}: ")
    assert f"{value!r:.80}" in line["error"]
    assert "; allowed: " in line["error"]


def test_where_no_socket_can_be_made_there_is_no_notifier(monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("runtime.process.notify.socket.socket", fail)
    with capture_logs() as lines:
        assert Notifier.from_environment({"NOTIFY_SOCKET": "/run/n"}) is None
    assert [line["event"] for line in lines] == ["notify_unusable"]


def test_the_environment_is_left_as_it_is(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/n")
    notifier = Notifier.from_environment()
    assert notifier is not None
    notifier.close()
    assert os.environ["NOTIFY_SOCKET"] == "/run/n"
