"""A holder in another PID namespace, as in a container: its number says nothing here, and the kernel lock all.

Both sides share the kernel and the directory. Where no namespace can be made (that takes root, or namespaces of users),
the other side is an ordinary process: then the tests show the same of two processes, and no more.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess

import pytest
from anyio import create_task_group, fail_after

from locks import LeaseTimeout, LockRegistry
from tests.peers import peer
from tests.poll import eventually


@functools.cache
def unshare() -> tuple[str, ...]:
    """What makes a PID namespace here, to be put before a command."""
    pid = ("--pid", "--fork", "--mount-proc", "--kill-child")
    for command in (("unshare", *pid), ("unshare", "--user", "--map-root-user", *pid)):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return ()


@pytest.fixture
def apart():
    return unshare()


@pytest.mark.failure("B8")
@pytest.mark.backends("asyncio", "trio")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_holder_inside_is_waited_for_and_not_robbed(path, lock, apart, backend):
    registry, order = LockRegistry(), []

    async def wait():
        async with registry.lease(path) as lease:
            order.append("granted")
            assert json.loads(lock.read_bytes())["epoch"] == lease.epoch

    with peer("inside", path, backend, *apart) as other, fail_after(30):
        await eventually(lambda: other.said("held"), within=60)
        content = lock.read_bytes()
        told = json.loads(content)
        if apart:
            assert told["pid"] == 1  # a number that is somebody else's here
        with pytest.raises(LeaseTimeout) as caught:
            async with registry.lease(path, wait_timeout=0.05):
                raise AssertionError("robbed")
        assert caught.value.holder is not None
        assert caught.value.holder.pid == told["pid"]
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: registry.statistics().competing == 1)
            assert lock.read_bytes() == content
            order.append("over")
            other.tell("leave")
        await eventually(lambda: other.said("left"))
    assert order == ["over", "granted"]
    assert not lock.exists()


@pytest.mark.failure("B8")
@pytest.mark.backends("asyncio", "trio")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_holder_outside_is_waited_for_and_not_robbed(path, lock, apart, backend):
    registry = LockRegistry()
    with fail_after(30):
        async with registry.lease(path) as lease:
            content = lock.read_bytes()
            with peer("inside", path, backend, *apart) as other:
                await eventually(lambda: other.said("waiting"), within=60)
                await lease.append({"by": "us"})
                assert not other.said("held")
                assert lock.read_bytes() == content
    async with registry.lease(path, wait_timeout=60) as lease:  # what waited was killed
        await lease.append({"by": "us"})


@pytest.mark.failure("B8", "C1")
@pytest.mark.backends("asyncio")
async def test_what_a_killed_holder_inside_left_behind_is_replaced(path, lock, apart):
    registry = LockRegistry()
    with peer("inside", path, "asyncio", *apart) as other, fail_after(30):
        await eventually(lambda: other.said("held"), within=60)
    assert lock.exists()
    async with registry.lease(path, wait_timeout=60) as lease:
        assert json.loads(lock.read_bytes())["pid"] == os.getpid()
        await lease.append({"by": "us"})
    assert not lock.exists()
