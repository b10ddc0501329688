"""The GPU's route, with DALI's decoder on the CPU in its place: it has VP9 and VP8 alone, and shows the same frames."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from sqt_fast.clips.device_batches import DeviceBatches
from sqt_fast.clips.recipe import Recipe
from sqt_fast.clips.resize import resize, upright
from sqt_fast.config import FAST
from sqt_fast.engine import gpu_route as module
from sqt_fast.engine.decoders import DecoderSetup
from sqt_fast.engine.events import ignore
from sqt_fast.engine.gpu_route import GpuRoute
from sqt_fast.engine.labelling import Labelling, Task
from sqt_fast.engine.memory import Resources
from sqt_fast.engine.segment_decoder import SegmentError
from sqt_fast.engine.selftest import CLIPS
from sqt_fast.errors import DeviceLostError
from sqt_fast.network.backends import Backend, load_backend
from sqt_fast.network.model import SqueezeTime
from sqt_fast.pipelines.sample import SegmentSample
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import Format
from sqt_fast.samples.scenes import draw, random_scene
from sqt_fast.table.rows import RowStyle
from sqt_fast.video.archive import find_videos
from sqt_fast.video.cpu_decoder import FFMPEG, CpuDecoder, DecodeReport
from sqt_fast.video.probe import Orientation, Probe
from sqt_fast.video.reader import PacketReader
from sqt_fast.video.remux import remux
from sqt_fast.video.scan import probe
from sqt_fast.video.segments import plan_segments
from tests.conftest import TINY_LABELS
from tests.poison import Poison
from tests.videos import MATRICES, with_matrix
from tests.watching import notes_into

SMALL = replace(FAST, short_side=72, crop_size=64)  # the resize runs in Triton's interpreter
RECIPE = Recipe(SMALL)
RESOURCES = Resources(2, 1 << 30, cores=2)
SIZE, FPS = (320, 240), Fraction(25)
VPX = {"deadline": "realtime", "cpu-used": "8", "g": "20", "b": "2M", "lag-in-frames": "0"}
FORMS = {
    "vp9.webm": Format("webm", "libvpx-vp9", "yuv420p", SIZE, FPS, VPX),
    "vp9.mp4": Format("mp4", "libvpx-vp9", "yuv420p", SIZE, FPS, VPX),
    "vp8.webm": Format("webm", "libvpx", "yuv420p", SIZE, FPS, VPX),
    "h264.mp4": Format("mp4", "libx264", "yuv420p", SIZE, FPS),
    "small.webm": Format("webm", "libvpx", "yuv420p", (46, 46), FPS, VPX),
}


def write(path: Path, form: Format, num_frames: int = 130) -> None:
    scene = draw(random_scene("right", 3), (t / 25 for t in range(num_frames)), form.size)
    encoding.encode_video(path, form, scene, list(range(num_frames + 1)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    for name, form in FORMS.items():
        write(folder / name, form)
    return folder


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def route(notes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuRoute]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQT_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        gpu = GpuRoute.open(None, SMALL.short_side, notes_into(notes))
    assert gpu is not None
    with closing(gpu):
        yield gpu


@pytest.fixture(scope="module")
def backend(tiny_model: SqueezeTime) -> Backend:
    return load_backend("eager", tiny_model, device="cpu", precision="fp32", batch_size=4, size=SMALL.crop_size)


def label(folder: Path, backend: Backend, gpu: GpuRoute | None, **options: Any) -> dict[str, list[Any]]:
    """Return the rows of every video."""
    style = RowStyle(TINY_LABELS, len(TINY_LABELS), per_window=True)
    setup = DecoderSetup(RESOURCES, options.pop("tools", FFMPEG), gpu)
    labelling = Labelling(backend, Task(RECIPE, style, batch_size=4), setup, **options)
    results = list(labelling.label(find_videos([str(folder)])))
    return {Path(result.video.path).name: result.rows for result in results}


def probabilities(rows: list[Any]) -> Any:
    return np.array([[row.topk_scores[row.topk_ids.index(i)] for i in range(len(TINY_LABELS))] for row in rows])


def look(path: Path) -> Probe:
    (video,) = find_videos([str(path)])
    return probe(video)


def both(route: GpuRoute, facts: Probe) -> tuple[Tensor, Tensor]:
    """Return the frames that clips want, decoded here and there."""
    there: list[Tensor] = []
    here: list[Tensor] = []
    with PacketReader(facts.source) as reader:
        for segment in plan_segments(facts, RECIPE.plan(facts).wanted):
            there.append(route.decode(facts, segment, remux(reader, segment), is_uncropped=False))
            for chunk in CpuDecoder().frames(reader, segment, DecodeReport()):
                images = upright(torch.from_numpy(chunk.images), facts.source.orientation)
                here.append(resize(images, SMALL.short_side))
    return torch.cat(there), torch.cat(here)


def test_what_works_is_found_out_and_said(route: GpuRoute, notes: list[str]) -> None:
    assert [codec for codec, reason in route.tested.items() if reason is None] == ["vp9", "vp8"]
    assert len(notes) == 4
    assert all("is decoded on the CPU: Failed to create video decoder" in note for note in notes)


@pytest.mark.usefixtures("empty_cache")
def test_what_works_is_not_tested_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def find(decode: object, codecs: list[str], **options: object) -> dict[str, str | None]:
        asked.append(list(codecs))
        return {codec: None if codec in ("h264", "vp9") else "no luck today" for codec in codecs}

    monkeypatch.setattr(module, "working_codecs", find)
    for short_side in (64, 64, 72):  # what was tested resizes to another size the third time
        gpu = GpuRoute.open(None, short_side, ignore)
        assert gpu is not None
        gpu.close()
        assert [codec for codec, reason in gpu.tested.items() if reason is None] == ["h264", "vp9"]
    every = list(CLIPS)
    assert asked == [every, [codec for codec in every if codec not in ("h264", "vp9")], every]
    monkeypatch.setattr(module, "driver_version", lambda: "another driver")
    gpu = GpuRoute.open(None, 64, ignore)
    assert gpu is not None
    gpu.close()
    assert asked[-1] == every


@pytest.mark.usefixtures("empty_cache")
def test_no_route_where_no_codec_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "working_codecs", lambda *args, **options: {"h264": "no", "vp9": "no luck"})
    notes: list[str] = []
    assert GpuRoute.open(None, 64, notes_into(notes)) is None
    assert notes == ["h264 is decoded on the CPU: no", "vp9 is decoded on the CPU: no luck"]


def test_labels_are_those_of_the_host(folder: Path, backend: Backend, route: GpuRoute) -> None:
    """Colours differ a little: chroma is interpolated in another way."""
    host, mixed = label(folder, backend, None), label(folder, backend, route)
    decoders = {name: {row.decoder for row in rows} for name, rows in mixed.items()}
    nvdec = {"vp9.webm", "vp9.mp4", "vp8.webm"}
    assert decoders == {name: {"nvdec"} if name in nvdec else {"cpu"} for name in FORMS}
    for name, rows in mixed.items():
        assert {row.status for row in rows} == {"ok"}
        assert [row.clip_index for row in rows] == [row.clip_index for row in host[name]] == [0, 1]
        difference = np.abs(probabilities(rows) - probabilities(host[name])).max()
        assert difference < 0.004
        assert (difference == 0) == (name not in nvdec)


@pytest.mark.parametrize("name", ["vp9.webm", "vp9.mp4", "vp8.webm"])
def test_frames_are_those_of_the_host(folder: Path, route: GpuRoute, name: str) -> None:
    there, here = both(route, look(folder / name))
    assert there.shape == here.shape
    difference = (there.int() - here.int()).abs().float()
    assert difference.mean() < 1.3  # chroma is interpolated in another way
    others = (there[1:].int() - here[:-1].int()).abs().float().mean(dim=(1, 2, 3))
    assert (others > 2 * difference[1:].mean(dim=(1, 2, 3))).all(), "a frame is as much like its neighbour"


@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_upright(folder: Path, route: GpuRoute, tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((folder / "vp9.mp4").read_bytes())
    with_matrix(path, *MATRICES[name])
    there, here = both(route, look(path))
    assert there.shape == here.shape
    assert (there.int() - here.int()).abs().float().mean() < 1.3


def test_colours_of_bt709(route: GpuRoute, tmp_path: Path) -> None:
    """DALI converts as BT.601 whatever the stream says; left at that, this picture would be wrong by more."""
    path = tmp_path / "a.webm"
    pixels = np.zeros((240, 320, 3), np.uint8)
    pixels[:120, :160], pixels[120:, :160], pixels[:, 160:] = (200, 60, 60), (60, 180, 60), (60, 60, 200)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", 25, VPX)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for _ in range(70):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode(None))
    facts = look(path)
    assert facts.colorspace == 1
    there, here = both(route, facts)
    assert (there.int() - here.int()).abs().float().mean() < 2
    wrong, _ = both(route, replace(facts, colorspace=2))
    assert (wrong.int() - here.int()).abs().float().mean() > 5


class Broken(GpuRoute):
    """A route that fails on every segment after the first so many."""

    def __init__(self, real: GpuRoute, good: int, error: Exception) -> None:
        super().__init__(real.decoder, real.tested)
        self.good, self.error = good, error

    def max_wanted(self, facts: Probe) -> int:
        return 1

    def decode(self, *args: Any, **options: Any) -> Tensor:
        self.good -= 1
        if self.good < 0:
            raise self.error
        return super().decode(*args, **options)


@pytest.mark.parametrize(("good", "decoder"), [(0, "cpu"), (1, "nvdec, cpu")])
def test_what_the_gpu_cannot_decode_the_host_does(
    folder: Path, backend: Backend, route: GpuRoute, good: int, decoder: str
) -> None:
    broken = Broken(route, good, SegmentError("the driver hangs"))
    only = folder / "vp9.webm"
    (rows,) = label(only, backend, broken).values()
    assert [row.decoder for row in rows] == [decoder] * 2
    (wanted,) = label(only, backend, None).values()
    assert np.abs(probabilities(rows) - probabilities(wanted)).max() < (0.004 if good else 1e-9)


class Elsewhere(Tensor):
    """A tensor that says it lies on a GPU, and meets others only where PyTorch would let it: in copies."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in (*args, *(kwargs or {}).values()) for t in (t if isinstance(t, list | tuple) else [t])]
        kinds = {isinstance(t, cls) for t in given if isinstance(t, Tensor)}
        if len(kinds) > 1 and func is not Tensor.copy_:
            raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class OnAGpu(Broken):
    """A route whose frames stay on the device where they were decoded, until it fails."""

    def decode(self, *args: Any, **options: Any) -> Tensor:
        return super().decode(*args, **options).as_subclass(Elsewhere)


