"""Kinds of files that are hard to take whole, made here, and what becomes of each of their pictures.

    python -m tests.file_kinds docs/files.md

FFmpeg's decoder, which is given the whole file, says which pictures there are. What we find is every frame that the
probe counts, decoded through plans and segments. A picture is its pixels.
"""

import argparse
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from sqt_fast.errors import VideoError
from sqt_fast.samples.encoding import Format, encode_video
from sqt_fast.video.container import demux
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.probe import Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import plan_segments
from tests.restamp import Stamp, restamp
from tests.videos import KINDS, copy, drift, look, story, with_sound, write

FPS, FRAMES, SIZE = 25, 100, (96, 64)
CLOCKED = ("ts", "mpg", "flv", "mkv", "mp4")
MIDDLE = FRAMES // 2

# What broken recorders write, from the rank of a picture's packet and its right time in seconds.
STAMPS: dict[str, Stamp] = {
    "all times equal": lambda rank, time: 1.0,
    "two pictures share a time": lambda rank, time: 1 + rank // 2 * 2 / FPS,
    "the clock steps back by 1.2 s": lambda rank, time: time - 1.2 * (rank >= MIDDLE),
    "the clock starts anew": lambda rank, time: time - MIDDLE / FPS * (rank >= MIDDLE),
    "the clock jumps 20 s ahead": lambda rank, time: time + 20 * (rank >= MIDDLE),
    "times at random": lambda rank, time: 1 + rank * 37 % FRAMES / FPS,
    "every tenth picture 0.2 s early": lambda rank, time: time - 0.2 * (rank % 10 == 9),
}


class Outcome(NamedTuple):
    """What became of a file. there: its pictures, by FFmpeg; found: by us; lost: there and not found; said: of damage.

    jumped: the row says that the clock did.
    """

    there: int
    found: int
    lost: int
    said: str
    jumped: bool = False


@dataclass(frozen=True)
class FileKind:
    """A kind of file. make: writes one into a folder. damaged_from: pictures that were made, where some are gone."""

    name: str
    make: Callable[[Path], Path]
    damaged_from: int | None = None


def recording(
    folder: Path, container: str, *, b_frames: int = 2, frames: int = FRAMES, first: int = 0, **options: str
) -> Path:
    """Write pictures of which no two are the same, 25 a second, a key frame each second."""
    path = folder / f"{container}-{b_frames}-{frames}-{first}.{container}"
    codec = {"mpg": "mpeg2video", "avi": "mpeg4", "hevc": "libx265"}.get(container, "libx264")
    quiet = {"x265-params": "log-level=none:pools=none", "preset": "ultrafast"} if codec == "libx265" else {}
    options = {"g": str(FPS), "bf": str(b_frames), **quiet, **options}
    form = Format(container, codec, "yuv420p", SIZE, Fraction(FPS), options)
    pictures = list(drift(SIZE, first + frames))[first:]
    encode_video(path, form, iter(pictures), list(range(frames + 1)))
    return path


def stamped(folder: Path, container: str, b_frames: int, stamp: Stamp) -> Path:
    path = recording(folder, container, b_frames=b_frames)
    restamp(path, stamp)
    return path


def joined(folder: Path, container: str, *, header: int = 0) -> Path:
    """Three recordings one behind the other. header: bytes that stand only in front of the first."""
    lengths = (60, 25, 40)
    parts = [recording(folder, container, frames=n, first=100 * k) for k, n in enumerate(lengths)]
    path = folder / f"joined.{container}"
    path.write_bytes(b"".join(part.read_bytes()[header if k else 0 :] for k, part in enumerate(parts)))
    return path


def cut(folder: Path, make: Callable[[Path], Path], share: float) -> Path:
    whole = make(folder)
    path = whole.with_name(f"cut{whole.suffix}")
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share) | 1])  # odd: within a transport packet
    return path


def remuxed(folder: Path, container: str, option: str, value: str) -> Path:
    return copy(recording(folder, container, b_frames=0), folder / f"other.{container}", **{option: value})  # type: ignore[arg-type]


def sounding(folder: Path) -> Path:
    return with_sound(folder / "sound.mkv", seconds=1.6)


def without_beginning(folder: Path, b_frames: int, share: float) -> Path:
    """Begin between two key frames, as what was cut out of a broadcast does."""
    whole = recording(folder, "ts", b_frames=b_frames)
    path, data = folder / "end.ts", whole.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])
    return path


