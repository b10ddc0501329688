"""Make a small archive of sample videos, to try the program without any data.

The scenes of ``scenes.py``, encoded by PyAV in many codecs and containers (``FORMATS``), with the truth beside them.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
from av.video.stream import VideoStream

from sqt_fast.errors import ConfigError
from sqt_fast.samples.scenes import MOTIONS, SPLITS, Frames, Scene, draw, random_scene


class Format(NamedTuple):
    """How a sample video is encoded.

    container: file suffix without the dot. encoder: FFmpeg's name. size: displayed width and height in pixels.
    fps: frames per second, or clock ticks per second where frames last ``ticks`` ticks at random. rotation: degrees
    anticlockwise by which a player has to turn the stored frames.
    """

    container: str
    encoder: str
    pix_fmt: str
    size: tuple[int, int]
    fps: Fraction
    options: Mapping[str, str] = MappingProxyType({})
    ticks: tuple[int, ...] = (1,)
    rotation: int = 0


_NTSC = Fraction(30000, 1001)
FORMATS: tuple[Format, ...] = (
    Format("mp4", "libx264", "yuv420p", (320, 240), Fraction(25), {"bf": "3", "b-pyramid": "normal"}),
    Format("mkv", "libx264", "yuv420p", (426, 240), Fraction(30), {"bf": "0"}),
    Format("mp4", "libx265", "yuv420p", (340, 256), Fraction(24)),
    Format("webm", "libvpx-vp9", "yuv420p", (320, 180), Fraction(30)),
    Format("mp4", "libsvtav1", "yuv420p", (320, 240), Fraction(30)),
    Format("avi", "mpeg4", "yuv420p", (320, 240), Fraction(25)),
    Format("ts", "libx264", "yuv420p", (352, 288), _NTSC),
    Format("mp4", "libx264", "yuv420p", (320, 240), Fraction(60), ticks=(1, 2, 3, 5)),
    Format("mov", "prores", "yuv422p10le", (320, 180), Fraction(24000, 1001)),
    Format("webm", "libvpx", "yuv420p", (256, 192), Fraction(25)),
    Format("mp4", "libx264", "yuv420p", (480, 272), Fraction(60)),
    Format("avi", "mjpeg", "yuvj420p", (320, 240), _NTSC),
    Format("mkv", "libsvtav1", "yuv420p10le", (426, 240), Fraction(24)),
    Format("mp4", "libx264", "yuv420p", (240, 426), Fraction(30), rotation=90),
    Format("mkv", "libx265", "yuv420p10le", (320, 136), Fraction(50)),
    Format("ts", "mpeg2video", "yuv420p", (352, 240), _NTSC),
    Format("webm", "libvpx-vp9", "yuv420p", (255, 191), Fraction(15)),
)
_OPTIONS: dict[str, dict[str, str]] = {  # fast and silent, by encoder
    "libx264": {"preset": "veryfast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=2"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "800k"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "800k"},
    "libsvtav1": {"preset": "9", "svtav1-params": "lp=2"},
    "mpeg4": {"qmin": "3", "qmax": "6"},
    "mjpeg": {"qmin": "3", "qmax": "5"},
    "mpeg2video": {"qmin": "3", "qmax": "6"},
}


@dataclass(frozen=True)
class SampleVideo:
    """What is true of one file.

    path: relative to the archive. fps: frames per second, the mean where it varies. width, height: as displayed, after
    the rotation (``Format.rotation``). fallback: what the wanted format lacked here, or empty.
    """

    path: Path
    label: str
    shape: str
    codec: str
    container: str
    fps: Fraction
    num_frames: int
    width: int
    height: int
    duration_s: Fraction
    rotation: int
    fallback: str


MIN_SHORT_SIDE = 64  # x265 4.2 writes past its memory (cuTree) where a frame is 48 pixels wide or less
_COLUMNS = ("path", "label", "shape", "codec", "container", "fps", "num_frames", "width", "height", "duration_s")


@dataclass(frozen=True)
class SampleSet:
    """Which videos to make: ``count`` of about ``seconds`` each.

    seed: 0 or more, another one for other videos. split: one of ``scenes.SPLITS``, which share no shape and no kind of
    background. clean: still camera, no noise, nothing in front. short_side: pixels of the shorter side, even; None for
    those of ``FORMATS``. Raises ConfigError for other values.
    """

    count: int = 24
    seconds: float = 4.0
    seed: int = 0
    split: str = "test"
    clean: bool = False
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 < self.seconds <= 3600 or self.seed < 0:
            raise ConfigError(
                f"{self.count} videos of {self.seconds} seconds, seed {self.seed}: expected 1 video or more, above 0 "
                "and up to 3600 seconds, and a seed of 0 or more"
            )
        if self.short_side is not None and (self.short_side < MIN_SHORT_SIDE or self.short_side % 2):
            raise ConfigError(
                f"short side {self.short_side}: expected an even number of pixels, {MIN_SHORT_SIDE} or more"
            )
        if self.split not in SPLITS:
            raise ConfigError(f"split {self.split}: expected one of {', '.join(SPLITS)}")

    def format(self, index: int) -> tuple[Format, str]:
        """Return the format of video number ``index``, and what the wanted one lacks here or an empty text."""
        form, fallback = available_format(FORMATS[index % len(FORMATS)])
        if self.short_side is not None:
            scale = self.short_side / min(form.size)
            width, height = (2 * round(side * scale / 2) for side in form.size)
            form = form._replace(size=(width, height))
        return form, fallback

    def scene(self, index: int) -> Scene:
        """Return the scene of video number ``index``."""
        motion = MOTIONS[index % len(MOTIONS)]
        return random_scene(motion, [self.seed, index], split=self.split, clean=self.clean)


def make_samples(
    directory: Path, wanted: SampleSet | None = None, *, progress: Callable[[], None] = lambda: None
) -> list[SampleVideo]:
    """Write videos into one subfolder per container, and the truth to ``labels.csv``. progress: called after each.

    Motions and formats are taken in turn: 16 videos show every motion, 17 every format. An encoder that this build of
    FFmpeg lacks is replaced by mpeg4, and ``SampleVideo.fallback`` says so. Files of the same name are replaced, each
    at once; others stay. Same arguments, same pixels before encoding. Raises ConfigError for a folder that cannot be
    written.
    """
    wanted = wanted or SampleSet()
    samples = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=directory) as workshop:
            for index in range(wanted.count):
                samples.append(_make_one(directory, Path(workshop), index, wanted))
                progress()
            _write_labels(Path(workshop, "labels.csv"), samples)
            Path(workshop, "labels.csv").replace(directory / "labels.csv")
    except OSError as error:
        raise ConfigError(f"{directory}: cannot hold the samples ({error}); name a folder to write to") from error
    return samples


def _make_one(directory: Path, workshop: Path, index: int, wanted: SampleSet) -> SampleVideo:
    """Draw and encode video number ``index``: in ``workshop``, and into its place when it is whole."""
    form, fallback = wanted.format(index)
    scene = wanted.scene(index)
    edges = frame_edges(form, wanted.seconds, [wanted.seed, index, 1])
    path = Path(form.container, f"{index:03d}_{scene.motion}.{form.container}")
    frames = draw(scene, (float(tick / form.fps) for tick in edges[:-1]), form.size)
    (directory / path).parent.mkdir(exist_ok=True)
    with silent_svt():
        encode_video(workshop / path.name, form, frames, edges)
    (workshop / path.name).replace(directory / path)
    num_frames, duration_s = len(edges) - 1, edges[-1] / form.fps
    return SampleVideo(
        path=path,
        label=scene.motion,
        shape=scene.shape,
        codec=av.codec.Codec(form.encoder, "w").canonical_name,
        container=form.container,
        fps=num_frames / duration_s,
        num_frames=num_frames,
        width=form.size[0],
        height=form.size[1],
        duration_s=duration_s,
        rotation=form.rotation,
        fallback=fallback,
    )


def has_encoder(name: str) -> bool:
    """Say whether this build of FFmpeg has the encoder."""
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def available_format(wanted: Format) -> tuple[Format, str]:
    """Return a format that can be written here, and what ``wanted`` lacks or an empty text."""
    if has_encoder(wanted.encoder):
        return wanted, ""
    container = "mkv" if wanted.container == "webm" else wanted.container  # WebM holds VP8, VP9 and AV1 only
    found = wanted._replace(container=container, encoder="mpeg4", pix_fmt="yuv420p", options={})
    return found, f"no encoder {wanted.encoder}: mpeg4 in {container} instead"


def frame_edges(form: Format, seconds: float, seed: Sequence[int]) -> list[int]:
    """Return the first tick of every frame, and at the end the tick where the last frame ends."""
    total = max(1, round(seconds * form.fps))
    durations = np.random.default_rng(seed).choice(form.ticks, total)
    starts = np.concatenate([[0], np.cumsum(durations)])
    return [*starts[starts < total].tolist(), total]


def encode_video(path: Path, form: Format, frames: Iterable[Frames], edges: Sequence[int]) -> None:
    """Write frames to path; frame f lasts from edges[f] to edges[f + 1], in ticks of 1 / form.fps seconds."""
    durations = {start: end - start for start, end in pairwise(edges)}
    with av.open(path, "w", options={"fflags": "bitexact"}) as container:  # no random or dated fields in the file
        stream = container.add_stream(form.encoder, form.fps, {**_OPTIONS.get(form.encoder, {}), **form.options})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = form.size if form.rotation % 180 == 0 else form.size[::-1]
        stream.pix_fmt = form.pix_fmt
        stream.codec_context.time_base = 1 / form.fps
        # VP8's threads spin while they wait: 12 times slower beside two busy processes on 2 cores.
        stream.codec_context.thread_count = 1 if form.encoder == "libvpx" else 2
        if form.rotation:
            stream.set_display_rotation(form.rotation)
        for frame in chain(timed_frames(frames, form, edges), [None]):  # None: hand out what the encoder still holds
            for packet in stream.encode(frame):
                if packet.pts is not None:
                    packet.duration = durations[packet.pts]  # encoders assume one tick
                container.mux(packet)


def timed_frames(frames: Iterable[Frames], form: Format, edges: Sequence[int]) -> Iterator[av.VideoFrame]:
    """Yield the frames as they are stored, with their times."""
    for pixels, start in zip(frames, edges, strict=False):  # the last edge is no frame
        stored = np.ascontiguousarray(np.rot90(pixels, -form.rotation // 90))
        frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
        frame.pts, frame.time_base = start, 1 / form.fps
        yield frame


def _write_labels(path: Path, samples: Iterable[SampleVideo]) -> None:
    """Write labels.csv."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for sample in samples:
            numbers = {name: round(float(getattr(sample, name)), 6) for name in ("fps", "duration_s")}
            writer.writerow(vars(sample) | numbers)


@contextmanager
def silent_svt() -> Iterator[None]:
    """Let SVT-AV1, which writes to stderr past FFmpeg's log, report errors only, and undo what it does for root: it
    gives the calling thread, and so all that this starts later, real-time priority over the whole machine.
    """
    before, policy, priority = os.environ.get("SVT_LOG"), os.sched_getscheduler(0), os.sched_getparam(0)
    os.environ["SVT_LOG"] = "1"
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)
        del os.environ["SVT_LOG"]
        if before is not None:
            os.environ["SVT_LOG"] = before
