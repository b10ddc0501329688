"""What several test files share: videos, a network small enough for any machine, and the rules for GPUs."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# CUDA's matrix products are deterministic only with this; it is read when CUDA starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch

# Where there is no GPU, kernels run in Triton's interpreter; it is chosen when they are imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:  # test_cuda.py runs where torch and pytest are alone
    from sqt_fast.network.model import SqueezeTime
    from tests.exports import ExportedOnce

TINY_LABELS = ("still", "left", "right", "up", "down", "naïve, “quoted”", "turn")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of the GPU where there is none; fail them where there must be one."""
    if item.get_closest_marker("needs_cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("FAIL_WITHOUT_CUDA"):
        pytest.fail("FAIL_WITHOUT_CUDA is set and torch sees no CUDA GPU")
    pytest.skip("torch sees no CUDA GPU")


@pytest.fixture(autouse=True)
def _nan_in_fresh_memory() -> Iterator[None]:
    """Fill ``torch.empty`` with NaN (``torch.utils.deterministic.fill_uninitialized_memory``)."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_tracker_stays() -> Iterator[None]:
    """End multiprocessing's tracker, which a test of DALI's processes starts: others count what processes are left."""
    yield
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker and tracker._resource_tracker._fd is not None:
        gc.collect()
        for child in multiprocessing.active_children():  # of a test that failed: the tracker ends after the last
            child.kill()
        tracker._resource_tracker._stop()


@pytest.fixture
def kept_signals() -> Iterator[None]:
    """Undo what a command does to the handlers of this process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def heard_ctrl_c() -> Iterator[None]:
    """Hear Ctrl-C as a program in a terminal does, also where the tests run in a shell's background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _no_real_time_priority() -> None:
    """Take back what SVT-AV1's encoder gives itself as root: with it, decoders would starve the whole machine."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def kernel_device() -> str:
    """Where kernels run: on the GPU, or interpreted on the CPU."""
    import triton

    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("FAIL_WITHOUT_CUDA"):
        pytest.fail("FAIL_WITHOUT_CUDA is set and torch sees no CUDA GPU")
    if not triton.knobs.runtime.interpret:
        pytest.skip("no GPU, and TRITON_INTERPRET is off")
    return "cpu"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the user's, in which nothing is tuned."""
    from sqt_fast.kernels import tuned

    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    tuned.look_in(tmp_path / "cache" / "kernels.json")
    tuned.forget()
    return tmp_path / "cache"


@pytest.fixture
def shared() -> Path:
    """The shared folder beside the repository."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder with golden results is not beside the repository")
    return folder


@pytest.fixture
def quiet_ffmpeg() -> Iterator[None]:
    """Keep what FFmpeg says of broken files out of the output."""
    import av

    before = av.logging.get_level()
    av.logging.set_level(None)
    yield
    av.logging.set_level(before)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 short videos of several codecs and 5 files that are not sound. Do not change it.

    ``broken/``: empty.mp4, text.mp4, cut.mkv (ends in mid-stream), sound.mp4 (no video), gone.mp4 (a dangling link).
    """
    from sqt_fast.samples.encoding import SampleSet, make_samples

    folder = tmp_path_factory.mktemp("archive")
    samples = make_samples(folder, SampleSet(seconds=2.5, count=8, clean=True))
    broken = folder / "broken"
    broken.mkdir()
    (broken / "empty.mp4").touch()
    (broken / "text.mp4").write_text("this is no video\n" * 50)
    whole = next(s.path for s in samples if s.container == "mkv")
    data = (folder / whole).read_bytes()
    (broken / "cut.mkv").write_bytes(data[: len(data) // 2])
    _write_sound(broken / "sound.mp4")
    (broken / "gone.mp4").symlink_to("nowhere.mp4")
    return folder


def _write_sound(path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="session")
def tiny_model() -> "SqueezeTime":
    """A network of depth 10 and width 0.25 with random weights. Do not change it."""
    from sqt_fast.network.model import ModelConfig, SqueezeTime

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=len(TINY_LABELS)))
        torch.nn.init.normal_(model.get_submodule("fc").get_parameter("weight"), std=1.0)  # labels that differ
    return model.eval()


@pytest.fixture(scope="session")
def tiny_weights(tiny_model: "SqueezeTime", tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of the tiny network's checkpoint and of its class names."""
    from sqt_fast.network.checkpoint import save_safetensors

    folder = tmp_path_factory.mktemp("weights")
    save_safetensors(tiny_model, folder / "tiny.safetensors")
    (folder / "labels.txt").write_text("\n".join(TINY_LABELS), encoding="utf-8")
    return str(folder / "tiny.safetensors"), str(folder / "labels.txt")


@pytest.fixture(scope="session")
def exported(tiny_model: "SqueezeTime", tmp_path_factory: pytest.TempPathFactory) -> "ExportedOnce":
    """The tiny network as ONNX, by precision."""
    from tests.exports import ExportedOnce

    return ExportedOnce(tiny_model, tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def network_clips() -> torch.Tensor:
    """Four clips of noise for the tiny network, (4, 48, 64, 64) float32. Do not change them."""
    return torch.randn((4, 48, 64, 64), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: several wait for one another, on a busy machine longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def training_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of small videos to train with. Do not change them."""
    from tests.training import make_videos

    return make_videos(tmp_path_factory.mktemp("training"))
