"""When a lock file is a left-over: by its owner, its age, the machine it was written on, and clocks that are set."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locks.process import Identity
from locks.sidecar.payload import Payload
from locks.sidecar.staleness import Here, Verdict, judge

NOW = 1_770_000_000.0
ME = Identity(pid=7, starttime=500, boot_id="this boot", host="here", instance="mine")
FOREIGN = Payload(pid=4711, created_at=NOW - 10, max_hold_ms=300_000, starttime=900)
OURS = replace(FOREIGN, host="here", boot_id="this boot", instance="theirs", lane="main", run_id=3, epoch=5)

starttimes = {7: 500, 4711: 900}


def here(alive=(7, 4711), wall=NOW, carried=NOW, me=ME, my_age_s: float | None = 100.0):
    return Here(
        me=me,
        my_age_s=lambda: my_age_s,
        wall=wall,
        carried=carried,
        is_alive=lambda pid: pid in alive,
        starttime=starttimes.get,
    )


def judged(payload, at=None, *, age_of_file_s=0.0, seen_for_s=0.0, locked=False, **ours) -> Verdict:
    verdict = judge(
        payload, here=at or here(), age_of_file_s=age_of_file_s, seen_for_s=seen_for_s, locked=locked, **ours
    )
    assert verdict.reason
    return verdict


# Foreign


@pytest.mark.failure("B9")
def test_a_live_foreign_owner_is_waited_for_up_to_its_own_limit():
    at_limit = judged(replace(FOREIGN, created_at=NOW - 300))
    assert not at_limit.stale
    assert at_limit.reason == "process 4711 is alive"
    assert (at_limit.age_s, at_limit.limit_s) == (300, 300)
    past = judged(replace(FOREIGN, created_at=NOW - 300.001))
    assert past.stale
    assert past.reason == "it is 300.0 s old, which is more than its maxHoldMs of 300.0 s"


@pytest.mark.failure("B9")
@pytest.mark.parametrize("max_hold_ms", [None, 1_800_000, 86_400_000])
def test_no_foreign_owner_is_waited_for_longer_than_half_an_hour(max_hold_ms):
    payload = replace(FOREIGN, max_hold_ms=max_hold_ms)
    assert not judged(replace(payload, created_at=NOW - 1800)).stale
    past = judged(replace(payload, created_at=NOW - 1800.001))
    assert past.stale
    assert "30 min" in past.reason


@pytest.mark.failure("C2")
def test_a_foreign_owner_that_is_dead_is_not_waited_for():
    verdict = judged(FOREIGN, here(alive=(7,)))
    assert verdict.stale
    assert verdict.reason == "process 4711 is dead"


@pytest.mark.failure("C2")
def test_a_number_that_another_process_has_now_is_not_waited_for():
    verdict = judged(replace(FOREIGN, starttime=899))
    assert verdict.stale
    assert "4711 is another one now" in verdict.reason


def test_a_start_time_that_only_one_side_knows_says_nothing():
    assert not judged(replace(FOREIGN, starttime=None)).stale
    assert not judged(replace(FOREIGN, pid=4712), here(alive=(4712,))).stale


def test_a_foreign_lock_that_names_no_process_or_no_time_is_stale():
    assert judged(replace(FOREIGN, pid=None)).reason == "it names no process"
    assert judged(replace(FOREIGN, pid=None)).stale
    assert judged(replace(FOREIGN, created_at=None)).stale
    assert judged(Payload()).stale


# Unreadable


@pytest.mark.failure("C4")
def test_an_unreadable_file_may_be_about_to_be_written_for_30_seconds():
    assert not judged(None).stale
    assert not judged(None, age_of_file_s=30.0, locked=True).stale
    assert judged(None, age_of_file_s=30.1).stale
    assert judged(None, seen_for_s=30.1).stale
    assert judged(None, age_of_file_s=4.0).limit_s == 30.0


# Our own number


@pytest.mark.failure("C3", "B8")
def test_a_foreign_lock_with_our_own_number_is_told_by_its_start_time():
    assert judged(replace(FOREIGN, pid=7, starttime=499)).stale
    held = replace(FOREIGN, pid=7, starttime=500)
    assert not judged(held).stale
    assert judged(replace(held, created_at=NOW - 300.1)).stale


@pytest.mark.failure("C3", "B8")
def test_without_a_start_time_a_lock_with_our_own_number_is_stale_if_it_is_older_than_we_are():
    lock = replace(FOREIGN, pid=7, starttime=None)
    older = judged(replace(lock, created_at=NOW - 102))
    assert older.stale
    assert "before process 7, this one, was started" in older.reason
    assert not judged(replace(lock, created_at=NOW - 99)).stale
    assert not judged(replace(lock, created_at=NOW - 102), here(my_age_s=None)).stale
    assert not judged(replace(lock, created_at=NOW - 102, pid=4711)).stale


ORPHAN = replace(FOREIGN, pid=7, starttime=500, max_hold_ms=1_020_000)


@pytest.mark.failure("Y10")
@pytest.mark.parametrize("starttime", [500, None], ids=["our start time", "no start time"])
@pytest.mark.parametrize("me", [ME, replace(ME, starttime=None)], ids=["known", "unknown"])
def test_a_lock_of_this_process_that_nothing_here_holds_is_stale_once_no_run_could_be_so_old(starttime, me):
    orphan = replace(ORPHAN, starttime=starttime)
    at = here(me=me, my_age_s=10**6)
    young = judged(replace(orphan, created_at=NOW - 37), at, we_hold_s=32.0, locked=True)
    assert not young.stale
    assert young.limit_s == 37.0  # 5 s of margin
    old = judged(replace(orphan, created_at=NOW - 37.001), at, we_hold_s=32.0, locked=True)
    assert old.stale
    assert "names process 7, this one, which does not hold it, and is 37.0 s old" in old.reason


@pytest.mark.failure("Y10")
def test_a_lock_that_something_else_in_this_process_has_open_has_its_own_limit():
    held = replace(ORPHAN, created_at=NOW - 1020)
    verdict = judged(held, we_hold_s=32.0, is_open=lambda: True)
    assert not verdict.stale
    assert verdict.limit_s == 1020
    assert judged(replace(held, created_at=NOW - 1020.1), we_hold_s=32.0, is_open=lambda: True).stale


@pytest.mark.failure("Y10", "B8", "B9")
@pytest.mark.parametrize(
    "fields",
    [{"pid": 4711, "starttime": 900}, {"host": "there", "boot_id": "another"}, {"host": "b", "boot_id": "this boot"}],
)
def test_our_own_limit_is_none_for_other_processes_machines_and_containers(fields):
    assert not judged(replace(ORPHAN, created_at=NOW - 1000, **fields), we_hold_s=32.0).stale


@pytest.mark.failure("Y10")
def test_our_own_limit_makes_no_lock_of_lanes_stale():
    for instance in ("mine", "theirs"):
        payload = replace(OURS, instance=instance, created_at=NOW - 1000)
        assert not judged(payload, we_hold_s=32.0).stale


@pytest.mark.failure("Y10")
def test_our_own_limit_makes_no_lock_last_longer_than_it_says_itself():
    verdict = judged(replace(ORPHAN, max_hold_ms=20_000, created_at=NOW - 20.1), we_hold_s=32.0)
    assert verdict.stale
    assert "maxHoldMs" in verdict.reason


# Ours


@pytest.mark.parametrize("age_s", [-3600, 0, 10, 10**6])
@pytest.mark.parametrize("pid", [7, 4711, 1, None])
@pytest.mark.parametrize("instance", ["mine", "theirs"])
@pytest.mark.failure("C1", "C3")
def test_whoever_holds_the_kernel_lock_knows_that_a_lock_of_ours_is_a_left_over(age_s, pid, instance):
    payload = replace(OURS, pid=pid, instance=instance, created_at=NOW - age_s)
    verdict = judged(payload, locked=True)
    assert verdict.stale
    assert "kernel lock" in verdict.reason


@pytest.mark.parametrize("locked", [True, False])
def test_the_kernel_lock_says_nothing_about_foreign_owners(locked):
    assert not judged(FOREIGN, locked=locked).stale


@pytest.mark.failure("B7", "B5")
@pytest.mark.parametrize("age_s", [0, 1801, 10**6])
def test_age_alone_never_makes_a_lock_of_ours_stale(age_s):
    assert not judged(replace(OURS, created_at=NOW - age_s), seen_for_s=age_s).stale
    assert not judged(replace(OURS, created_at=NOW - age_s, pid=7, instance="mine", starttime=500)).stale
    assert not judged(replace(OURS, created_at=None)).stale


@pytest.mark.failure("C2", "C3")
def test_looked_at_without_the_kernel_lock_ours_is_judged_by_its_process():
    assert judged(OURS, here(alive=(7,))).stale
    assert judged(replace(OURS, starttime=899)).stale
    assert judged(replace(OURS, pid=None)).stale
    assert judged(replace(OURS, pid=7, starttime=499)).stale
    after_exec = judged(replace(OURS, pid=7, starttime=500))
    assert after_exec.stale
    assert "before it executed another program" in after_exec.reason


# Other places


@pytest.mark.failure("C2", "B8")
@pytest.mark.parametrize("payload", [OURS, replace(OURS, instance=None)])
@pytest.mark.parametrize("locked", [True, False])
def test_what_was_written_before_this_machine_was_started_anew_is_stale(payload, locked):
    verdict = judged(replace(payload, boot_id="another boot"), locked=locked)
    assert verdict.stale
    assert "started anew" in verdict.reason


@pytest.mark.failure("B8")
@pytest.mark.parametrize("payload", [OURS, replace(OURS, instance=None)])
@pytest.mark.parametrize("locked", [True, False])
@pytest.mark.parametrize("boot_id", ["another boot", None])
@pytest.mark.parametrize("pid", [7, 4711, 1])
def test_the_process_of_another_machine_is_neither_dead_nor_me_and_is_waited_for(payload, locked, boot_id, pid):
    payload = replace(payload, host="there", boot_id=boot_id, pid=pid, starttime=1)
    verdict = judged(payload, here(alive=()), locked=locked)
    assert not verdict.stale
    assert "there" in verdict.reason
    assert not judged(replace(payload, created_at=NOW - 300), here(alive=()), locked=locked).stale
    assert judged(replace(payload, created_at=NOW - 300.1), here(alive=()), locked=locked).stale


@pytest.mark.failure("B8")
@pytest.mark.parametrize("pid", [7, 4711, 1])
def test_a_process_of_another_container_is_known_to_the_kernel_lock_only(pid):
    payload = replace(OURS, host="container", pid=pid, starttime=1, created_at=NOW - 10**6)
    assert not judged(payload, here(alive=())).stale
    assert judged(payload, here(alive=()), locked=True).stale
    assert not judged(replace(payload, instance=None, created_at=NOW), here(alive=()), locked=True).stale


@pytest.mark.failure("B8")
def test_where_there_is_no_boot_id_the_host_decides():
    at = here(me=replace(ME, boot_id=None))
    assert judged(OURS, at, locked=True).stale
    assert not judged(replace(OURS, host="there"), at, locked=True).stale
    assert judged(OURS, here(alive=(), me=replace(ME, boot_id=None))).stale


# Clocks


step = st.sampled_from([-3600.0, 3600.0]) | st.floats(-(10**9), 10**9)


@pytest.mark.failure("C5")
@given(step, st.floats(0, 5000), st.floats(-290, 5000), st.floats(0, 300), st.floats(0, 1))
def test_no_step_of_the_wall_clock_makes_a_lock_stale_that_is_not(step, stepped_at, created_at, age, watched):
    """This process was started at 0, when its wall clock was right; instants are true time behind that."""
    clock = lambda at: NOW + at + (step if at >= stepped_at else 0.0)  # noqa: E731 -- a formula
    now = created_at + age
    if now < 0:
        return
    at = here(wall=clock(now), carried=NOW + now)
    payload = replace(FOREIGN, created_at=clock(created_at), max_hold_ms=300_001)
    assert not judged(payload, at, seen_for_s=age * watched).stale
    assert not judged(None, at, age_of_file_s=at.age_of(clock(now - min(age, 29.9)))).stale


@pytest.mark.failure("C5")
@given(step)
def test_no_step_of_the_wall_clock_keeps_a_watched_lock_for_ever(step):
    at = here(wall=NOW + step, carried=NOW)
    assert judged(FOREIGN, at, seen_for_s=300.1).stale
    assert judged(None, at, seen_for_s=30.1).stale


@pytest.mark.failure("C5")
def test_an_instant_in_the_future_has_the_age_0():
    assert here().age_of(NOW + 3600) == 0.0
    verdict = judged(replace(FOREIGN, created_at=NOW + 3600))
    assert not verdict.stale
    assert verdict.age_s == 0.0
