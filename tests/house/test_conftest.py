"""The hostile defaults are real: each of them fails a test that deserves it, and no other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

IMPATIENT = """
        from tests import leaks
        leaks.ENDS_WITHIN = 0.1
"""
"""What is left behind on purpose does not end by itself: it need not be waited for."""

CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")


def test_a_decent_test_passes_on_every_event_loop(run):
    result = run(
        """
        async def test_decent(tmp_path):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep, 0.01)
                await to_thread.run_sync((tmp_path / "file").write_text, "text")
            process = await anyio.run_process(["true"])
            assert process.returncode == 0
            async with await anyio.connect_tcp("127.0.0.1", listen()) as stream:
                await stream.send(b"x")

        def listen():
            with socket.socket() as ours:
                ours.bind(("127.0.0.1", 0))
                ours.listen()
                server.append(ours.dup())
                return ours.getsockname()[1]

        server = []

        @pytest.fixture(autouse=True)
        def close():
            yield
            server.pop().close()
        """,
        "-v",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_decent?asyncio?*", "*test_decent?uvloop?*", "*test_decent?trio?*"])


def test_a_leaked_task_fails_the_test(run):
    result = run(
        """
        @pytest.mark.backends("asyncio", "uvloop")
        async def test_asyncio():
            test_asyncio.kept = asyncio.create_task(anyio.sleep(60), name="forgotten")

        async def forgotten():
            await anyio.sleep(60)

        @pytest.mark.backends("trio")
        async def test_trio():
            trio.lowlevel.spawn_system_task(forgotten)

        async def test_virtual(virtual):
            if asyncio._get_running_loop():
                test_virtual.kept = asyncio.create_task(forgotten(), name="forgotten")
            else:
                trio.lowlevel.spawn_system_task(forgotten)
        """
    )
    result.assert_outcomes(failed=5)
    assert result.stdout.str().count("leaked task: ") >= 5


def test_a_task_that_ends_by_itself_is_no_leak(run):
    run(
        """
        @pytest.mark.backends("asyncio", "uvloop")
        async def test_ends():
            test_ends.kept = asyncio.create_task(anyio.lowlevel.checkpoint())
        """
    ).assert_outcomes(passed=2)


def test_a_leaked_thread_fails_the_test(run):
    result = run(
        IMPATIENT
        + """
        def test_thread():
            threading.Thread(target=time.sleep, args=(2,), name="forgotten").start()

        async def test_daemon():
            threading.Thread(target=time.sleep, args=(30,), name="forgotten", daemon=True).start()

        def test_steward():
            threading.Thread(target=time.sleep, args=(30,), name="locks-steward", daemon=True).start()
        """
    )
    result.assert_outcomes(passed=5, errors=4)  # found after the loop has closed, so not part of the test's own outcome
    result.stdout.fnmatch_lines(["*leaked threads: *forgotten*"])


@pytest.mark.skipif(not CHILDREN.exists(), reason="this kernel does not list children")
def test_a_leaked_process_fails_the_test(run):
    result = run(
        IMPATIENT
        + """
        kept = []

        def test_child():
            kept.append(subprocess.Popen(["sleep", "30"]))

        def test_zombie():
            kept.append(subprocess.Popen(["true"]))

        def test_waited_for():
            for child in kept:
                child.kill()
                child.wait()
            subprocess.run(["true"])

        def test_spawned_by_multiprocessing():
            import multiprocessing
            process = multiprocessing.get_context("spawn").Process(target=print)
            process.start()
            process.join()
            process.close()
        """
    )
    result.assert_outcomes(passed=4, errors=2)
    result.stdout.fnmatch_lines(["*leaked processes: *"])


def test_a_leaked_descriptor_fails_the_test(run):
    result = run(
        IMPATIENT
        + """
        kept = []

        def test_pipe():
            kept.append(os.pipe())

        async def test_file(tmp_path):
            kept.append((tmp_path / "forgotten").open("w"))

        def test_replaced(tmp_path):
            for descriptor in kept[0]:
                os.close(descriptor)
            kept[0] = os.pipe()
        """
    )
    result.assert_outcomes(passed=5, errors=5)
    result.stdout.fnmatch_lines(["*leaked descriptors: *pipe:*", "*leaked descriptors: *forgotten*"])


def test_a_leaked_lease_fails_the_test(run):
    result = run(
        """
        from locks import LockRegistry, Right

        kept = []

        async def hold(path):
            arbiter = LockRegistry(engine="none").arbiter  # all that a lease keeps of its registry
            await arbiter.acquire(str(path), Right.WRITE, arbiter.new_claim())
            kept.append(arbiter)

        async def test_lease(tmp_path):
            await hold(tmp_path / "a")

        def test_ended_loop(tmp_path):
            anyio.run(hold, tmp_path / "a")

        def test_no_loop():
            pass
        """
    )
    result.assert_outcomes(failed=3, passed=2, errors=1)
    result.stdout.fnmatch_lines(["*registry not idle: *held=1 waiting=0*"])


def test_a_blocked_loop_fails_the_test(run):
    result = run(
        """
        async def test_sleep():
            time.sleep(0.001)

        async def test_swallowed():
            try:
                time.sleep(0.001)
            except BaseException:
                pass

        async def test_sync(tmp_path):
            with (tmp_path / "file").open("w") as file:
                os.fsync(file.fileno())

        async def test_child():
            subprocess.run(["true"])

        async def test_connect():
            with socket.socket() as ours, socket.socket() as theirs:
                ours.bind(("127.0.0.1", 0))
                ours.listen()
                theirs.connect(ours.getsockname())

        async def test_lock(tmp_path):
            import fcntl
            with (tmp_path / "file").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)

        @pytest.fixture
        async def slow():
            time.sleep(0.001)

        async def test_fixture(slow):
            pass
        """
    )
    result.assert_outcomes(failed=21)
    result.stdout.fnmatch_lines(["*time.sleep*blocked the event loop*", "*in test_sleep*"])


def test_a_loop_may_be_blocked_on_purpose_and_threads_always(run):
    run(
        """
        async def test_frozen():
            with blocking.permitted("frozen on purpose"):
                time.sleep(0.001)

        async def test_thread():
            await to_thread.run_sync(time.sleep, 0.001)

        async def test_trylock(tmp_path):
            import fcntl
            with (tmp_path / "file").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(file, fcntl.LOCK_UN)

        def test_no_loop():
            time.sleep(0.001)
            subprocess.run(["true"])
        """
    ).assert_outcomes(passed=10)


def test_warnings_fail_the_test(run):
    result = run(
        """
        import gc

        def test_warning():
            warnings.warn("old")

        def test_resource(tmp_path):
            (tmp_path / "file").open("w")
            gc.collect()

        def test_never_awaited():
            anyio.sleep(1)
            gc.collect()
        """
    )
    result.assert_outcomes(failed=3)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_waiting_for_ever_in_virtual_time_ends(run, backend):
    result = run(
        f"""
        @pytest.mark.backends("{backend}")
        async def test_event(virtual):
            await anyio.Event().wait()

        @pytest.mark.backends("{backend}")
        async def test_shielded(virtual):
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()

        async def stubborn():
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()

        @pytest.mark.backends("{backend}")
        async def test_stubborn(virtual):
            async with anyio.create_task_group() as group:
                group.start_soon(stubborn)
        """
    )
    assert result.parseoutcomes()["failed"] == 3
    result.stdout.fnmatch_lines(["*everything waits for ever*"])


def test_tests_are_chosen_by_row_and_suite(run):
    source = """
        @pytest.mark.failure("A3", "B2")
        def test_row(): pass

        @pytest.mark.suite("S1")
        def test_suite(): pass

        def test_other(): pass
        """
    run(source, "--failure=B2").assert_outcomes(passed=1, deselected=2)
    run(source, "--suite=S1").assert_outcomes(passed=1, deselected=2)


def test_a_marker_that_names_no_id_is_refused(run):
    result = run(
        """
        @pytest.mark.failure("one")
        def test_no_id(): pass

        @pytest.mark.failure
        def test_nothing(): pass

        @pytest.mark.suite(id="S1")
        def test_keyword(): pass
        """
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().count("does not name ids") == 3


def test_a_backend_that_is_not_there_is_refused(run):
    result = run(
        """
        @pytest.mark.backends("curio")
        async def test_one(): pass
        """
    )
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*no such backend: curio*"])