@pytest.mark.parametrize("good", [1, 9], ids=["both routes in one clip", "the GPU alone"])
def test_frames_of_a_gpu_become_clips(
    folder: Path, backend: Backend, route: GpuRoute, kernel_device: str, good: int
) -> None:
    """The road from decoder to network, with frames on another device than the CPU's and some that are not."""
    there = OnAGpu(route, good, SegmentError("the driver hangs"))
    batches = DeviceBatches(SMALL, backend.dtype, kernel_device)
    (rows,) = label(folder / "vp8.webm", backend, there, batches=batches).values()
    assert {row.status for row in rows} == {"ok"}, rows[0].error_message
    assert {row.decoder for row in rows} == {"nvdec, cpu" if good == 1 else "nvdec"}
    (wanted,) = label(folder / "vp8.webm", backend, Broken(route, good, SegmentError("so"))).values()
    assert np.abs(probabilities(rows) - probabilities(wanted)).max() < 1e-4


def test_an_unforeseen_error_is_of_one_video(folder: Path, backend: Backend, route: GpuRoute) -> None:
    (rows,) = label(folder / "vp9.webm", backend, Broken(route, 0, RuntimeError("odd"))).values()
    assert [(row.status, row.error_message) for row in rows] == [("error", "RuntimeError: odd")]


