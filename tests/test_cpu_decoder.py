"""Decoded frames: the right picture under the right number, the right way up, and an honest report of damage."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sqt_fast.clips.resize import upright
from sqt_fast.errors import VideoError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import FORMATS, Format
from sqt_fast.samples.scenes import Scene, draw, random_scene
from sqt_fast.video import cpu_decoder as decode_module
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.packets import RANDOM_ACCESS
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import MAX_WANTED, plan_segments
from tests.videos import MATRICES, look, with_matrix, write, write_two_tracks

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

UInt8 = NDArray[np.uint8]
SIZE, FPS = (96, 64), Fraction(25)


def scene() -> Scene:
    """A shape that crosses the picture steadily: no two frames of 1.5 seconds are alike."""
    return replace(random_scene("right", 3), phase=0.2, rate_hz=0.45)


def encode(path: Path, form: Format, seconds: float = 1.2) -> list[int]:
    """Write the scene; return the ticks of 1 / form.fps at which frames begin, and at last the one where it ends."""
    edges = encoding.frame_edges(form, seconds, [1])
    with encoding.silent_svt():
        encoding.encode_video(path, form, draw(scene(), (float(t / form.fps) for t in edges[:-1]), form.size), edges)
    return edges


def video(folder: Path, container: str = "mp4", encoder: str = "libx264", **options: str) -> Path:
    path = folder / f"video.{container}"
    encode(path, Format(container, encoder, "yuv420p", SIZE, FPS, options))
    return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "kinds"


class Decoded(NamedTuple):
    numbers: list[int]
    images: UInt8
    report: DecodeReport


def decode(
    facts: Probe, wanted: Sequence[int] | None = None, *, num_threads: int = 1, max_wanted: int = MAX_WANTED
) -> Decoded:
    """Decode at full size, all frames unless some are ``wanted``; chunks are kept and read at the end."""
    report = DecodeReport()
    numbers = np.arange(facts.num_frames) if wanted is None else np.array(wanted, np.int64)
    with PacketReader(facts.source, num_threads=num_threads) as reader:
        chunks = [
            chunk
            for segment in plan_segments(facts, numbers, max_wanted=max_wanted)
            for chunk in CpuDecoder().frames(reader, segment, report)
        ]
    images = np.concatenate([chunk.images for chunk in chunks]) if chunks else np.empty(0, np.uint8)
    return Decoded([n for chunk in chunks for n in chunk.numbers], images, report)


def shown(facts: Probe, images: UInt8) -> UInt8:
    """Turn stored pictures as they are to be seen."""
    return upright(torch.from_numpy(images), facts.source.orientation).numpy()


def plainly(path: Path) -> UInt8:
    """Decode with PyAV alone, every frame, stored way up, on one thread; go on after packets that are refused."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for packet in container.demux(video=0):
            try:
                frames += [frame.to_ndarray(format="rgb24") for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
    return np.stack(frames).astype(np.uint8)


# The right picture under the right number ----------------------------------------------------------------------------

OTHERS = [
    Format("mpg", "mpeg2video", "yuv420p", SIZE, FPS, {"bf": "2"}),
    Format("mpg", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("flv", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("mxf", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("mxf", "mpeg2video", "yuv420p", SIZE, FPS, {"bf": "2"}),
    Format("asf", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("asf", "mpeg4", "yuv420p", SIZE, FPS, {"bf": "2"}),
    Format("avi", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("avi", "mpeg4", "yuv420p", SIZE, FPS, {"bf": "2"}),
    Format("h264", "libx264", "yuv420p", SIZE, FPS, {"bf": "3"}),
    Format("m2v", "mpeg2video", "yuv420p", SIZE, FPS, {"bf": "2"}),
    Format("mp4", "libx264", "yuv444p", SIZE, FPS, {"bf": "3", "x264-params": "open-gop=1:keyint=9"}),
    Format("mkv", "ffv1", "yuv444p", SIZE, FPS),
]


@pytest.mark.parametrize(
    "form", [*FORMATS, *OTHERS], ids=lambda f: f"{f.encoder}.{f.container}-{f.fps}-{len(f.ticks)}-{f.rotation}"
)
def test_each_number_shows_its_moment(form: Format, tmp_path: Path) -> None:
    """Against the scene itself: of the moments nearby, the frame's own time must fit its pixels best."""
    form, _ = encoding.available_format(form)
    path = tmp_path / f"a.{form.container}"
    edges = encode(path, form)
    facts = look(path)
    seen = decode(facts)
    images = shown(facts, seen.images)
    assert seen.numbers == list(range(len(edges) - 1)) == list(range(facts.num_frames))
    assert images.shape == (len(seen.numbers), form.size[1], form.size[0], 3)
    moments = facts.times_s - facts.times_s[0]
    drawn = np.stack(list(draw(scene(), moments, form.size)))[:, ::2, ::2].astype(np.float32)
    for number, image in zip(seen.numbers, images[:, ::2, ::2].astype(np.float32), strict=True):
        nearby = range(max(0, number - 4), min(len(drawn), number + 5))
        losses = {k: float(np.abs(drawn[k] - image).mean()) for k in nearby}
        assert min(losses, key=losses.__getitem__) == number, losses
        assert losses[number] < 8
    num_packets = len(facts.packets)
    assert seen.report == DecodeReport(facts.num_frames, facts.num_frames, packets_read=num_packets)


PLAIN = ["mp4", "mkv", "ts", "avi", "h264"]


@pytest.mark.parametrize("container", PLAIN)
@pytest.mark.parametrize("num_threads", [1, 2])
def test_pixels_are_pyavs(container: str, num_threads: int, tmp_path: Path) -> None:
    path = video(tmp_path, container, bf="2")
    seen = decode(look(path), num_threads=num_threads)
    assert np.array_equal(seen.images, plainly(path))


@pytest.mark.parametrize(
    ("space", "colours"), [("bt709", "tv"), ("smpte170m", "tv"), ("bt709", "pc")], ids=lambda name: str(name)
)
def test_colours_follow_the_streams_matrix_and_range(space: str, colours: str, tmp_path: Path) -> None:
    """Flat red, stored with each matrix and range by hand, comes out red."""
    kr, kb = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114)}[space]
    red = np.array([200, 30, 60]) / 255
    luma = kr * red[0] + (1 - kr - kb) * red[1] + kb * red[2]
    blue, violet = (red[2] - luma) / (2 - 2 * kb), (red[0] - luma) / (2 - 2 * kr)
    scale, black, swing = (219, 16, 224) if colours == "tv" else (255, 0, 255)
    planes = (black + scale * luma, 128 + swing * blue, 128 + swing * violet)
    path = tmp_path / "red.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", FPS, options={"qp": "0"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv444p"
        stream.codec_context.colorspace = {"bt709": 1, "smpte170m": 6}[space]
        stream.codec_context.color_range = {"tv": 1, "pc": 2}[colours]
        frame = av.VideoFrame(*SIZE, "yuv444p")
        for plane, level in zip(frame.planes, planes, strict=True):
            plane.update(bytes([round(level)]) * plane.buffer_size)
        frame.pts, frame.time_base = 0, 1 / FPS
        frame.colorspace = stream.codec_context.colorspace
        frame.color_range = stream.codec_context.color_range
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (image,) = decode(look(path)).images
    assert np.abs(image.astype(int) - (200, 30, 60)).max() <= 3


def test_only_wanted_frames_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path, bf="3")
    facts = look(path)
    everything = decode(facts).images
    converted: list[int | None] = []
    convert = decode_module._Chunk._write_rgb

    def counting(chunk: decode_module._Chunk, frame: av.VideoFrame, target: UInt8) -> None:
        converted.append(frame.pts)
        convert(chunk, frame, target)

    monkeypatch.setattr(decode_module._Chunk, "_write_rgb", counting)
    seen = decode(facts, [0, 3, 4, 17, 25])
    assert seen.numbers == [0, 3, 4, 17, 25]
    assert facts.pts is not None
    assert converted == facts.pts[seen.numbers].tolist()
    assert np.array_equal(seen.images, everything[seen.numbers])
    report = seen.report
    assert report.frames_wanted == 5
    assert report.packets_dropped >= 5
    assert report.frames_decoded == report.packets_read - report.packets_dropped < 25
    assert (report.lost, report.damaged, report.rejected) == ([], [], 0)


@pytest.mark.parametrize("max_wanted", [1, 7, 1000])
@pytest.mark.parametrize("name", ["h264", "hevc open", "vp9 hidden", "mpeg4 avi", "mjpeg", "h264 two sizes mkv"])
def test_segments_show_what_one_decode_shows(name: str, max_wanted: int, kinds: Path) -> None:
    path = write(name, kinds)
    facts = look(path)
    seen = decode(facts, range(1, facts.num_frames, 4), max_wanted=max_wanted)
    assert seen.numbers == list(range(1, facts.num_frames, 4))
    if "two sizes" not in name:
        assert np.array_equal(seen.images, plainly(path)[seen.numbers])


def test_reports_add_up() -> None:
    total = DecodeReport(1, 2, 3, 4, [5], [6], 7)
    total.add(DecodeReport(10, 20, 30, 40, [50], [60], 70))
    assert total == DecodeReport(11, 22, 33, 44, [5, 50], [6, 60], 77)


def test_chunks_are_bounded_and_written_where_they_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path)
    monkeypatch.setattr(decode_module, "CHUNK_BYTES", 7 * SIZE[0] * SIZE[1] * 3 + 5)
    facts, given = look(path), []

    def new_buffer(shape: tuple[int, ...]) -> UInt8:
        given.append(np.full(shape, 99, np.uint8))
        return given[-1]

    (segment,) = plan_segments(facts, np.arange(30))
    with PacketReader(facts.source) as reader:
        chunks = list(CpuDecoder(new_buffer).frames(reader, segment, DecodeReport()))
    assert [len(chunk.numbers) for chunk in chunks] == [len(chunk.images) for chunk in chunks] == [7, 7, 7, 7, 2]
    assert [buffer.shape for buffer in given] == [(7, SIZE[1], SIZE[0], 3)] * 5
    assert all(np.shares_memory(chunk.images, buffer) for chunk, buffer in zip(chunks, given, strict=True))
    assert np.array_equal(np.concatenate([chunk.images for chunk in chunks]), plainly(path))


def test_a_picture_larger_than_a_chunk_is_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "CHUNK_BYTES", 1)
    path = video(tmp_path)
    facts = look(path)
    (segment,) = plan_segments(facts, np.arange(30))
    with PacketReader(facts.source) as reader:
        chunks = list(CpuDecoder().frames(reader, segment, DecodeReport()))
    assert [chunk.numbers for chunk in chunks] == [[n] for n in range(30)]


def test_pictures_of_another_size_are_scaled_to_the_first(tmp_path: Path) -> None:
    parts = [(96, 64), (160, 128)]
    for k, size in enumerate(parts):
        encode(tmp_path / f"{k}.h264", Format("h264", "libx264", "yuv420p", size, FPS, {"bf": "0"}))
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join((tmp_path / f"{k}.h264").read_bytes() for k in range(2)))
    seen = decode(look(path))
    assert seen.numbers == list(range(60))
    assert seen.images.shape == (60, 64, 96, 3)
    drawn = np.stack(list(draw(scene(), [k / 25 for k in range(30)], (96, 64)))).astype(int)
    assert np.abs(seen.images[:30] - drawn).mean() < 6
    assert np.abs(seen.images[30:] - drawn).mean() < 8


@pytest.mark.parametrize("default", [0, 1], ids=["first", "second"])
def test_the_probed_stream_is_decoded(default: int, tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    write_two_tracks(path, "left", (8, 8), default)
    facts = look(path)
    assert facts.source.stream_index == default
    drawn = np.stack(list(draw(random_scene("left", default), np.arange(8) / 25, ((64, 48), (160, 128))[default])))
    assert np.abs(decode(facts).images.astype(int) - drawn).mean() < 6


def test_a_file_that_has_gone_is_said_so(tmp_path: Path) -> None:
    path = video(tmp_path)
    facts = look(path)
    path.unlink()
    with pytest.raises(VideoError, match="no such file"):
        decode(facts)


# The right way up ----------------------------------------------------------------------------------------------------


def moved(image: UInt8, a: int, b: int, c: int, d: int) -> UInt8:
    """Move every pixel to where the matrix puts it."""
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    out = np.zeros((down.max() + 1, across.max() + 1, 3), np.uint8)
    out[down, across] = image
    return out


def autorotated(path: Path, size: tuple[int, int], *, stream: int = 0) -> UInt8:
    """Return the first frame of a stream as ffmpeg shows it."""
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), "-map", f"0:{stream}", "-frames:v", "1"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(size[1], size[0], 3)


def assert_shown_alike(ours: UInt8, theirs: UInt8) -> None:
    """Of all ways to hold the picture, ours is the one nearest to theirs, and near."""
    ways = {name: moved(ours, *matrix) for name, matrix in MATRICES.items()}
    losses = {
        name: float(np.abs(way.astype(int) - theirs).mean()) for name, way in ways.items() if way.shape == theirs.shape
    }
    assert min(losses, key=losses.__getitem__) == "as it is", losses
    assert losses["as it is"] < 6


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_pictures_are_turned_as_the_matrix_says(matrix: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = video(tmp_path)
    stored = plainly(path)
    with_matrix(path, *matrix)
    seen = decode(look(path), [0, 7])
    assert np.array_equal(seen.images, stored[seen.numbers])
    images = shown(look(path), seen.images)
    for image, number in zip(images, seen.numbers, strict=True):
        assert np.array_equal(image, moved(stored[number], *matrix))
    if shutil.which("ffmpeg") is not None:
        size = SIZE if matrix[0] else SIZE[::-1]
        assert_shown_alike(images[0], autorotated(path, size))


ROTATED = {
    "androidx_sample_edit_list.mp4": (1080, 1920),
    "androidx_internal_emulator_transformer_output_270_rotated.mp4": (720, 1280),
    "androidx_pixel-motion-photo-2-hevc-tracks.mp4": (768, 1024),
    "decord_video_90.mov": (320, 568),
}


@pytest.mark.parametrize("name", ROTATED)
def test_real_files_stand_as_ffmpeg_shows_them(name: str, shared: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg here")
    path = shared / "videos" / name
    facts = look(path)
    (image,) = shown(facts, decode(facts, [0]).images)
    assert image.shape[1::-1] == ROTATED[name]
    assert_shown_alike(image, autorotated(path, ROTATED[name], stream=facts.source.stream_index))


# Damage --------------------------------------------------------------------------------------------------------------


def spoil(path: Path, numbers: list[int], *, whole: bool) -> Path:
    """Overwrite the packets of some frames of an MP4 without B-frames: all of each, or its end."""
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        start, size = packets[number]
        first = start + 4 if whole else start + size // 2
        data[first : start + size] = b"\xff" * (start + size - first)
    path.write_bytes(data)
    return path


def test_refused_packets_are_lost_frames_and_shift_nothing(tmp_path: Path) -> None:
    path = video(tmp_path, bf="0", g="10")
    sound = plainly(path)
    facts = look(path)
    spoil(path, [14, 15], whole=True)
    seen = decode(facts)
    assert seen.report.rejected == 2
    assert seen.report.lost == [14, 15]
    assert seen.report.frames_decoded == 28
    assert seen.report.frames_wanted == 30
    assert seen.numbers == [n for n in range(30) if n not in (14, 15)]
    assert np.array_equal(seen.images[:14], sound[:14])
    assert np.array_equal(seen.images[-10:], sound[20:]), "a key frame makes all good again"


def test_the_last_frames_may_be_lost(tmp_path: Path) -> None:
    path = video(tmp_path, bf="0")
    facts = look(path)
    spoil(path, [28, 29], whole=True)
    seen = decode(facts)
    assert (seen.report.rejected, seen.report.lost) == (2, [28, 29])
    assert seen.numbers == list(range(28))


def test_concealed_frames_are_said_to_be_damaged(tmp_path: Path) -> None:
    path = video(tmp_path, bf="0", g="10")
    facts = look(path)
    spoil(path, [13], whole=False)
    seen = decode(facts)
    assert seen.numbers == list(range(30))
    assert facts.numbers_of(seen.report.damaged) == [13]
    assert seen.report.lost == []


def test_a_packet_that_is_cut_off_ends_the_video(tmp_path: Path) -> None:
    path = video(tmp_path, "mkv", bf="0", g="5")
    facts = look(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    seen = decode(facts)
    assert 0 < seen.numbers[-1] < 29
    assert seen.report.lost == list(range(seen.numbers[-1] + 1, 30))


def damage_to(path: Path) -> tuple[int, list[int], list[int]]:
    """Decode with PyAV alone: refused packets, ranks of packets without a picture, ranks of concealed pictures.

    On one thread: how much is concealed depends on the number.
    """
    sent, came, concealed, rejected = [], set(), set(), 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for packet in container.demux(video=0):
            if packet.size:
                sent.append(packet.pts or 0)
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                rejected += 1
                continue
            came |= {frame.pts for frame in frames}
            concealed |= {frame.pts for frame in frames if frame.is_corrupt}
    ranks = list(enumerate(sorted(sent)))
    return rejected, [r for r, pts in ranks if pts not in came], [r for r, pts in ranks if pts in concealed]


DAMAGED = {  # name: decoded frames, refused packets; as MANIFEST.md has it
    "decord_corrupted.mp4": (49, 1),
    "derived_bitflips_h264.mp4": (279, 1),
    "derived_truncated_60pct.mkv": (49, 0),
    "derived_truncated_midpacket.ts": (150, 0),
    "derived_truncated_noidx1.avi": (133, 0),
    "libwebm_block_ends_beyond_cluster.mkv": (1, 0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_real_damage_is_reported(name: str, shared: Path) -> None:
    path = shared / "videos" / "broken" / name
    facts = look(path)
    report = decode(facts, max_wanted=10**6).report
    assert (report.frames_decoded, report.rejected) == DAMAGED[name]
    assert (report.rejected, report.lost, facts.numbers_of(report.damaged)) == damage_to(path)
    assert bool(report.damaged) == (path.suffix != ".mkv"), "a cut between two packets leaves no damaged picture"


@pytest.mark.parametrize("name", ["decord_corrupted.mp4", "derived_bitflips_h264.mp4"])
def test_real_damage_looks_the_same_at_any_interval(name: str, shared: Path) -> None:
    """Concealment takes what was decoded before: where there is damage, no picture is left out."""
    facts = look(shared / "videos" / "broken" / name)
    everything = decode(facts, max_wanted=10**6)
    found = dict(zip(everything.numbers, everything.images, strict=True))
    for interval in (4, 7):
        seen = decode(facts, range(0, facts.num_frames, interval), max_wanted=10**6)
        assert seen.report.rejected or seen.report.damaged
        assert seen.numbers == [n for n in range(0, facts.num_frames, interval) if n in found]
        assert all(np.array_equal(image, found[n]) for n, image in zip(seen.numbers, seen.images, strict=True))


def flipped(source: Path, target: Path, seed: int) -> Path:
    """Flip bits in some packets, behind their first bytes."""
    rng = np.random.default_rng(seed)
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.pos is not None and p.size > 14]
    for number in rng.choice(len(packets), int(rng.integers(1, 8))).tolist():
        start, size = packets[number]
        data[start + int(rng.integers(12, size))] ^= 1 << int(rng.integers(8))
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name", ["h264", "h264 open", "h264 without b", "mpeg4"])
def test_flipped_bits_look_the_same_at_any_interval(name: str, kinds: Path, tmp_path: Path) -> None:
    """Of HEVC FFmpeg does not say what it concealed, and MPEG-TS loses whole packets in silence."""
    signs = 0
    for seed in range(25):
        path = flipped(write(name, kinds), tmp_path / "flipped.mp4", seed)
        facts = look(path)
        everything = decode(facts, max_wanted=10**6)
        found = dict(zip(everything.numbers, everything.images, strict=True))
        seen = decode(facts, range(0, 80, 4), max_wanted=10**6)
        signs += bool(seen.report.rejected or seen.report.damaged)
        assert seen.numbers == [n for n in range(0, 80, 4) if n in found]
        assert all(np.array_equal(image, found[n]) for n, image in zip(seen.numbers, seen.images, strict=True))
    assert signs >= 8


@pytest.mark.parametrize("name", ["hevc open", "mpeg4", "mpeg2 ts"])
def test_damage_behind_leading_pictures_loses_nothing_more(name: str, kinds: Path, tmp_path: Path) -> None:
    """A segment that begins with the start of an open group is done again without them, once."""
    for seed in range(25):
        source = write(name, kinds)
        facts = look(flipped(source, tmp_path / f"flipped{source.suffix}", seed))
        wanted = range(0, facts.num_frames, 4)
        everything = decode(facts, max_wanted=10**6)
        seen = decode(facts, wanted, max_wanted=1)
        started = set(facts.packets.pts[facts.packets.are(RANDOM_ACCESS)].tolist())
        if not seen.report.rejected and not started & {*seen.report.damaged, *everything.report.damaged}:
            assert set(seen.numbers) == set(everything.numbers) & set(wanted), seed


def test_damage_to_pictures_that_stand_alone_is_their_own(kinds: Path, tmp_path: Path) -> None:
    facts = look(write("mjpeg", kinds))
    path = tmp_path / "a.avi"
    shutil.copyfile(facts.source.path, path)
    spoil(path, [8], whole=True)
    seen = decode(replace(facts, source=replace(facts.source, path=str(path))), [4, 8, 40])
    assert set(seen.numbers) >= {4, 40}
    assert seen.report.frames_decoded <= 3


@pytest.mark.parametrize(
    "name",
    [
        "mp4parser_count-video.mp4",
        "decord_unordered.mov",
        "torchcodec_h264_10bits.mp4",
        "mma_test.avi",
        "decord_video_90.mov",
    ],
)
def test_real_files_are_decoded_as_by_pyav(name: str, shared: Path) -> None:
    path = shared / "videos" / name
    facts = look(path)
    sound = plainly(path)
    seen = decode(facts)
    assert seen.numbers == list(range(len(sound)))
    assert np.array_equal(seen.images, sound)
    assert (seen.report.rejected, seen.report.lost, seen.report.damaged) == (0, [], [])


def test_a_real_change_of_size(shared: Path) -> None:
    seen = decode(look(shared / "videos" / "vpf_test_res_change.h264"))
    assert seen.numbers == list(range(96))
    assert seen.images.shape == (96, 464, 848, 3)
    assert np.abs(seen.images[49].astype(int) - seen.images[48]).mean() < 12, "the same shot, as large as before"