def noise(folder: Path, container: str) -> Path:
    """Overwrite a tenth of a file behind its first second."""
    path = recording(folder, container)
    data, rng = np.frombuffer(bytearray(path.read_bytes()), np.uint8), np.random.default_rng(1)
    at = np.sort(rng.choice(np.arange(len(data) // 3, len(data) - 4096), len(data) // 10, replace=False))
    data[at] = rng.integers(0, 256, len(at))
    path.write_bytes(data.tobytes())
    return path


def with_exif(folder: Path) -> Path:
    """MJPEG as cameras write it; FFmpeg hands EXIF on as side data of a kind that PyAV does not know."""
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x01\0\0\0" + bytes(4)  # orientation: upright
    segment = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2) + b"Exif\0\0" + tiff
    path = folder / "exif.avi"
    with av.open(str(write("mjpeg", folder))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                data = bytes(packet)
                longer = av.Packet(data[:2] + segment + data[2:])
                longer.pts, longer.dts, longer.time_base = packet.pts, packet.dts, packet.time_base
                longer.stream, longer.is_keyframe = stream, True
                out.mux(longer)
    return path


def file_kinds() -> Iterator[FileKind]:
    """Yield all kinds."""
    for name in KINDS:
        yield FileKind(name, partial(write, name))
    yield FileKind("mjpeg with EXIF", with_exif)
    for stamp_name, stamp in STAMPS.items():
        for container in CLOCKED:
            for b_frames in (0, 2):
                name = f"{container}{' with B' * bool(b_frames)}, {stamp_name}"
                yield FileKind(name, partial(stamped, container=container, b_frames=b_frames, stamp=stamp))
    for container in ("ts", "mpg", "h264", "hevc", "avi"):
        yield FileKind(f"three joined recordings, {container}", partial(joined, container=container))
    yield FileKind("three joined recordings, flv as tags", partial(joined, container="flv", header=13))
    for share in (0.1, 0.3, 0.5):
        for b_frames in (0, 2):
            name = f"ts{' with B' * bool(b_frames)}, without its first {share:.0%}"
            yield FileKind(name, partial(without_beginning, b_frames=b_frames, share=share))
    for container in ("flv", "mp4", "mkv"):
        yield FileKind(f"three joined files, {container}", partial(joined, container=container), damaged_from=125)
    wholes: dict[str, Callable[[Path], Path]] = {
        **{name: partial(recording, container=name) for name in ("ts", "mpg", "flv", "mkv", "avi")},
        "mp4 with its index in front": partial(remuxed, container="mp4", option="movflags", value="faststart"),
        "mp4 in fragments": partial(remuxed, container="mp4", option="movflags", value="frag_keyframe+empty_moov"),
        "mkv of a live recording": partial(remuxed, container="mkv", option="live", value="1"),
        "mkv with sound": sounding,
    }
    for name, make in wholes.items():
        for share in (0.4, 0.7, 0.95):
            made = 40 if make is sounding else FRAMES
            yield FileKind(f"{name}, cut at {share:.0%}", partial(cut, make=make, share=share), damaged_from=made)
    for container in ("ts", "mp4", "mkv", "avi"):
        yield FileKind(f"{container}, a tenth is noise", partial(noise, container=container), damaged_from=FRAMES)


def outcome(path: Path) -> Outcome:
    """Decode a file both ways."""
    there = Counter(all_pictures(path))
    try:
        facts = look(path)
    except VideoError as error:
        return Outcome(there.total(), 0, there.total(), f"{error.status}: {error}")
    report = DecodeReport()
    found = Counter(digest(image) for image in frames_of(facts, report).values())
    return Outcome(there.total(), found.total(), (there - found).total(), story(facts, report), facts.clock_jumped)


def all_pictures(path: Path) -> Iterator[bytes]:
    """Yield every picture that FFmpeg decodes when it is given every packet."""
    with av.open(str(path), metadata_errors="replace") as container:
        if not container.streams.video:
            return
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        size: tuple[int, int] | None = None
        with suppress(av.error.FFmpegError):  # of reading: the file ends there
            for packet in demux(container, stream):
                try:
                    frames = packet.decode()
                except av.error.FFmpegError:
                    continue
                for frame in frames:
                    assert isinstance(frame, av.VideoFrame)
                    size = size or (frame.width, frame.height)
                    yield digest(frame.reformat(*size, format="rgb24").to_ndarray())


def frames_of(facts: Probe, report: DecodeReport) -> dict[int, NDArray[np.uint8]]:
    """Return every frame that the probe counts, by its number, decoded as labelling does."""
    found: dict[int, NDArray[np.uint8]] = {}
    with PacketReader(facts.source) as reader:
        for segment in plan_segments(facts, np.arange(facts.num_frames)):
            for chunk in CpuDecoder().frames(reader, segment, report):
                found.update(zip(chunk.numbers, chunk.images.copy(), strict=True))
    return found


def digest(image: NDArray[np.generic]) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest()


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    av.logging.set_level(av.logging.PANIC)
    lines = []
    for kind in file_kinds():
        with tempfile.TemporaryDirectory() as folder:
            seen = outcome(kind.make(Path(folder)))
        said = "; ".join(["clock jumped"] * seen.jumped + [seen.said] * bool(seen.said))
        lines.append(f"| {kind.name} | {seen.there} | {seen.found} | {seen.lost} | {said} |")
        print(lines[-1], flush=True)
    args.output.write_text(INTRODUCTION + "\n".join(lines) + "\n")


INTRODUCTION = f"""# Kinds of files, and what becomes of their pictures

Made by `python -m tests.file_kinds docs/files.md` from files that it writes itself (FFmpeg {av.ffmpeg_version_info},
PyAV {av.__version__}). *there*: pictures that FFmpeg decodes when it is given every packet. *found*: frames that the
probe counts and the decoder delivers. *lost*: how many of those that are there are not found, by their pixels; in a
damaged file FFmpeg conceals with what it decoded before, so that pixels may differ though nothing is lost. *said*: by
the rows of the file.

| kind | there | found | lost | said |
|---|---|---|---|---|
"""


if __name__ == "__main__":
    main()
