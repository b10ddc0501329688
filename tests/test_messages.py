"""Plain messages: what goes in comes out, and nothing else can come out."""

import json
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sqt_fast.engine.messages import MessageError, decode, encode
from sqt_fast.errors import VideoError
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.sampling import plan_clips
from sqt_fast.video.segments import plan_segments
from tests.videos import look

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
ARRAYS = npst.arrays(
    st.sampled_from([np.uint8, np.int32, np.int64, np.float64, np.bool_]), npst.array_shapes(min_side=0)
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@given(st.recursive(LEAVES | ARRAYS, lambda inner: st.lists(inner) | st.tuples(inner, inner), max_leaves=8))
def test_what_goes_in_comes_out(value: Any) -> None:
    assert same(decode(encode(value)), value)


def test_value_types_come_out_as_they_were(archive: Any) -> None:
    facts = look(next(p for p in sorted(archive.rglob("*.mp4")) if p.parent.name != "broken"))
    plan = plan_clips(facts.times_s, facts.end_s)
    segments = plan_segments(facts, plan.wanted)
    report = DecodeReport(3, 2, lost=[4], damaged=[5, 6])
    seen, seen_plan, seen_segments, seen_report = decode(encode((facts, plan, segments, report)))
    assert (seen.source, seen.codec, seen.broken) == (facts.source, facts.codec, facts.broken)
    assert same(seen.times_s, facts.times_s)
    assert same(seen.packets.flags, facts.packets.flags)
    assert same(seen_plan.frames, plan.frames)
    assert [same(a.keep, b.keep) for a, b in zip(seen_segments, segments, strict=True)] == [True] * len(segments)
    assert seen_report == report
    error = decode(encode(VideoError("too_large", "so large")))
    assert (error.status, str(error)) == ("too_large", "so large")


class Malicious:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/it-was-run",)


def header(plain: Any, rest: bytes = b"") -> bytes:
    text = json.dumps(plain).encode()
    return struct.pack("<Q", len(text)) + text + rest


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        pickle.dumps(Malicious()),
        header({"os.system": ["true"]}),
        header({"Popen": {"args": "true"}}),
        header({"Probe": {"no_such_field": 1}}),
        header({"bytes": 10}, b"five!"),
        header({"bytes": -1}),
        header({"array": 8, "dtype": "|O", "shape": [1]}, b"\0" * 8),
        header({"array": 8, "dtype": "<f8", "shape": [2]}, b"\0" * 8),
        struct.pack("<Q", 1 << 60) + b"{}",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(data)
