"""Decide from facts alone whether the GPU's decoders can be trusted with a video.

What they refuse aloud would only cost time. Most rules are for what they would get wrong in silence: they pair the
times of packets with pictures in the order in which they are decoded, so every packet must give exactly one picture.
"""

import ctypes
from collections.abc import Mapping
from importlib.util import find_spec

from sqt_fast.pipelines.dali_errors import is_installed
from sqt_fast.video.packets import RANDOM_ACCESS, SHOWN
from sqt_fast.video.probe import Probe

# Profiles that NVDEC decodes on every GPU since Turing, Hopper among them (Video Codec SDK 13.0, NVDEC application
# note). None: whatever the profile. FFmpeg's names.
_PROFILES = {
    "h264": {"Baseline", "Constrained Baseline", "Main", "High"},
    "hevc": {"Main", "Main 10"},
    "mpeg4": {"Simple Profile", "Advanced Simple Profile"},
    "vp8": None,
    "vp9": {"Profile 0"},
}
_EIGHT_BITS = frozenset({"yuv420p", "yuvj420p"})
_TEN_BITS = frozenset({"yuv420p10le"})
# Smallest side, and largest, as NVDEC itself reports them (nvdecinfo of github.com/philipl/nv-video-info).
_SIDES = {"h264": (48, 4096), "hevc": (144, 8192), "mpeg4": (48, 2032), "vp8": (48, 4096), "vp9": (128, 8192)}
# Pictures that the decoder holds to put them in order.
_MAX_REORDER = 7


def why_not_nvdec(facts: Probe, tested: Mapping[str, str | None]) -> str | None:
    """Return the first reason against decoding a stream on the GPU, None if there is none.

    tested: what ``selftest.working_codecs`` found: by codec, None or why it does not work here.
    """
    return _why_not_codec(facts, tested) or _why_not_stream(facts)


def why_no_gpu_decoder() -> str | None:
    """Say why this machine cannot decode on a GPU at all, None if it might."""
    import torch

    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if not is_installed():
        return "DALI is not installed (pip install 'sqt-fast[gpu]')"
    if find_spec("triton") is None:
        return "Triton, which resizes what was decoded, is not installed (pip install 'sqt-fast[gpu]')"
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:
        return (
            "the driver's video library libnvcuvid.so.1 is missing: install it, or in a container set "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
        )
    return None


def _why_not_codec(facts: Probe, tested: Mapping[str, str | None]) -> str | None:
    if facts.codec not in _PROFILES:
        return f"{facts.codec} is not decoded on the GPU"
    profiles = _PROFILES[facts.codec]
    if profiles is not None and facts.profile not in profiles:
        return f"{facts.codec} of profile {facts.profile or 'unknown'} is not decoded on the GPU"
    if facts.pix_fmt not in _EIGHT_BITS and not (facts.codec == "hevc" and facts.pix_fmt in _TEN_BITS):
        return f"{facts.codec} in {facts.pix_fmt} is not decoded on the GPU"
    name = facts.codec + "10" * (facts.pix_fmt in _TEN_BITS)
    if name not in tested:
        return f"{name} was not tested on this GPU"
    reason = tested[name]
    return None if reason is None else f"{name} failed its test on this GPU: {reason}"


def _why_not_stream(facts: Probe) -> str | None:
    smallest, largest = _SIDES[facts.codec]
    width, height = facts.source.width, facts.source.height
    size, depth = f"{width}x{height}", facts.reorder_depth
    rules = (
        (facts.is_interlaced, "interlaced: a packet may hold one field or two"),
        (not _is_timed(facts), "frames cannot be told apart by time: times are missing, doubled or dubious"),
        (not facts.packets.are(RANDOM_ACCESS).any(), "no picture at which decoding may start"),
        (facts.size_changes, "the size or format of the pictures changes"),
        (facts.has_hidden, "hidden pictures: packets and frames do not pair"),
        (width % 2 or height % 2, f"odd size {size}"),
        (min(width, height) < smallest, f"{size} is too small for the GPU's {facts.codec} decoder"),
        (max(width, height) > largest, f"{size} is too large for the GPU's {facts.codec} decoder"),
        (depth > _MAX_REORDER, f"{depth} pictures to reorder, more than {_MAX_REORDER}"),
    )
    return next((reason for applies, reason in rules if applies), None)


def _is_timed(facts: Probe) -> bool:
    """Whether every packet's own time, as the file has it, is that of one picture."""
    pairs = facts.num_frames == facts.packets.are(SHOWN).sum()
    return bool(pairs) and facts.pts is not None and not facts.clock_jumped
