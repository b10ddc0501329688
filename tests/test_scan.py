"""What a probe says of a file, against a full decode by PyAV alone, and of files that hold nothing to label."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sqt_fast.errors import VideoError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import FORMATS, Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.table.rows import _missing_end
from sqt_fast.video import container as container_module
from sqt_fast.video.archive import find_videos
from sqt_fast.video.probe import Orientation, Probe
from sqt_fast.video.scan import probe
from tests.videos import KINDS, MATRICES, look, story, with_matrix, write, write_two_tracks

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

SIZE, SECONDS = (96, 64), 1.6
FPS = Fraction(25)
Times = NDArray[np.float64]


def refused(path: Path | str) -> tuple[str, str]:
    with pytest.raises(VideoError) as caught:
        look(path)
    assert "\n" not in str(caught.value)
    return caught.value.status, str(caught.value)


def encode(path: Path, form: Format, seconds: float = SECONDS) -> list[int]:
    """Write a video; return the ticks of 1 / form.fps at which frames begin, and at last the one where it ends."""
    edges = encoding.frame_edges(form, seconds, [1])
    frames = draw(random_scene("clockwise", 1), (float(tick / form.fps) for tick in edges[:-1]), form.size)
    with encoding.silent_svt():
        encoding.encode_video(path, form, frames, edges)
    return edges


def video(folder: Path, container: str = "mp4", encoder: str = "libx264", **options: str) -> Path:
    """Write the usual small video, 40 frames at 25 a second."""
    path = folder / f"video.{container}"
    encode(path, Format(container, encoder, "yuv420p", SIZE, FPS, options))
    return path


def decoded(path: Path) -> tuple[Times, list[int | None], float]:
    """Decode everything: presentation times from the start of the file, raw pts, and the container's mean rate."""
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        stream.thread_type = "AUTO"
        pts: list[int | None] = []
        for packet in container.demux(stream):
            try:
                pts += [frame.pts for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
        base, start_s = stream.time_base, (container.start_time or 0) / 1e6
        assert base is not None
        times = np.array([float(p * base) - start_s for p in pts if p is not None])
        return times, pts, float(stream.average_rate or 0)


# Times and frame numbers of sound files ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f"{f.encoder}.{f.container}-{f.fps}-{len(f.ticks)}")
def test_samples_are_known_to_the_frame(form: Format, tmp_path: Path) -> None:
    form, _ = encoding.available_format(form)
    path = tmp_path / f"a.{form.container}"
    edges = np.array(encode(path, form)) / float(form.fps)
    facts = look(path)
    clock = 0.0006 if form.container in ("mkv", "webm") else 2e-5  # Matroska counts milliseconds
    assert facts.num_frames == len(edges) - 1
    np.testing.assert_allclose(facts.times_s - facts.times_s[0], edges[:-1], atol=clock)
    assert facts.end_s - facts.times_s[0] == pytest.approx(edges[-1], abs=0.0011 if clock > 1e-4 else 1e-4)
    assert facts.is_vfr == (len(form.ticks) > 1)
    assert facts.fps == pytest.approx((len(edges) - 1) / edges[-1], rel=0.002)
    assert facts.codec == av.codec.Codec(form.encoder, "w").canonical_name
    stored = form.size if form.rotation % 180 == 0 else form.size[::-1]
    assert (facts.source.width, facts.source.height) == stored
    assert facts.pix_fmt == form.pix_fmt
    assert facts.source.orientation.rotation == form.rotation
    assert facts.broken is None
    assert _missing_end(facts) is None
    if form.container != "avi":  # its times are counted, not stored
        times, pts, _ = decoded(path)
        np.testing.assert_allclose(facts.times_s, times, atol=1e-9)
        if form.encoder == "mpeg2video":  # says that it may reorder, but does not: counted
            assert facts.pts is None
        else:
            assert facts.pts is not None
            assert facts.pts.tolist() == pts


CONTAINERS = [
    ("mov", "mpeg4"),
    ("3gp", "libx264"),
    ("mpg", "mpeg2video"),
    ("vob", "libx264"),
    ("flv", "libx264"),
    ("m2ts", "libx264"),
    ("mxf", "mpeg2video"),
    ("mxf", "libx264"),
    ("asf", "libx264"),
    ("nut", "libx264"),
    ("h264", "libx264"),
    ("m2v", "mpeg2video"),
    ("hevc", "libx265"),
    ("obu", "libsvtav1"),
    ("ivf", "libsvtav1"),
    ("avi", "libx264"),
    ("avi", "mpeg4"),
]


@pytest.mark.parametrize(("container", "encoder"), CONTAINERS, ids=[".".join(pair[::-1]) for pair in CONTAINERS])
def test_other_containers_with_b_frames(container: str, encoder: str, tmp_path: Path) -> None:
    if not encoding.has_encoder(encoder):
        pytest.skip(f"this build of FFmpeg has no encoder {encoder}")
    facts = look(video(tmp_path, container, encoder, **({} if encoder == "libsvtav1" else {"bf": "2"})))
    assert facts.num_frames == 40
    np.testing.assert_allclose(facts.times_s - facts.times_s[0], np.arange(40) / 25, atol=0.0011)
    assert facts.times_s[0] in (0, pytest.approx(0.04, abs=1e-3))  # ASF: the start is unknown to FFmpeg, so not 0
    assert facts.end_s - facts.times_s[0] == pytest.approx(1.6, abs=0.0011)
    assert facts.fps == pytest.approx(25, rel=0.001)
    assert not facts.is_vfr
    assert facts.broken is None


def test_times_that_are_not_the_pictures_own_are_not_trusted(tmp_path: Path) -> None:
    """FFmpeg's MXF of H.264 numbers packets as they lie, while its pictures come out in another order."""
    own, stray = video(tmp_path, "mp4", bf="3"), video(tmp_path, "mxf", bf="3")
    assert decoded(stray)[1] != sorted(decoded(stray)[1])  # type: ignore[type-var]  # no None among them
    assert look(stray).pts is None
    assert look(own).pts is not None


def test_times_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    """MPEG-TS may start at any hour; a video may start later than its sound."""
    form = Format("ts", "libx264", "yuv420p", SIZE, FPS, {"bf": "2"})
    edges = encoding.frame_edges(form, 1.0, [1])
    path = tmp_path / "late.ts"
    with av.open(str(path), "w", options={"fflags": "bitexact", "output_ts_offset": "5000"}) as container:
        sound = container.add_stream("aac", 48000, layout="mono")
        assert isinstance(sound, av.AudioStream)
        stream = container.add_stream("libx264", FPS, options={"bf": "2"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = SIZE
        for k in range(60):
            samples_ = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples_.sample_rate, samples_.pts = 48000, 1024 * k
            container.mux(sound.encode(samples_))
        for frame in encoding.timed_frames(draw(random_scene("up", 0), [0.0] * 25, SIZE), form, edges):
            frame.pts = (frame.pts or 0) + 5
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    facts = look(path)
    with av.open(str(path)) as container:
        assert (container.start_time or 0) > 4999 * 10**6
    np.testing.assert_allclose(facts.times_s, decoded(path)[0], atol=1e-9)
    assert facts.times_s[0] == pytest.approx(0.2, abs=0.03)  # the sound starts a little before 0
    np.testing.assert_allclose(np.diff(facts.times_s), 0.04, atol=1e-9)


def test_edit_list_hides_the_frames_before_it(tmp_path: Path) -> None:
    path = video(tmp_path, bf="3")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12  # version and flags, count, then segment duration
    before = int.from_bytes(data[at + 4 : at + 8], "big")
    data[at + 4 : at + 8] = (before + 7 * 512).to_bytes(4, "big")  # seven frames of 12800 / 25 ticks
    path.write_bytes(data)
    facts = look(path)
    times, pts, _ = decoded(path)
    assert facts.num_frames == len(times) == 33
    np.testing.assert_allclose(facts.times_s, np.arange(33) / 25, atol=1e-9)
    np.testing.assert_allclose(facts.times_s, times, atol=1e-9)
    assert facts.pts is not None
    assert facts.pts.tolist() == pts
    assert len(facts.packets) == 40


def test_hidden_vp8_pictures_are_no_frames(tmp_path: Path) -> None:
    """Encoders hide pictures that are only referred to; here the bit that shows a picture is cleared by hand."""
    if not encoding.has_encoder("libvpx"):
        pytest.skip("this build of FFmpeg has no encoder libvpx")
    path = tmp_path / "hidden.webm"
    with av.open(str(video(tmp_path, "webm", "libvpx"))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for k, packet in enumerate(p for p in source.demux(video=0) if p.size):
            data = bytearray(bytes(packet))
            data[0] &= ~0x10 if k % 5 == 3 else 0xFF
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            target.mux(copy)
    facts = look(path)
    assert len(facts.packets) == 40
    assert facts.num_frames == len(decoded(path)[0]) == 32
    np.testing.assert_allclose(facts.times_s, [k / 25 for k in range(40) if k % 5 != 3], atol=0.0011)


def test_one_frame_lasts_as_long_as_its_rate_says(tmp_path: Path) -> None:
    for container in ("mp4", "mkv", "avi", "h264"):
        path = tmp_path / f"one.{container}"
        encode(path, Format(container, "libx264", "yuv420p", SIZE, FPS), seconds=0.04)
        facts = look(path)
        assert facts.num_frames == 1
        assert facts.times_s.tolist() == [0.0]
        assert facts.end_s == pytest.approx(0.04, abs=0.001)
        assert facts.fps == pytest.approx(25, rel=0.03)
        assert not facts.is_vfr


def test_the_last_frame_may_last_long(tmp_path: Path) -> None:
    path, edges = tmp_path / "a.mp4", [0, 1, 2, 3, 4, 14]
    form = Format("mp4", "libx264", "yuv420p", SIZE, FPS, {"bf": "0"})
    encoding.encode_video(path, form, draw(random_scene("up", 0), [0.0] * 5, SIZE), edges)
    assert look(path).end_s == pytest.approx(14 / 25)


def test_size_may_change_in_mid_stream(tmp_path: Path) -> None:
    first, second = tmp_path / "first.h264", tmp_path / "second.h264"
    encode(first, Format("h264", "libx264", "yuv420p", (96, 64), FPS, {"bf": "0"}))
    encode(second, Format("h264", "libx264", "yuv420p", (160, 128), FPS, {"bf": "0"}))
    both = tmp_path / "both.h264"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    facts = look(both)
    assert facts.num_frames == len(decoded(both)[1]) == 80
    assert (facts.source.width, facts.source.height) == (96, 64)
    np.testing.assert_allclose(facts.times_s, np.arange(80) / 25, atol=1e-9)


def test_tags_that_are_not_utf8_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(video(tmp_path))) as source, av.open(str(path), "w") as target:
        target.metadata["title"] = "LATIN-1!"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"LATIN-1!", b"caf\xe9 \xff\xfe\xe9"))
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert look(path).num_frames == 40


@pytest.mark.parametrize("name", ["2024-01-01T12:30:00.mp4", "concat:a.mp4", "file:a.mp4", "%03d.mp4", b"caf\xe9.mp4"])
def test_names_are_names_not_addresses(name: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video(tmp_path).rename(os.fsdecode(name))
    assert look(".").num_frames == look(os.fsdecode(name)).num_frames == 40


@pytest.mark.parametrize("default", [0, 1], ids=["first", "second"])
def test_the_same_stream_as_ffmpegs(default: int, tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    write_two_tracks(path, "up", (10, 11), default)
    with av.open(str(path)) as container:
        best = container.streams.best("video")
        assert best is not None
        assert best.index == default
    facts = look(path)
    assert facts.source.stream_index == default
    assert (facts.source.width, facts.num_frames) == ((64, 10), (160, 11))[default]


# What a stream is like ------------------------------------------------------------------------------------------------


FACTS: dict[str, dict[str, object]] = {  # what differs from the usual
    "h264": {"reorder_depth": 2, "profile": "High"},
    "h264 without b": {"profile": "High"},
    "h264 interlaced": {"is_interlaced": True, "reorder_depth": 2, "profile": "High"},
    "h264 varying rate": {"is_vfr": True, "reorder_depth": 2, "profile": "High"},
    "h264 two sizes ts": {"size_changes": True, "reorder_depth": 2, "profile": "High"},
    "h264 two sizes mkv": {"size_changes": True, "reorder_depth": 2, "profile": "High"},
    "h264 two sizes raw": {"size_changes": True, "reorder_depth": 2, "profile": "High"},
    "hevc": {"reorder_depth": 2, "profile": "Main"},
    "hevc open": {"reorder_depth": 2, "profile": "Main"},
    "hevc open edit list": {"has_hidden": True, "reorder_depth": 2, "profile": "Main"},
    "vp8": {"colorspace": 5},
    "vp8 hidden": {"has_hidden": True, "is_vfr": True, "colorspace": 5},
    "vp9": {"profile": "Profile 0"},
    "vp9 hidden": {"has_hidden": True, "profile": "Profile 0"},
    "mpeg4": {"reorder_depth": 1, "profile": "Advanced Simple Profile"},
    "mpeg2 ts": {"reorder_depth": 1, "profile": "Main"},
    "mpeg2 interlaced": {"is_interlaced": True, "reorder_depth": 1, "profile": "Main"},
    "mpeg1 ps": {"reorder_depth": 1},
    "mjpeg": {"colorspace": 5, "profile": "Baseline"},
    "prores": {"profile": "Standard"},
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_that_choose_the_route(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    facts = look(write(name, tmp_path_factory.getbasetemp() / "kinds"))
    usual: dict[str, object] = {
        "is_interlaced": False,
        "is_vfr": False,
        "size_changes": False,
        "has_hidden": False,
        "reorder_depth": 0,
        "colorspace": 2,  # unspecified
        "profile": None,
    }
    assert {key: getattr(facts, key) for key in usual} == {**usual, **FACTS[name]}
    assert facts.pix_fmt == KINDS[name].pix_fmt


@pytest.mark.parametrize(("name", "number"), [("bt709", 1), ("smpte170m", 6), ("bt2020nc", 9)])
def test_the_matrix_is_the_streams(name: str, number: int, tmp_path: Path) -> None:
    path = video(tmp_path, "mp4", "libx264", **{"x264-params": f"colormatrix={name}"})
    assert look(path).colorspace == number


@pytest.mark.parametrize(
    ("size", "coded"), [((96, 64), (64, 96)), ((100, 60), (64, 112)), ((98, 70), (80, 112))], ids=lambda s: f"{s}"
)
def test_pictures_are_coded_in_whole_blocks(size: tuple[int, int], coded: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    encode(path, Format("mp4", "libx264", "yuv420p", size, FPS, {"bf": "0"}))
    facts = look(path)
    assert (facts.source.width, facts.source.height) == size
    assert facts.coded_size == coded


def test_numbers_of_every_frame(tmp_path: Path) -> None:
    facts = look(video(tmp_path, bf="3"))
    assert facts.numbers_of(facts.packets.pts.tolist()) == list(range(40))


def test_progress_is_told_for_every_packet(tmp_path: Path) -> None:
    calls: list[None] = []
    (file,) = find_videos([str(video(tmp_path))])
    facts = probe(file, progress=lambda: calls.append(None))
    assert len(calls) == len(facts.packets) == 40


# Orientation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_orientation_is_what_the_matrix_does_to_a_point(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = video(tmp_path)
    with_matrix(path, *matrix)
    seen = look(path).source.orientation
    a, b, c, d = matrix
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):  # corners of the picture
        wanted = (a * x + c * y + (a + c < 0), b * x + d * y + (b + d < 0))
        x1, y1 = (y, x) if seen.transpose else (x, y)
        assert (1 - x1 if seen.flip_x else x1, 1 - y1 if seen.flip_y else y1) == wanted


@pytest.mark.parametrize(("name", "angle"), [("a quarter clockwise", -90), ("a quarter anticlockwise", 90)])
def test_rotation_is_ffprobes(name: str, angle: int, tmp_path: Path) -> None:
    path = video(tmp_path)
    with_matrix(path, *MATRICES[name])
    assert look(path).source.orientation.rotation == angle
    if shutil.which("ffprobe") is None:
        pytest.skip("compared with the truth alone: no ffprobe here")
    assert ffprobe(path)["side_data_list"][0]["rotation"] == angle


def test_no_matrix_is_upright(tmp_path: Path) -> None:
    assert look(video(tmp_path, "mkv")).source.orientation == Orientation(0, False, False, False)


# Files that cannot be labelled ---------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    path = video(tmp_path)
    (file,) = find_videos([str(path)])
    path.unlink()
    with pytest.raises(VideoError, match="cannot be read: no such file") as caught:
        probe(file)
    assert caught.value.status == "unreadable"


def test_a_dangling_link_a_folder_and_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo.mp4")
    files = find_videos(["-"], stdin=[str(tmp_path), str(tmp_path / "link.mp4"), str(tmp_path / "fifo.mp4")])
    stories = {}
    for file in files:
        with pytest.raises(VideoError) as caught:
            probe(file)
        stories[Path(file.path).name] = (caught.value.status, str(caught.value))
    assert stories == {
        tmp_path.name: ("unreadable", "not a regular file"),
        "link.mp4": ("unreadable", "no such file or directory"),
        "fifo.mp4": ("unreadable", "not a regular file"),
    }


def test_a_file_without_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = video(tmp_path)
    path.chmod(0)
    assert refused(path) == ("unreadable", "cannot be read: permission denied")


EBML = b"\x1a\x45\xdf\xa3\x8b\x42\x86\x81\x01"
TEXT = "<!doctype html>\n<title>Vidéo</title>\n" + "<p>Le fichier n’est plus là.</p>\n" * 200


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        pytest.param(b"", "empty_file", "0 bytes", id="empty"),
        pytest.param(TEXT.encode(), "not_a_video", "a text file", id="text"),
        pytest.param(b" " * 1 + TEXT.encode(), "not_a_video", "a text file", id="text, a letter cut in two"),
        pytest.param(b" " * 2 + TEXT.encode(), "not_a_video", "a text file", id="text, a letter cut in three"),
        pytest.param(("\ufeff" + TEXT).encode(), "not_a_video", "a text file", id="text with a byte order mark"),
        pytest.param(bytes(range(256)) * 20, "not_a_video", "no known container", id="bytes"),
        pytest.param(EBML, "not_a_video", "no known container", id="an EBML header cut off"),
        pytest.param(EBML + b"\x42\x82\x84webm", "not_a_video", "behind its header", id="an EBML header alone"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "not_a_video",
            "git lfs pull",
            id="lfs pointer",
        ),
    ],
)
def test_what_is_no_video_is_called_by_its_name(content: bytes, status: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    seen = refused(path)
    assert seen[0] == status
    assert message in seen[1]


@pytest.mark.parametrize(("container", "encoder"), [("mp3", "libmp3lame"), ("mp4", "aac")])
@pytest.mark.parametrize("cover", [True, False], ids=["cover", "no cover"])
def test_sound_is_no_video_even_with_a_cover(container: str, encoder: str, cover: bool, tmp_path: Path) -> None:
    if not encoding.has_encoder(encoder):
        pytest.skip(f"this build of FFmpeg has no encoder {encoder}")
    path = tmp_path / f"a.{container}"
    with av.open(str(path), "w") as target:
        sound = target.add_stream(encoder, 44100, layout="mono")
        assert isinstance(sound, av.AudioStream)
        if cover:
            picture = target.add_stream("mjpeg", 1)
            assert isinstance(picture, av.VideoStream)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(next(draw(random_scene("up", 0), [0.0], (64, 64))), format="rgb24")
            frame.pts = 0
            target.mux([*picture.encode(frame), *picture.encode(None)])
        for k in range(20):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 44100, 1152 * k
            target.mux(sound.encode(silence))
        target.mux(sound.encode(None))
    with av.open(str(path)) as container_:
        assert len(container_.streams.video) == cover
    held = "audio, cover picture" if cover else "audio"
    assert refused(path) == ("no_video_stream", f"no video stream (the file holds {held})")


def test_an_unknown_codec(tmp_path: Path) -> None:
    path = video(tmp_path)
    data = path.read_bytes()
    table = data.index(b"stsd")
    path.write_bytes(data[:table] + data[table:].replace(b"avc1", b"zzzz", 1))
    assert refused(path)[0] == "unsupported_codec"


def test_pictures_beyond_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path)
    monkeypatch.setattr(container_module, "MAX_PIXELS", SIZE[0] * SIZE[1] - 1)
    status, message = refused(path)
    assert (status, "96x64 pixels" in message) == ("too_large", True)
    monkeypatch.setattr(container_module, "MAX_PIXELS", 4 * SIZE[0] * SIZE[1])  # decoders pad
    assert look(path).num_frames == 40


@pytest.mark.parametrize("size", [(2, 256), (256, 2)])
def test_a_thread_of_a_picture(tmp_path: Path, size: tuple[int, int]) -> None:
    """Resized to a short side of 256 it would be hundreds of megabytes a frame if it were a little longer."""
    path = tmp_path / "thin.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p"
        for _ in range(3):
            image = np.zeros((size[1], size[0], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode(None))
    assert refused(path)[0] == "too_large"


def test_packets_without_a_picture(tmp_path: Path) -> None:
    path = video(tmp_path, "mkv", bf="0", g="100")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        spots = [(p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size]
    for start, size in spots:
        data[start + 12 : start + size] = bytes(max(size - 12, 0))
    path.write_bytes(data)
    status, message = refused(path)
    assert status == "no_decodable_frame"
    assert "packets" in message


# Real files ----------------------------------------------------------------------------------------------------------

PACKED = ("tv_RATRACE", "tv_School", "tv_Truman", "tv_hmdb51")
STATUSES = {
    "androidx_sample_audio_only.mp4": ("no_video_stream", "audio"),
    "dali_lfs_pointer_moov_atom_not_found.mp4": ("not_a_video", "git lfs pull"),
    "derived_text.mp4": ("not_a_video", "a text file"),
    "derived_truncated_no_moov.mp4": ("not_a_video", "moov"),
    "derived_zero_bytes.mp4": ("empty_file", "0 bytes"),
    "exo_vp9_invalid-bitstream.webm": ("no_decodable_frame", "51 packets"),
    "libwebm_invalid_vp9_bitstream-bug_1416.webm": ("too_large", "12336x12336"),
}
DAMAGED = {  # name: frames, what the probe alone can say
    "decord_corrupted.mp4": (50, ""),
    "derived_bitflips_h264.mp4": (280, ""),
    "derived_truncated_60pct.mkv": (49, "promises 2.97 s, it holds 1.63 s"),
    "derived_truncated_midpacket.ts": (150, "the file is cut off inside a transport packet"),
    "derived_truncated_noidx1.avi": (133, "promises 240 frames, it holds 133"),
    "libwebm_block_ends_beyond_cluster.mkv": (1, "the file is cut off"),
}


def real(shared: Path) -> list[Path]:
    return sorted(path for path in (shared / "videos").iterdir() if path.is_file() and path.suffix != ".md")


def test_every_real_file_is_known_to_the_frame(shared: Path) -> None:
    paths = real(shared)
    assert len(paths) == 36
    for path in paths:
        facts = look(path)
        times, pts, rate = decoded(path)
        rate = 30.0 if path.suffix == ".h264" else rate  # as its header says; FFmpeg's mean is a guess
        assert facts.num_frames == len(pts), path.name
        if path.suffix in (".avi", ".h264"):
            assert facts.pts is None, path.name
            # A tick a packet, though of what DivX packed the second shows nothing.
            numbers = np.arange(len(pts))
            if path.name.startswith(PACKED):
                numbers = np.sort(np.array(pts, np.int64))
                numbers -= numbers[0]
            np.testing.assert_allclose(facts.times_s, numbers / rate, atol=1e-5, err_msg=path.name)
        else:
            assert facts.pts is not None, path.name
            assert facts.pts.tolist() == pts, path.name
            np.testing.assert_allclose(facts.times_s, times, atol=1e-9, err_msg=path.name)
        assert facts.end_s > facts.times_s[-1], path.name
        assert facts.broken is None, path.name
        assert story(facts) == "", path.name


@pytest.mark.parametrize("name", STATUSES)
def test_real_files_that_cannot_be_labelled(name: str, shared: Path) -> None:
    status, part = STATUSES[name]
    seen = refused(shared / "videos" / "broken" / name)
    assert seen[0] == status
    assert part in seen[1]


@pytest.mark.parametrize("name", DAMAGED)
def test_real_files_that_are_damaged(name: str, shared: Path) -> None:
    num_frames, part = DAMAGED[name]
    facts = look(shared / "videos" / "broken" / name)
    assert facts.num_frames == num_frames
    assert part in story(facts)


def test_every_broken_file_is_expected(shared: Path) -> None:
    assert {path.name for path in (shared / "videos" / "broken").iterdir()} == {*STATUSES, *DAMAGED}


def ffprobe(path: Path) -> dict[str, Any]:
    command = ["ffprobe", "-v", "quiet", "-of", "json", "-show_streams", "-select_streams", "v", str(path)]
    streams = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    return dict(max(streams, key=lambda s: s["disposition"]["default"]))


def test_real_files_are_called_as_ffprobe_calls_them(shared: Path) -> None:
    if shutil.which("ffprobe") is None:
        pytest.skip("no ffprobe here")
    seen: dict[str, Callable[[Probe], object]] = {
        "codec_name": lambda facts: facts.codec,
        "width": lambda facts: facts.source.width,
        "height": lambda facts: facts.source.height,
        "pix_fmt": lambda facts: facts.pix_fmt,
    }
    codecs = set()
    for path in real(shared):
        facts, wanted = look(path), ffprobe(path)
        codecs.add(facts.codec)
        assert {name: get(facts) for name, get in seen.items()} == {name: wanted[name] for name in seen}, path.name
        turned = [data["rotation"] for data in wanted.get("side_data_list", []) if "rotation" in data]
        assert facts.source.orientation.rotation == (turned[0] if turned else 0), path.name
    assert codecs == {"av1", "h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9"}
