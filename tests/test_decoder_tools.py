"""What works inside a decoder's process, here without one."""

from pathlib import Path

import numpy as np

from sqt_fast.engine.decoder_tools import CpuTools
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import CpuDecoder, DecodeReport
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.segments import plan_segments
from tests.videos import look


def test_they_probe_and_decode_as_ffmpeg_does(archive: Path) -> None:
    path = next(p for p in sorted(archive.rglob("*.mp4")) if p.parent.name != "broken")
    (video,) = find_videos([str(path)])
    ticks: list[None] = []
    facts, reader = CpuTools().probe(video, lambda: ticks.append(None))
    assert facts.num_frames == look(path).num_frames
    assert len(ticks) == len(facts.packets)
    (segment,) = plan_segments(facts, np.arange(5))
    shapes: list[tuple[int, ...]] = []

    def new_buffer(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        shapes.append(shape)
        return np.empty(shape, np.uint8)

    with reader:
        ours = list(CpuTools().frames(reader, segment, DecodeReport(), new_buffer))
    with PacketReader(facts.source) as again:
        wanted = list(CpuDecoder().frames(again, segment, DecodeReport()))
    assert [f.numbers for f in ours] == [f.numbers for f in wanted]
    assert all(np.array_equal(a.images, b.images) for a, b in zip(ours, wanted, strict=True))
    assert len(shapes) == len(ours)