def test_a_lost_gpu_is_of_no_video(folder: Path, backend: Backend, route: GpuRoute) -> None:
    lost = Broken(route, 0, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceLostError, match="illegal memory access"):
        label(folder / "vp9.webm", backend, lost)


def test_out_of_a_gpus_memory_a_segment_is_decoded_on_the_cpu(folder: Path, backend: Backend, route: GpuRoute) -> None:
    full = Broken(route, 0, torch.OutOfMemoryError("CUDA out of memory"))
    (rows,) = label(folder / "vp9.webm", backend, full).values()
    assert {(row.status, row.decoder) for row in rows} == {("ok", "cpu")}


def test_a_decoder_closed_in_mid_run_costs_nothing(folder: Path, backend: Backend) -> None:
    gpu = GpuRoute.open(None, SMALL.short_side, ignore)
    assert gpu is not None
    gpu.close()
    (rows,) = label(folder / "vp8.webm", backend, gpu).values()
    assert {(row.status, row.decoder) for row in rows} == {("ok", "cpu")}


def test_packets_come_from_the_hosts_process(folder: Path, backend: Backend, route: GpuRoute) -> None:
    """A file that kills whoever opens it never meets the GPU."""
    rows = label(folder, backend, route, tools=Poison("SIGSEGV", name="vp9.webm"))
    assert [row.status for row in rows.pop("vp9.webm")] == ["crashed"]
    assert {row.status for more in rows.values() for row in more} == {"ok"}


