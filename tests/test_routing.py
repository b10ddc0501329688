"""Which videos may go to the GPU: every rule alone, and the machine's part."""

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sqt_fast.engine.selftest import CLIPS
from sqt_fast.pipelines import dali_errors, routing
from sqt_fast.pipelines.routing import why_no_gpu_decoder, why_not_nvdec
from sqt_fast.video.packets import RANDOM_ACCESS, SHOWN
from sqt_fast.video.probe import Probe
from tests.test_probe import FACTS, PACKETS


def flagged(*flags: int) -> dict[str, Any]:
    return {"packets": replace(PACKETS, flags=np.array(flags, np.uint8))}


def good(*, width: int = 1920, height: int = 1080, **changes: Any) -> Probe:
    """Return the facts of a video that may go to the GPU, but for ``changes``."""
    facts = replace(FACTS, source=replace(FACTS.source, width=width, height=height), profile="High", reorder_depth=2)
    return replace(facts, **{**flagged(SHOWN | RANDOM_ACCESS, SHOWN, SHOWN, SHOWN), **changes})


ALL_WORK: dict[str, str | None] = dict.fromkeys(CLIPS)

ACCEPTED: dict[str, dict[str, Any]] = {
    "h264 high": {},
    "h264 main": {"profile": "Main"},
    "h264 baseline": {"profile": "Constrained Baseline"},
    "full range": {"pix_fmt": "yuvj420p"},
    "not a multiple of 16": {"width": 854, "height": 482},
    "portrait": {"width": 1080, "height": 1920},
    "hevc": {"codec": "hevc", "profile": "Main"},
    "hevc 10 bit": {"codec": "hevc", "profile": "Main 10", "pix_fmt": "yuv420p10le"},
    "hevc 8 bit in Main 10": {"codec": "hevc", "profile": "Main 10"},
    "8K hevc": {"codec": "hevc", "profile": "Main", "width": 7680, "height": 4320},
    "mpeg4": {"codec": "mpeg4", "profile": "Simple Profile", "width": 640, "height": 480},
    "mpeg4 with B-frames": {"codec": "mpeg4", "profile": "Advanced Simple Profile", "width": 640, "height": 480},
    "vp9": {"codec": "vp9", "profile": "Profile 0"},
    "vp8 has no profiles": {"codec": "vp8", "profile": None},
    "7 to reorder": {"reorder_depth": 7},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "av1": ({"codec": "av1", "profile": "Main"}, "av1 is not"),
    "mpeg2": ({"codec": "mpeg2video", "profile": "Main"}, "mpeg2video is not"),
    "mjpeg": ({"codec": "mjpeg", "profile": None, "pix_fmt": "yuvj420p"}, "mjpeg is not"),
    "h264 10 bit": ({"profile": "High 10", "pix_fmt": "yuv420p10le"}, "profile High 10"),
    "h264 10 bit, wrong profile": ({"pix_fmt": "yuv420p10le"}, "yuv420p10le"),
    "h264 4:2:2": ({"profile": "High 4:2:2", "pix_fmt": "yuv422p"}, "profile High 4:2:2"),
    "h264 4:4:4": ({"profile": "High 4:4:4 Predictive", "pix_fmt": "yuv444p"}, "profile High 4:4:4"),
    "h264 lossless": ({"profile": "High 4:4:4 Predictive"}, "profile High 4:4:4"),
    "h264 extended": ({"profile": "Extended"}, "profile Extended"),
    "h264 grey": ({"pix_fmt": "gray"}, "gray"),
    "profile unknown": ({"profile": None}, "profile unknown"),
    "hevc 4:2:2": ({"codec": "hevc", "profile": "Rext", "pix_fmt": "yuv422p10le"}, "profile Rext"),
    "hevc 12 bit": ({"codec": "hevc", "profile": "Rext", "pix_fmt": "yuv420p12le"}, "profile Rext"),
    "vp9 10 bit": ({"codec": "vp9", "profile": "Profile 2", "pix_fmt": "yuv420p10le"}, "profile Profile 2"),
    "vp9 4:4:4": ({"codec": "vp9", "profile": "Profile 1", "pix_fmt": "yuv444p"}, "profile Profile 1"),
    "mpeg4 studio": ({"codec": "mpeg4", "profile": "Simple Studio Profile"}, "profile Simple Studio"),
    "interlaced": ({"is_interlaced": True}, "interlaced"),
    "untimed": ({"pts": None}, "told apart"),
    "times mended": ({"clock_jumped": True}, "told apart"),
    "a packet with no frame": (flagged(SHOWN | RANDOM_ACCESS, SHOWN, SHOWN, 0), "told apart"),
    "no start": (flagged(SHOWN, SHOWN, SHOWN, SHOWN), "may start"),
    "size changes": ({"size_changes": True}, "changes"),
    "hidden pictures": ({"codec": "vp9", "profile": "Profile 0", "has_hidden": True}, "hidden"),
    "odd width": ({"codec": "vp9", "profile": "Profile 0", "width": 321, "height": 240}, "odd size 321x240"),
    "odd height": ({"codec": "vp8", "profile": None, "width": 320, "height": 241}, "odd size 320x241"),
    "small hevc": ({"codec": "hevc", "profile": "Main", "width": 320, "height": 136}, "320x136 is too small"),
    "small vp9": ({"codec": "vp9", "profile": "Profile 0", "width": 120, "height": 160}, "120x160 is too small"),
    "large h264": ({"width": 4112, "height": 2160}, "4112x2160 is too large"),
    "large mpeg4": ({"codec": "mpeg4", "profile": "Simple Profile", "width": 2048}, "too large"),
    "8 to reorder": ({"reorder_depth": 8}, "8 pictures to reorder"),
}


