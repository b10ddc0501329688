"""The GPU's route: which videos take it, and from a remuxed segment to frames as the host would give them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sqt_fast.clips.colour import LEFT_CHROMA
from sqt_fast.engine.events import Note, Report
from sqt_fast.engine.segment_decoder import (
    MAX_BATCH_BYTES,
    NUM_PIPELINES,
    NUM_THREADS,
    SegmentDecoder,
    gpu_pipelines,
)
from sqt_fast.engine.selftest import CLIPS, working_codecs
from sqt_fast.files import keep_finding, read_findings
from sqt_fast.pipelines.routing import why_not_nvdec
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.versions import driver_version, installed
from sqt_fast.video.probe import Probe
from sqt_fast.video.segments import Segment

# Where the codecs that work are kept, in the user's cache, and with which versions.
FINDINGS = "decoders.json"
TESTED_WITH = ("sqt-fast", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "av")
# Full-size RGB of a segment's wanted frames: long segments pay for the making of a decoder, 50 to 70 ms.
SEGMENT_BYTES = 1 << 30


class GpuRoute:
    """Decodes segments on the GPU. Threads share it."""

    name = "nvdec"
    # Threads that have a segment in hand each: enough to keep every pipeline's decoders busy.
    num_threads = NUM_PIPELINES * NUM_THREADS

    def __init__(self, decoder: SegmentDecoder, tested: Mapping[str, str | None]) -> None:
        self.decoder, self.tested = decoder, tested

    @classmethod
    def open(cls, device_id: int | None, short_side: int, report: Report) -> "GpuRoute | None":
        """Test the decoders of a GPU on small clips (device_id None: their stand-in on the CPU); None if none works."""
        batch_bytes = _batch_bytes(device_id)
        make_pipeline = gpu_pipelines(short_side, device_id=device_id)
        decoder = SegmentDecoder(make_pipeline, max_batch_bytes=batch_bytes, report=report)
        tested = _tested(decoder, short_side, device_id)
        for codec, reason in tested.items():
            if reason is not None:
                report(Note(f"{codec} is decoded on the CPU: {reason}"))
        if any(reason is None for reason in tested.values()):
            return cls(decoder, tested)
        decoder.close()
        return None

    def why_not(self, facts: Probe) -> str | None:
        """Return why a video is better decoded on the host, None if it is not."""
        return why_not_nvdec(facts, self.tested)

    def max_wanted(self, facts: Probe) -> int:
        """Return how many frames a segment should ask for."""
        return max(1, SEGMENT_BYTES // (3 * facts.source.width * facts.source.height))

    def uncropped(self, facts: Probe) -> tuple[int, int] | None:
        """Return the size to which a segment is to be uncropped (see ``remux.remux``), None where that is no use."""
        source = facts.source
        wanted = facts.codec in ("h264", "hevc") and facts.coded_size != (source.height, source.width)
        return facts.coded_size if wanted else None

    def decode(self, facts: Probe, segment: Segment, data: bytes, *, is_uncropped: bool) -> Tensor:
        """Decode the wanted frames of ``segment``, remuxed to ``data``. Raises SegmentError.

        Returns (F, h, w, 3) uint8 on the GPU, resized, upright, in the colours that the stream's matrix asks for.
        """
        source = facts.source
        shown = (source.height, source.width) if is_uncropped else None
        return self.decoder.decode(
            SegmentSample(
                data,
                segment.indices,
                facts.coded_size,
                shown,
                source.orientation,
                facts.colorspace,
                full_range=facts.is_full_range,
                left_chroma=facts.codec in LEFT_CHROMA,
            )
        )

    def close(self) -> None:
        """Let go of the GPU's decoders."""
        self.decoder.close()


def open_route(device: str, short_side: int, report: Report) -> GpuRoute | None:
    """Open the decoders of the GPU ``device``, ``cuda`` or ``cuda:N``. See ``GpuRoute.open``."""
    return GpuRoute.open(int(device.partition(":")[2] or 0), short_side, report)


def _tested(decoder: SegmentDecoder, short_side: int, device_id: int | None) -> dict[str, str | None]:
    """Return what the self-test finds. It takes seconds, so what works is kept, and not tested again as things are."""
    gpu = "none" if device_id is None else torch.cuda.get_device_name(device_id)
    versions = " ".join(f"{name} {version}" for name, version in installed(TESTED_WITH).items())
    key = f"{gpu} | {driver_version()} | {versions} | {short_side}"
    kept = read_findings(FINDINGS).get(key)
    works = [codec for codec in CLIPS if codec in kept] if isinstance(kept, list) else []
    others = [codec for codec in CLIPS if codec not in works]
    tested = dict.fromkeys(works) | working_codecs(decoder.decode, others, short_side=short_side)
    if any(tested[codec] is None for codec in tested.keys() - works):
        keep_finding(FINDINGS, key, [codec for codec, reason in tested.items() if reason is None])
    return tested


def _batch_bytes(device_id: int | None) -> int:
    """Return what one batch may take of a GPU's memory, so that all pipelines leave half of it for the network."""
    if device_id is None:
        return MAX_BATCH_BYTES
    free, _ = torch.cuda.mem_get_info(device_id)
    return min(MAX_BATCH_BYTES, free // 2 // NUM_PIPELINES)
