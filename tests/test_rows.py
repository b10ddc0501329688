"""From scores to rows: labels, windows, and the truth about what could not be decoded."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sqt_fast.errors import VideoError
from sqt_fast.table.rows import RowStyle, Scored, failed_row, video_rows
from sqt_fast.table.schema import Row
from sqt_fast.video.archive import VideoFile
from sqt_fast.video.cpu_decoder import DecodeReport
from sqt_fast.video.packets import PacketColumns
from sqt_fast.video.probe import Orientation, Probe, Source
from sqt_fast.video.sampling import ClipPlan, plan_clips

FPS = 10.0
LABELS = ("a", "b", "c", "d")
VIDEO = VideoFile("dir/v.mp4", 1234, 5678)
WINDOWS = RowStyle(LABELS, top_k=2, per_window=True)
VIDEOS = replace(WINDOWS, per_window=False)


def facts(num_frames: int = 150, **known: Any) -> Probe:
    times = 0.5 + np.arange(num_frames) / FPS
    return Probe(
        **{
            "source": Source(VIDEO.path, 0, 320, 240, Orientation(-90)),
            "packets": PacketColumns().finish(),
            "container": "mp4",
            "codec": "h264",
            "profile": "High",
            "pix_fmt": "yuv420p",
            "coded_size": (240, 320),
            "colorspace": 2,
            "is_interlaced": False,
            "size_changes": False,
            "has_hidden": False,
            "reorder_depth": 0,
            "fps": FPS,
            "is_vfr": False,
            "times_s": times,
            "end_s": float(times[-1] + 1 / FPS),
            "pts": None,
            "promised_end_s": None,
            "promised_frames": None,
            "broken": None,
            **known,
        }
    )


def plan(probe: Probe) -> ClipPlan:
    return plan_clips(probe.times_s, probe.end_s)


def scored(num_clips: int = 3, labelled: list[bool] | None = None, *, embeddings: bool = False) -> Scored:
    scores = np.array([[0.1, 0.2, 0.4, 0.3], [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]], np.float32)[:num_clips]
    return Scored(
        scores,
        np.arange(num_clips * 2).reshape(num_clips, 2).astype(np.float32) / np.float32(3) if embeddings else None,
        np.array(labelled if labelled is not None else [True] * num_clips),
    )


def report_of(**known: Any) -> DecodeReport:
    """150 frames decoded for 38 that clips need, unless ``known`` says otherwise."""
    return DecodeReport(**{"frames_decoded": 150, "frames_wanted": 38, **known})


def sound(probe: Probe) -> DecodeReport:
    return report_of(frames_decoded=probe.num_frames)


def rows_of(
    probe: Probe, report: DecodeReport | None = None, what: Scored | None = None, style: RowStyle = WINDOWS
) -> list[Row]:
    return video_rows(VIDEO, probe, plan(probe), what or scored(), report or sound(probe), style, "cpu")


def test_a_row_a_window() -> None:
    probe = facts()
    rows = rows_of(probe)
    assert [(r.clip_index, r.start_frame, r.end_frame) for r in rows] == [(0, 0, 64), (1, 64, 128), (2, 86, 150)]
    assert [r.start_s for r in rows] == pytest.approx([0.5, 6.9, 9.1])
    assert [r.end_s for r in rows] == pytest.approx([6.9, 13.3, 15.5])
    assert [(r.label, r.label_id) for r in rows] == [("c", 2), ("a", 0), ("c", 2)]
    first = rows[0]
    assert (first.path, first.size_bytes, first.mtime_ns, first.decoder) == ("dir/v.mp4", 1234, 5678, "cpu")
    assert (first.status, first.error_message) == ("ok", None)
    assert (first.topk_labels, first.topk_ids) == (["c", "d"], [2, 3])
    assert np.float32(first.score or 0) == np.float32(0.4)
    assert np.array_equal(np.array(first.topk_scores, np.float32), np.array([0.4, 0.3], np.float32))
    assert first.duration_s == pytest.approx(15)
    assert (first.fps, first.num_frames, first.width, first.height) == (FPS, 150, 320, 240)
    assert (first.codec, first.is_vfr, first.rotation, first.embedding) == ("h264", False, -90, None)


def test_a_row_a_video_is_the_mean() -> None:
    (row,) = rows_of(facts(), style=VIDEOS, what=scored(embeddings=True))
    assert row.clip_index is None
    assert (row.start_frame, row.end_frame, row.start_s) == (0, 150, 0.5)
    assert row.end_s == pytest.approx(15.5)
    assert (row.label, row.topk_ids) == ("c", [2, 3])
    assert row.score == pytest.approx(1 / 3, abs=1e-7)
    assert row.embedding is not None
    assert row.embedding.dtype == np.float16
    assert np.allclose(row.embedding, [2 / 3, 1], atol=1e-3)


def test_a_row_a_video_leaves_out_windows_without_label() -> None:
    report = report_of(lost=list(range(64, 128, 4)), rejected=64)
    row, lost = rows_of(facts(), report, scored(labelled=[True, False, False]), VIDEOS)
    assert row.score == pytest.approx(0.4)
    assert lost.status == "damaged"


def test_embeddings_of_windows_are_float16() -> None:
    rows = rows_of(facts(), what=scored(embeddings=True))
    assert [r.embedding.dtype for r in rows if r.embedding is not None] == [np.dtype(np.float16)] * 3
    assert np.array_equal(
        np.stack([r.embedding for r in rows if r.embedding is not None])[1], np.array([2 / 3, 1], np.float16)
    )


def test_more_best_classes_than_there_are() -> None:
    (row, *_) = rows_of(facts(), style=replace(WINDOWS, top_k=99))
    assert row.topk_labels == ["c", "d", "b", "a"]
    assert row.topk_ids == [2, 3, 1, 0]
    assert len(row.topk_scores or ()) == 4


def test_equal_scores_go_by_number() -> None:
    assert rows_of(facts(), style=replace(WINDOWS, top_k=4))[2].topk_ids == [2, 3, 0, 1]


def test_a_failed_row_holds_what_is_known() -> None:
    row = failed_row(VIDEO, VideoError("not_a_video", "why"))
    assert row == Row(path="dir/v.mp4", status="not_a_video", error_message="why", size_bytes=1234, mtime_ns=5678)
    row = failed_row(VIDEO, VideoError("error", "why"), facts())
    assert (row.codec, row.num_frames, row.label, row.decoder) == ("h264", 150, None, None)


# -- what was lost ----------------------------------------------------------------------------------------------------


def test_a_sound_file_has_no_damage() -> None:
    assert [r.status for r in rows_of(facts())] == ["ok"] * 3


def test_hidden_frames_are_no_damage() -> None:
    """Fewer pictures than packets, no error, every window labelled."""
    assert [r.status for r in rows_of(facts(), report_of(lost=[4, 8]))] == ["ok"] * 3


def test_lost_frames() -> None:
    *labelled, lost = rows_of(facts(), report_of(lost=[28, 12, 8], rejected=3))
    assert [r.status for r in labelled] == ["ok"] * 3
    assert lost.error_message == "3 of 38 frames that clips need could not be decoded"
    assert (lost.status, lost.label, lost.clip_index, lost.decoder) == ("damaged", None, None, "cpu")
    assert (lost.start_s, lost.end_s) == pytest.approx((1.3, 3.4))
    assert (lost.start_frame, lost.score, lost.topk_ids) == (None, None, None)


def test_frames_lost_at_the_end() -> None:
    lost = rows_of(facts(), report_of(lost=[100, 146, 149], rejected=11))[-1]
    assert lost.error_message == "3 of 38 frames that clips need could not be decoded"
    assert (lost.start_s, lost.end_s) == pytest.approx((10.5, 15.5))


def test_lost_frames_of_a_file_that_breaks_off() -> None:
    """No packet was refused, but then none came."""
    lost = rows_of(facts(broken="a packet is cut off"), report_of(lost=[149]))[-1]
    assert lost.error_message == "1 of 38 frames that clips need could not be decoded; a packet is cut off"
    assert lost.start_s == pytest.approx(15.4)
    assert lost.end_s is None, "nobody knows what was to follow"


def test_concealed_frames() -> None:
    lost = rows_of(facts(), report_of(damaged=[149, 0, 0]))[-1]
    assert lost.error_message == "2 of 150 frames are damaged"
    assert (lost.start_s, lost.end_s) == pytest.approx((0.5, 15.5))


def test_concealed_frames_are_known_by_their_ticks() -> None:
    """What is damaged but not shown, as a picture that an edit list cuts off, does no harm."""
    probe = facts(pts=np.arange(150) * 512)
    lost = rows_of(probe, report_of(damaged=[20 * 512, 10 * 512 + 1, -512]))[-1]
    assert lost.error_message == "1 of 150 frames are damaged"
    assert (lost.start_s, lost.end_s) == pytest.approx((2.5, 2.6))
    assert [r.status for r in rows_of(probe, report_of(damaged=[-512]))] == ["ok"] * 3


def test_lost_and_concealed_frames_are_told_in_one_row() -> None:
    lost = rows_of(facts(), report_of(lost=[100], damaged=[20], rejected=1))[-1]
    assert lost.error_message == ("1 of 38 frames that clips need could not be decoded; 1 of 150 frames are damaged")
    assert (lost.start_s, lost.end_s) == pytest.approx((2.5, 10.6))


def test_a_file_that_is_cut_off_by_its_header() -> None:
    probe = facts(promised_end_s=60.0, broken="a packet is cut off")
    lost = rows_of(probe)[-1]
    assert lost.error_message == "the file is cut off: its header promises 60.00 s, it holds 15.50 s"
    assert (lost.start_s, lost.end_s) == pytest.approx((15.5, 60.0))


def test_a_header_may_round() -> None:
    assert len(rows_of(facts(promised_end_s=15.9))) == 3
    assert len(rows_of(facts(promised_frames=152))) == 3


def test_an_avi_that_is_cut_off_by_its_frame_count() -> None:
    lost = rows_of(facts(promised_frames=600))[-1]
    assert lost.error_message == "the file is cut off: its header promises 600 frames, it holds 150"
    assert (lost.start_s, lost.end_s) == pytest.approx((15.5, 60.5))


def test_a_file_that_breaks_off_without_a_promise() -> None:
    lost = rows_of(facts(broken="reading stopped early: i/o error"))[-1]
    assert lost.error_message == "reading stopped early: i/o error"
    assert lost.start_s == pytest.approx(15.5)
    assert lost.end_s is None


def test_packets_that_are_cut_off_in_the_middle() -> None:
    lost = rows_of(facts(cut_s=(3.0, 3.4)))[-1]
    assert (lost.status, lost.error_message) == ("damaged", "packets are cut off")
    assert (lost.start_s, lost.end_s) == (3.0, 3.4)


@pytest.mark.parametrize("rejected", [0, 150], ids=["in silence", "refused"])
@pytest.mark.parametrize("style", [WINDOWS, VIDEOS], ids=["windows", "videos"])
def test_nothing_decoded(style: RowStyle, rejected: int) -> None:
    lost = report_of(frames_decoded=0, lost=list(range(38)), rejected=rejected)
    (row,) = rows_of(facts(), lost, scored(labelled=[False] * 3), style)
    assert (row.status, row.error_message, row.decoder) == ("no_decodable_frame", "no decodable frame", None)
    assert (row.label, row.codec) == (None, "h264")


@pytest.mark.parametrize("style", [WINDOWS, VIDEOS], ids=["windows", "videos"])
def test_a_decoder_that_says_nothing_still_leaves_a_row(style: RowStyle) -> None:
    """Frames vanish without an error and no clip has enough of them."""
    (row,) = rows_of(facts(), report_of(lost=list(range(4, 149, 4))), scored(labelled=[False] * 3), style)
    assert row.status == "damaged"
    assert row.error_message == "37 of 38 frames that clips need could not be decoded"


def test_a_window_without_label_is_explained() -> None:
    report = report_of(lost=list(range(92, 150, 4)))
    *labelled, lost = rows_of(facts(), report, scored(labelled=[True, False, False]))
    assert [r.clip_index for r in labelled] == [0]
    assert lost.error_message == "15 of 38 frames that clips need could not be decoded"
    assert (lost.start_s, lost.end_s) == pytest.approx((9.7, 15.4))
