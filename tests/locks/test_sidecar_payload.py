"""The content of a lock file: written as foreign gateways expect it, and read whatever it is."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from locks import process
from locks.sidecar.payload import MAX_HOLD_MS, Payload, Terms, encode, parse

TERMS = Terms("session:a", 17, 3, 302_000)


def test_it_is_indented_by_two_in_the_order_of_foreign_gateways_with_ours_behind():
    me = process.me()
    assert encode(TERMS, 1_770_000_000.1239).decode() == (
        "{\n"
        f'  "pid": {me.pid},\n'
        '  "createdAt": "2026-02-02T02:40:00.123Z",\n'
        '  "maxHoldMs": 302000,\n'
        f'  "starttime": {me.starttime},\n'
        f'  "host": "{me.host}",\n'
        f'  "bootId": "{me.boot_id}",\n'
        f'  "instance": "{me.instance}",\n'
        '  "lane": "session:a",\n'
        '  "runId": 17,\n'
        '  "epoch": 3\n'
        "}\n"
    )


@given(st.text(), st.integers(0), st.integers(1), st.integers(1, MAX_HOLD_MS), st.floats(0, 4e9))
@example('"\\\0\x1f\n\u2028é😀', 0, 1, 1, 0.0)
def test_what_is_written_is_what_a_general_encoder_writes_and_is_read_back(lane, run_id, epoch, max_hold_ms, at):
    data = encode(Terms(lane, run_id, epoch, max_hold_ms), at)
    assert data.decode() == json.dumps(json.loads(data), indent=2, ensure_ascii=False) + "\n"
    me, read = process.me(), parse(data)
    assert read is not None and read.created_at is not None
    assert math.isclose(read.created_at, at, abs_tol=0.0011)
    assert replace(read, created_at=None) == Payload(
        pid=me.pid,
        max_hold_ms=max_hold_ms,
        starttime=me.starttime,
        host=me.host,
        boot_id=me.boot_id,
        instance=me.instance,
        lane=lane or None,
        run_id=run_id,
        epoch=epoch,
    )


@pytest.mark.parametrize("lane", ["x" * 5000, "\0" * 5000, "😀" * 5000, '"' * 5000, "\udc80" * 5000])
def test_a_lane_of_excessive_length_is_cut_so_that_readers_take_the_file(lane):
    data = encode(TERMS._replace(lane=lane), 0.0)
    assert len(data) <= 4096
    read = parse(data)
    assert read is not None and read.lane is not None and len(read.lane) >= 480
    assert read.epoch == 3


def test_a_lane_for_the_longest_session_key_is_not_cut():
    lane = "session:" + '"' * 1024
    read = parse(encode(TERMS._replace(lane=lane), 0.0))
    assert read is not None and read.lane == lane


def test_half_of_a_surrogate_pair_in_a_lane_is_replaced():
    read = parse(encode(TERMS._replace(lane="a\ud83db"), 0.0))
    assert read is not None and read.lane == "a?b"


def test_what_is_unknown_is_null_and_a_missing_start_time_is_left_out(monkeypatch):
    monkeypatch.setattr(process, "_me", replace(process.me(), starttime=None, boot_id=None))
    data = encode(Terms(None, None, 3, 1), 0.0)
    assert list(json.loads(data)) == [
        "pid",
        "createdAt",
        "maxHoldMs",
        "host",
        "bootId",
        "instance",
        "lane",
        "runId",
        "epoch",
    ]
    read = parse(data)
    assert read is not None
    assert (read.starttime, read.boot_id, read.lane, read.run_id) == (None, None, None, None)


@pytest.mark.parametrize("given, written", [(-5, 1), (0, 1), (1, 1), (MAX_HOLD_MS, MAX_HOLD_MS), (10**12, MAX_HOLD_MS)])
def test_the_longest_hold_is_written_within_what_foreign_gateways_allow(given, written):
    assert json.loads(encode(TERMS._replace(max_hold_ms=given), 0.0))["maxHoldMs"] == written


def test_each_second_is_written_as_it_is():
    for at in (59.999, 60.0, 61.5, 59.0):
        (written,) = re.findall(r'"createdAt": "1970-01-01T00:(.*)Z"', encode(TERMS, at).decode())
        assert written == f"{int(at) // 60:02d}:{at % 60:06.3f}"


@pytest.mark.failure("C4")
@given(st.binary(max_size=4096))
@example(b"")
@example(b"[" * 4096)
@example(b'{"a":' * 800)
@example(b"9" * 4096)
@example(b'{"pid": ' + b"9" * 4000 + b"}")
@example(b'{"pid": 47')
@example(b'{"createdAt": "0001-01-01T00:00:00+23:59"}')
@example(b'{"createdAt": "9999-12-31T23:59:59-23:59"}')
@example(b"\xff\xfe{")
def test_no_content_makes_the_reader_raise(data):
    assert parse(data) is None or isinstance(parse(data), Payload)


_json = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)
_keys = ["pid", "createdAt", "maxHoldMs", "starttime", "host", "bootId", "instance", "lane", "runId", "epoch"]


@given(st.dictionaries(st.sampled_from(_keys), _json))
def test_a_field_is_what_it_should_be_or_nothing(fields):
    read = parse(json.dumps(fields).encode())
    assert read is not None
    for number in (read.pid, read.max_hold_ms, read.starttime, read.epoch):
        assert number is None or type(number) is int
    assert read.run_id is None or type(read.run_id) is int or (type(read.run_id) is str and read.run_id)
    for text in (read.host, read.boot_id, read.instance, read.lane):
        assert text is None or (type(text) is str and text)
    assert read.created_at is None or math.isfinite(read.created_at)
    assert read.pid is None or 0 < read.pid < 1 << 31
    assert read.max_hold_ms is None or read.max_hold_ms > 0


@pytest.mark.parametrize("data", [b"", b" \n", b"null", b"[]", b'"x"', b"7", b"{", b'{"pid": 1}{', b"\0" * 4096])
def test_what_is_no_json_object_is_nothing(data):
    assert parse(data) is None


@pytest.mark.parametrize("pid", ["true", "4711.0", '"4711"', "0", "-7", "2147483648", "null", "1e3", "[7]"])
def test_a_pid_that_is_no_positive_integer_is_none(pid):
    read = parse(f'{{"pid": {pid}, "starttime": 5}}'.encode())
    assert read == Payload(starttime=5)


@pytest.mark.parametrize(
    "text, instant",
    [
        ("1970-01-01T00:01:00.250Z", 60.25),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:01:00.000+01:00", 60.0),
        ("1970-01-01T00:01:00.000", 60.0),
        ("yesterday", None),
        ("1970-13-01T00:00:00.000Z", None),
        ("", None),
    ],
)
def test_created_at_is_an_instant_or_none(text, instant):
    assert parse(json.dumps({"createdAt": text}).encode()) == Payload(created_at=instant)


def test_what_javascript_writes_and_further_keys_do_not_make_it_unreadable():
    read = parse(b'{"pid": 7, "note": "\\ud83d", "more": {"n": 1e999}}')
    assert read == Payload(pid=7)