@pytest.mark.parametrize("changes", ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(changes: dict[str, Any]) -> None:
    assert why_not_nvdec(good(**changes), ALL_WORK) is None


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused(changes: dict[str, Any], reason: str) -> None:
    found = why_not_nvdec(good(**changes), ALL_WORK)
    assert found is not None
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize("codec", CLIPS)
def test_only_what_passed_its_test_is_trusted(codec: str) -> None:
    profiles = {"h264": "Main", "hevc": "Main", "hevc10": "Main 10", "mpeg4": "Simple Profile", "vp9": "Profile 0"}
    pix_fmt = "yuv420p10le" if codec == "hevc10" else "yuv420p"
    changes: dict[str, Any] = {"codec": codec.removesuffix("10"), "profile": profiles.get(codec), "pix_fmt": pix_fmt}
    facts = good(**changes)
    assert why_not_nvdec(facts, {codec: None}) is None
    others = {name: None for name in CLIPS if name != codec}
    assert why_not_nvdec(facts, others) == f"{codec} was not tested on this GPU"
    failed = {**ALL_WORK, codec: "no answer within 60 s"}
    assert why_not_nvdec(facts, failed) == f"{codec} failed its test on this GPU: no answer within 60 s"


def test_every_tested_codec_can_be_routed() -> None:
    assert {name.removesuffix("10") for name in CLIPS} == set(routing._PROFILES) == set(routing._SIDES)


def test_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_no_gpu_decoder() == "torch sees no CUDA GPU"


@pytest.mark.parametrize(("package", "said"), [("nvidia", "DALI is not installed"), ("triton", "Triton, which")])
def test_machine_without_a_package(monkeypatch: pytest.MonkeyPatch, package: str, said: str) -> None:
    def find(name: str) -> object:
        return None if name == package else "found"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(routing, "find_spec", find)
    monkeypatch.setattr(dali_errors, "find_spec", find)
    assert (why_no_gpu_decoder() or "").startswith(said)


def test_machine_without_the_decoder_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert "libnvcuvid.so.1 is missing" in (why_no_gpu_decoder() or "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert why_no_gpu_decoder() is None
