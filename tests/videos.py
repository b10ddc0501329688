"""Videos of a special kind, which tests of probing and of decoding write."""

from pathlib import Path

import av
import numpy as np

from sqt_fast.scenes import draw, random_scene

MATRICES = {  # a, b, c, d of ISO 14496-12: shown x = a x + c y, shown y = b x + d y
    "as it is": (1, 0, 0, 1),
    "a quarter clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "a quarter anticlockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored top to bottom": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write the display matrix into the track header of an MP4."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 40 if data[at] == 0 else 52
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    path.write_bytes(data)


def write_two_tracks(path: Path, motion: str, num_frames: tuple[int, int], default: int) -> None:
    """Write tracks of 64x48 and 160x128 pixels, 25 frames a second; number ``default`` is marked as the default."""
    with av.open(str(path), "w") as container:
        streams: list[av.VideoStream] = []
        for size in ((64, 48), (160, 128)):
            stream = container.add_stream("mpeg4", 25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = size
            stream.disposition = av.stream.Disposition(len(streams) == default)
            streams.append(stream)
        for k, stream in enumerate(streams):
            for pixels in draw(random_scene(motion, k), np.arange(num_frames[k]) / 25, (stream.width, stream.height)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
