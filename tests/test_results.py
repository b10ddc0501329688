"""What --json prints."""

import json

from sqt_fast.engine.results import RunCounters, Summary

PROMISED = """videos rows failed clips packets_read packets_dropped frames_decoded frames_wanted wall_s clips_per_s
x_realtime limit""".split()  # noqa: SIM905


def test_every_promised_key_is_there_and_it_is_json() -> None:
    printed = json.loads(json.dumps(Summary(output="a.csv").as_dict()))
    assert set(PROMISED) <= set(printed)
    assert printed["clips_per_s"] == printed["x_realtime"] == 0
    assert printed["limit"] == "none"


def test_rates_leave_out_the_start_of_the_network() -> None:
    summary = Summary(output="a.csv", wall_s=12, start_s=2, counters=RunCounters(clips=50, video_s=300))
    assert summary.labelling_s == 10
    assert summary.as_dict()["clips_per_s"] == 5
    assert summary.as_dict()["x_realtime"] == 30


def test_the_limit_is_what_the_others_waited_for() -> None:
    summary = Summary(output="a.csv", counters=RunCounters(clips=1, network_s=2, wait_s=1, decode_s=9), write_s=0.5)
    assert summary.limit == "network"  # decoding took longer but ran beside it
    summary.counters.wait_s = 3
    assert summary.limit == "decode"
    summary.write_s = 4
    assert summary.limit == "write"


def test_floats_are_short_and_the_tally_is_flat() -> None:
    printed = Summary(output="a.csv", wall_s=1 / 3, counters=RunCounters(packets_read=7)).as_dict()
    assert printed["wall_s"] == 0.3333
    assert printed["packets_read"] == 7
    assert "counters" not in printed


def test_failures_of_the_whole_table_are_counted_by_status() -> None:
    summary = Summary(output="a.csv")
    summary.count(9, ["error", "damaged", "damaged"])
    assert (summary.rows, summary.failed) == (9, 3)
    assert list(summary.failures.items()) == [("damaged", 2), ("error", 1)]
