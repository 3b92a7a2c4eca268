"""The errors of `locks`: told apart by type, with fields, picklable, and none an `OSError`."""

from __future__ import annotations

import pickle

import anyio
import pytest

import locks
from locks import Holder, LeaseLost, LeaseTimeout, LockError, LockRegistry

ERRORS = [
    error for name in locks.__all__ if isinstance(error := getattr(locks, name), type) and issubclass(error, LockError)
]


@pytest.mark.failure("D4")
@pytest.mark.parametrize("error", ERRORS)
def test_an_error_is_a_lock_error_and_no_os_error(error):
    """A generic network retry catches `OSError`, and `TimeoutError` is one."""
    assert issubclass(error, LockError)
    assert not issubclass(error, OSError)


def test_the_errors_that_the_design_names_are_there():
    names = {error.__name__ for error in ERRORS}
    assert names >= {"LeaseTimeout", "LeaseExpired", "LeaseLost", "Revoked", "Superseded", "RunEnded"}
    assert names >= {"DeadlockError", "InvalidSession", "TranscriptError", "LockError"}
    for lost in ("Revoked", "Superseded", "RunEnded"):
        assert issubclass(getattr(locks, lost), LeaseLost)


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_survives_pickling_with_its_fields_and_its_message(error):
    before = error("what happened", path="/sessions/a.jsonl", holder=Holder("main", 7), waited_s=1.5, errno=28)
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is error
    assert str(after) == str(before) == "what happened"
    assert vars(after) == vars(before)
    assert after.holder == Holder("main", 7)


async def test_an_error_as_it_is_raised_survives_pickling(tmp_path, virtual):
    one, other = LockRegistry(), LockRegistry()
    async with one.lease(tmp_path / "a"):
        with pytest.raises(LeaseTimeout) as caught:
            async with other.lease(tmp_path / "a", wait_timeout=1):
                pytest.fail("entered")
    after = pickle.loads(pickle.dumps(caught.value))
    assert vars(after) == vars(caught.value)
    assert after.path == str(tmp_path / "a")


@pytest.mark.failure("D4")
def test_only_a_passed_wait_budget_is_worth_asking_again():
    assert [error.__name__ for error in ERRORS if error.retryable] == ["LeaseTimeout"]


def test_a_holder_is_named_by_its_run_or_by_its_task():
    assert str(Holder("main", 7, pid=1)) == "run 7 on lane main (pid 1)"
    assert str(Holder(task="writer", pid=1)) == "task writer (pid 1)"
    assert str(Holder(pid=7)) == "process 7"
    assert "unnamed" in str(Holder(task=""))


async def test_without_a_run_the_holder_is_the_task_by_name(tmp_path):
    registry = LockRegistry()
    names = []

    async def work():
        async with registry.lease(tmp_path / "a") as lease:
            names.append(lease.holder.task)

    async with anyio.create_task_group() as group:
        group.start_soon(work, name="the writer")
    assert names == ["the writer"]