def test_segments_are_cut_to_what_the_gpu_holds(folder: Path, route: GpuRoute) -> None:
    facts = look(folder / "vp9.webm")
    assert route.max_wanted(facts) == (1 << 30) // (3 * 320 * 240)
    huge = replace(facts, source=replace(facts.source, width=16384, height=8192))
    assert route.max_wanted(huge) == 2


def test_sizes_that_h264_cuts_off_are_asked_for_uncropped(folder: Path, route: GpuRoute) -> None:
    h264 = look(folder / "h264.mp4")
    assert route.uncropped(h264) is None
    assert route.uncropped(replace(h264, coded_size=(256, 320))) == (256, 320)
    assert route.uncropped(replace(look(folder / "vp9.webm"), coded_size=(256, 320))) is None


def test_the_decoder_is_told_how_a_segment_is_shown(folder: Path) -> None:
    """Of an uncropped one, only the upper left."""
    seen: list[SegmentSample] = []

    class Spy:
        def decode(self, sample: SegmentSample) -> Tensor:
            seen.append(sample)
            return torch.zeros((len(sample.indices), 256, 341, 3), dtype=torch.uint8)

    turn = Orientation(-90, transpose=True, flip_x=True)
    facts = look(folder / "h264.mp4")
    facts = replace(facts, source=replace(facts.source, orientation=turn), colorspace=1, pix_fmt="yuvj420p")
    (segment,) = plan_segments(facts, np.array([3, 9]))
    spied = GpuRoute(Spy(), {})  # type: ignore[arg-type]
    for is_uncropped in (True, False):
        spied.decode(facts, segment, b"data", is_uncropped=is_uncropped)
    assert [sample.display_size for sample in seen] == [(240, 320), None]
    assert all((sample.coded_size, sample.orientation) == (facts.coded_size, turn) for sample in seen)
    assert [(sample.colorspace, sample.full_range) for sample in seen] == [(1, True), (1, True)]
    assert all(sample.left_chroma for sample in seen)
    assert list(seen[0].indices) == list(segment.indices)
