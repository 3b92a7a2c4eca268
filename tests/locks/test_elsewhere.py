"""On macOS and Windows: everything can be imported, and `filelock` is chosen and does what a session needs.

Shown in child processes whose operating system lacks what those platforms lack. What that cannot show: how their own
file locks, paths and sharing modes behave, which only they can.
"""

from __future__ import annotations

import json

import pytest
from anyio import fail_after

from locks import LeaseTimeout, LockRegistry
from locks.engines import choose
from tests.peers import peer
from tests.poll import eventually


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("platform", ["macos", "windows"])
@pytest.mark.backends("asyncio")
async def test_where_there_are_no_kernel_locks_filelock_is_chosen_and_excludes_processes(path, platform, backend):
    registry = LockRegistry(engine="filelock")
    with peer("elsewhere", path, platform, backend) as other, fail_after(60):
        await eventually(lambda: other.said("held"), within=30)
        for right in (registry.lease, registry.turn):
            with pytest.raises(LeaseTimeout):
                async with right(path, wait_timeout=0.02):
                    raise AssertionError("two processes have the same right")
        other.tell("leave")
        async with registry.turn(path), registry.lease(path) as lease:
            await lease.append({"n": "ours"})
        await eventually(lambda: other.said("left") and other.ended(), within=30)
        assert other.exit_code == 0
        first, *_, last = other.lines
    assert first == "engine=filelock"
    # Ours came after the two; where among the rest is up to who polled first.
    assert [record["n"] for record in json.loads(last)][:2] == [1, 2]
    records = [record["n"] for record in await registry.read(path, on_error="raise")]
    assert [n for n in records if n != "ours"] == [1, 2, 3, 4]
    assert records.count("ours") == 1
    assert (path.parent / "session.jsonl.torn").read_bytes() == b'{"n": "torn\n'


# The choice


@pytest.fixture(autouse=True)
def _asked_anew():
    choose.kernel_locks_work.cache_clear()
    yield
    choose.kernel_locks_work.cache_clear()


def test_here_kernel_locks_are_chosen():
    assert LockRegistry().engine == "kernel"


@pytest.mark.parametrize("defect", ["absent", "refused", "always granted", "never granted", "not seen", "not released"])
def test_kernel_locks_that_are_not_what_they_should_be_are_not_used(defect, monkeypatch):
    if defect == "absent":
        monkeypatch.setattr("locks._os.HAS_OFD_LOCKS", False)
    elif defect == "refused":

        def refuse(fd, position):
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr("locks._os.ofd_lock", refuse)
    elif defect in ("always granted", "never granted"):
        monkeypatch.setattr("locks._os.ofd_lock", lambda fd, position: defect == "always granted")
    elif defect == "not seen":
        monkeypatch.setattr("locks._os.ofd_conflict", lambda fd, start, length: None)
    else:
        monkeypatch.setattr("locks._os.ofd_unlock", lambda fd, position: None)
    assert LockRegistry().engine == "filelock"
    with pytest.raises(ValueError, match="allowed here: 'filelock', 'none'"):
        LockRegistry(engine="kernel")


@pytest.mark.parametrize("reason", ["no temporary directory", "out of descriptors"])
def test_a_process_that_cannot_try_does_not_settle_for_an_engine_that_the_others_do_not_see(reason, monkeypatch):
    errors = {"no temporary directory": FileNotFoundError(2, "nowhere"), "out of descriptors": OSError(24, "too many")}

    def fail(*args, **kwargs):
        raise errors[reason]

    monkeypatch.setattr("tempfile.NamedTemporaryFile", fail)
    assert LockRegistry().engine == "kernel"


def test_the_probe_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert choose.kernel_locks_work()
    assert list(tmp_path.iterdir()) == []
