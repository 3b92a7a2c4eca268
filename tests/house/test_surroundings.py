"""A test sees the signals, the `umask` and the environment of a terminal, whatever its process was started with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import surroundings

pytestmark = pytest.mark.failure("T8")

IGNORED = (*surroundings.HANDED_ON, signal.SIGINT, signal.SIGCHLD)
BLOCKED = {signal.SIGTERM, signal.SIGUSR1}
SHOW = """
import os, signal
numbers = signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}  # these Python itself ignores
print(sorted(number for number in numbers if signal.getsignal(number) is signal.SIG_IGN))
print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), oct(os.umask(0)), os.environ.get("NO_COLOR"))
"""
CLEAN = ["[]", "[] 0o22 None"]


@pytest.fixture
def hostile(monkeypatch) -> Iterator[None]:
    """What a shell under `nohup`, a daemon or a careful user may hand on."""
    monkeypatch.setenv("NO_COLOR", "1")
    before = {number: signal.signal(number, signal.SIG_IGN) for number in IGNORED}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
    mask = os.umask(0o077)
    yield
    os.umask(mask)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in before.items():
        signal.signal(number, handler)


def shown() -> list[str]:
    """What a child of this process inherits."""
    return subprocess.run([sys.executable, "-c", SHOW], stdout=subprocess.PIPE, text=True, check=False).stdout.split(
        "\n"
    )[:2]


def test_a_child_inherits_nothing_of_what_the_tests_were_started_with(hostile):
    assert shown() != CLEAN
    with surroundings.as_in_a_terminal():
        assert shown() == CLEAN


def test_what_was_changed_is_as_before_afterwards(hostile):
    with surroundings.as_in_a_terminal():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {signal.getsignal(number) for number in IGNORED} == {signal.SIG_IGN}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= BLOCKED
    assert os.umask(0o077) == 0o077
    assert os.environ["NO_COLOR"] == "1"


def test_under_nohup_a_hangup_still_does_not_end_the_tests(hostile):
    with surroundings.as_in_a_terminal():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_IGN, signal.SIG_DFL)


def test_every_test_is_run_so(hostile, run):
    result = run(
        f"""
        import sys

        def test_inherits_nothing():
            done = subprocess.run([sys.executable, "-c", {SHOW!r}], stdout=subprocess.PIPE, text=True)
            assert done.stdout.split("\\n")[:2] == {CLEAN!r}
        """
    )
    result.assert_outcomes(passed=1)
