"""The choice of device, precision and backend: by measurement, with the reason, and never against it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sqt_fast.config import IndexConfig
from sqt_fast.errors import BackendError, ConfigError
from sqt_fast.files import keep_finding
from sqt_fast.kernels import tuned
from sqt_fast.kernels.launch import executing
from sqt_fast.network import choose as module
from sqt_fast.network.agreement import FINDINGS, Form
from sqt_fast.network.backends import Started
from sqt_fast.network.choose import Choice, choose, find_device, open_backend
from sqt_fast.network.model import ModelConfig, SqueezeTime

SIZE = 32


class Fake:
    """A backend that does nothing."""

    def __init__(self, name: str, precision: str) -> None:
        self.name, self.precision = name, precision
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def start(self, clips: Tensor) -> Started:
        return Started(torch.zeros(len(clips), 7), torch.zeros(len(clips), 3))

    def release_memory(self) -> None:
        """It holds none."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, a compiler, and no GPU."""
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sqt_fast.network.compiled.why_not", lambda device, model: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    tuned.look_in(tmp_path / "cache" / "kernels.json")
    tuned.forget()
    return tmp_path / "cache"


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], float]:
    """Seconds a clip by (backend, precision): what the fake stop-watch shows."""
    table = {("eager", "fp32"): 1.0, ("eager", "bf16"): 1.0, ("compile", "fp32"): 1.0, ("compile", "bf16"): 1.0}

    def load(name: str, model: SqueezeTime, *, precision: str, **shape: Any) -> Fake:
        return Fake(name, precision)

    monkeypatch.setattr(module, "load_backend", load)
    monkeypatch.setattr(module, "_seconds_a_clip", lambda b, batch_size, size: table[b.name, b.precision])
    return table


def config(**options: Any) -> IndexConfig:
    return IndexConfig(**{"inputs": ("x",), "output": Path("t.csv"), **options})


def remember(model: SqueezeTime, cache: Path, precision: str = "fp32", **seconds: float) -> None:
    cache.mkdir()
    key = module._key(Choice("", precision, "cpu", module.CPU_BATCH, ""), model, SIZE)
    (cache / "tuning.json").write_text(json.dumps({key: seconds}))


# -- device -----------------------------------------------------------------------------------------------------------


def test_auto_is_the_cpu_without_a_gpu() -> None:
    assert find_device(None) == find_device("auto") == find_device("cpu") == "cpu"


def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(None) == "cuda"
    assert find_device("cuda:1") == "cuda:1"
    with pytest.raises(ConfigError, match="--device cuda:2: this machine has 2 CUDA devices"):
        find_device("cuda:2")


@pytest.mark.parametrize("asked", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there(asked: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {asked}: this machine has 0 CUDA devices; use cpu"):
        find_device(asked)


@pytest.mark.parametrize(
    "asked", ["banana", "cuda:", "cuda:x", "cuda:-1", "cudax", "CPU", "cpu:0", "mps", "", "cuda\n"]
)
def test_what_is_no_device(asked: str) -> None:
    with pytest.raises(ConfigError, match="no such device; use auto, cpu, cuda or cuda:N"):
        find_device(asked)


# -- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fp32", "bf16", "faster"), [(1.0, 0.5, "bf16"), (0.5, 1.0, "fp32"), (1.0, 0.97, "fp32")])
def test_precision_is_the_faster_one_and_fp32_if_equal(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], fp32: float, bf16: float, faster: str
) -> None:
    speeds["eager", "fp32"], speeds["eager", "bf16"] = fp32, bf16
    choice = choose(config(backend="eager"), tiny_model, num_clips=1000, size=SIZE)
    assert choice.precision == faster
    assert f"{faster} because measured here" in choice.reason
    assert f"fp32 {fp32 * 1000:.0f} ms" in choice.reason
    assert f"bf16 {bf16 * 1000:.0f} ms" in choice.reason


def test_what_was_asked_for_is_not_measured(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_backend", None)
    choice = choose(
        config(backend="compile", precision="bf16", batch_size=3, device="cpu"), tiny_model, num_clips=9, size=SIZE
    )
    assert choice == Choice("compile", "bf16", "cpu", 3, "as asked")


# -- eager or compile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_clips", "backend", "times"),
    [
        (25, "eager", "eager 12.5 s, compile 27.5 s with 20 s of compiling"),
        (99, "eager", "eager 49.5 s, compile 49.7 s with 20 s of compiling"),
        (101, "compile", "compile 50.3 s with 20 s of compiling, eager 50.5 s"),
        (10**6, "compile", "compile 300020 s with 20 s of compiling, eager 500000 s"),
    ],
)
def test_compiling_is_chosen_when_the_job_is_long_enough(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path, num_clips: int, backend: str, times: str
) -> None:
    remember(tiny_model, cache, eager_s=0.5, compiled_s=0.3, compile_s=20)
    choice = choose(config(precision="fp32"), tiny_model, num_clips=num_clips, size=SIZE)
    assert choice.backend == backend
    assert choice.reason == f"{backend} because about {num_clips} clips take {times} (measured here before)"


def test_what_measured_slower_is_never_chosen(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path
) -> None:
    remember(tiny_model, cache, eager_s=0.3, compiled_s=0.31, compile_s=0.0)
    choice = choose(config(precision="fp32"), tiny_model, num_clips=10**9, size=SIZE)
    assert choice.backend == "eager"
    assert "take eager 300000000 s, compile 310000000 s (measured" in choice.reason


def test_measurements_of_another_shape_do_not_count(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path
) -> None:
    remember(tiny_model, cache, precision="bf16", eager_s=0.3, compiled_s=0.31, compile_s=0.0)
    choice = choose(config(precision="fp32"), tiny_model, num_clips=10**9, size=SIZE)
    assert choice.backend == "compile"
    assert "(guessed)" in choice.reason


def test_a_guess_is_cautious(tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float]) -> None:
    assert choose(config(), tiny_model, num_clips=100, size=SIZE).backend == "eager"  # gains 15 s, costs 60 s
    assert choose(config(), tiny_model, num_clips=1000, size=SIZE).backend == "compile"


def test_without_a_compiler_it_is_eager(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqt_fast.network.compiled.why_not", lambda device, model: "there is no compiler")
    choice = choose(config(precision="fp32"), tiny_model, num_clips=10**9, size=SIZE)
    assert (choice.backend, choice.reason) == ("eager", "eager because there is no compiler")


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "{}"])
def test_a_damaged_cache_is_ignored(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path, text: str
) -> None:
    cache.mkdir()
    (cache / "tuning.json").write_text(text)
    assert "(guessed)" in choose(config(), tiny_model, num_clips=1000, size=SIZE).reason


def test_the_stop_watch_takes_the_best_and_leaves_out_the_first() -> None:
    backend = Fake("eager", "bf16")
    calls = []
    start = backend.start

    def counted(clips: Tensor) -> Started:
        calls.append((tuple(clips.shape), clips.dtype))
        return start(clips)

    backend.start = counted  # type: ignore[method-assign]
    assert 0 < module._seconds_a_clip(backend, 2, SIZE) < 1
    assert calls == [((2, 48, SIZE, SIZE), torch.bfloat16)] * 3


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def on_gpu(model: SqueezeTime, monkeypatch: pytest.MonkeyPatch, *, num_clips: int = 10**7, **options: Any) -> Choice:
    """Choose on a GPU of compute capability 9.0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    asked = config(**{"device": "cuda", "precision": "bf16", **options})
    with executing(lambda problem: None, architecture=90):
        return choose(asked, model, num_clips=num_clips, size=SIZE)


def measured(cache: Path, speeds: dict[str, float], family: str = "sm_90", precision: str = "bf16") -> None:
    """Make a file as ``sqt-fast tune`` writes it."""
    cache.mkdir()
    record = {"gpu": "NVIDIA H200", "tiles": {}, "network": {precision: speeds}}
    (cache / "kernels.json").write_text(json.dumps({family: record}))
    tuned.forget()


@pytest.mark.parametrize(
    ("speeds", "backend"),
    [
        ({"eager": 9e3, "compile": 2e4, "triton": 3e4}, "triton"),
        ({"eager": 9e3, "compile": 3e4, "triton": 2e4}, "compile"),
        ({"eager": 9e4, "compile": 3e4, "triton": 2e4}, "eager"),
        ({"eager": 9e3}, "eager"),
        ({"triton": 9e3, "of tomorrow": 9e9}, "triton"),
    ],
    ids=str,
)
def test_on_a_gpu_the_fastest_there_is_chosen(
    tiny_model: SqueezeTime, cache: Path, monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], backend: str
) -> None:
    measured(cache, speeds)
    choice = on_gpu(tiny_model, monkeypatch)
    assert choice.backend == backend
    assert choice.reason.startswith(f"{backend} because about {10**7} clips take {backend} ")
    assert choice.reason.endswith(" (by clips/s in bf16 on NVIDIA H200; sqt-fast tune measures here)")
    compiling_s = {"compile": 60, "triton": 20}
    for name, speed in speeds.items():
        seconds = f"{name} {compiling_s.get(name, 0) + 10**7 / speed:.0f} s"
        assert (seconds in choice.reason) == (name != "of tomorrow")


@pytest.mark.parametrize(
    "found", [{}, {"family": "sm_80"}, {"precision": "fp32"}], ids=["nothing", "other GPU", "fp32"]
)
def test_what_was_not_measured_on_this_family_is_eager(
    tiny_model: SqueezeTime, cache: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, str]
) -> None:
    if found:
        measured(cache, {"eager": 1.0, "triton": 9.0}, **found)
    monkeypatch.setattr(tuned, "COMMITTED", cache / "none.json")
    choice = on_gpu(tiny_model, monkeypatch)
    assert choice.backend == "eager"
    assert choice.reason == (
        "eager because nothing was measured in bf16 on GPUs of compute capability 9.0 "
        "(sqt-fast tune measures here, --backend triton tries it)"
    )


def test_a_network_that_the_kernels_cannot_run_takes_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(cache, {"eager": 9e3, "compile": 2e4, "triton": 3e4})
    odd = SqueezeTime(ModelConfig(depth=10, width=0.2, num_classes=7))
    choice = on_gpu(odd, monkeypatch)
    assert choice.backend == "compile"
    assert choice.reason.endswith("; not triton: the kernels need multiples of 16 channels, this network has 12")


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")])
def test_on_a_gpu_precision_goes_by_rule(
    tiny_model: SqueezeTime,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    precision: str,
) -> None:
    """Timed on two clips, the same GPU gave bf16 in one run and fp32 in the next."""
    monkeypatch.setattr(module, "_seconds_a_clip", lambda *args: pytest.fail("timed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    with executing(lambda problem: None, architecture=90):
        assert choose(config(device="cuda"), tiny_model, num_clips=10**7, size=SIZE).precision == precision


@pytest.mark.parametrize("asked", [{}, {"backend": "eager"}, {"precision": "fp32"}], ids=str)
def test_a_job_as_short_as_timing_is_not_timed(
    tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch, asked: dict[str, str]
) -> None:
    monkeypatch.setattr(module, "load_backend", lambda *args, **options: pytest.fail("a network was timed"))
    choice = choose(config(**asked), tiny_model, num_clips=module.TIMED_CLIPS, size=SIZE)
    assert (choice.backend, choice.precision) == ("eager", "fp32")
    assert choice.reason == "not measured, for that takes as long as the job (about 24 clips)"


@pytest.mark.parametrize(
    "kept",
    [{"eager_s": 1.0}, {"eager_s": 1.0, "compiled_s": 0.5, "compile_s": 1.0, "of tomorrow": 3}, "text", [1]],
    ids=str,
)
def test_what_another_version_kept_is_read_or_ignored(
    tiny_model: SqueezeTime, cache: Path, speeds: dict[tuple[str, str], float], kept: Any
) -> None:
    cache.mkdir()
    key = module._key(Choice("", "fp32", "cpu", 8, ""), tiny_model, SIZE)
    (cache / "tuning.json").write_text(json.dumps({key: kept}))
    known = "measured here before" in choose(config(precision="fp32"), tiny_model, num_clips=1000, size=SIZE).reason
    assert known == (isinstance(kept, dict) and len(kept) == 4)


def test_a_choice_of_another_version() -> None:
    fields = {"backend": "eager", "precision": "fp32", "device": "cpu", "batch_size": 4, "reason": "x"}
    assert Choice.of(fields | {"of tomorrow": 1}) == Choice(**fields)  # type: ignore[arg-type]
    assert Choice.of({"backend": "eager"}) is None


def test_a_short_job_is_not_compiled(tiny_model: SqueezeTime, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(cache, {"eager": 1e5, "compile": 2e5})
    choice = on_gpu(tiny_model, monkeypatch)
    assert choice.backend == "eager"
    assert "take eager 100 s, compile 110 s with 60 s of compiling (" in choice.reason


def test_compiling_must_pay_against_the_fastest_that_compiles_nothing(
    tiny_model: SqueezeTime, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against eager alone it would: 200 s for eager, 25 s and 60 of compiling, 50 s for triton and 20 of compiling."""
    measured(cache, {"eager": 5e4, "compile": 4e5, "triton": 2e5})
    assert on_gpu(tiny_model, monkeypatch).backend == "triton"


def test_kernels_that_were_compiled_here_before_cost_nothing(
    tiny_model: SqueezeTime, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten short videos on a fresh machine are labelled by eager before kernels would be compiled."""
    measured(cache, {"eager": 7e3, "triton": 1.6e4})
    choice = on_gpu(tiny_model, monkeypatch, num_clips=1000)
    assert choice.backend == "eager"
    assert "triton 20.1 s with 20 s of compiling" in choice.reason
    form = Form("triton", "cuda", "bf16", choice.batch_size, SIZE)
    keep_finding(FINDINGS, form.key(tiny_model), {"ratio": 1.0})
    choice = on_gpu(tiny_model, monkeypatch, num_clips=1000)
    assert choice.backend == "triton"
    assert "triton 0.0625 s, eager 0.143 s (" in choice.reason


# -- opening ----------------------------------------------------------------------------------------------------------

COMPILE = Choice("compile", "fp32", "cpu", 4, "why")


def test_a_backend_that_fails_is_replaced_only_if_it_may(
    tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, model: SqueezeTime, *, precision: str, **shape: Any) -> Fake:
        if name == "compile":
            raise BackendError("it does not work")
        return Fake(name, precision)

    monkeypatch.setattr(module, "load_backend", load)
    choice, backend = open_backend(COMPILE, tiny_model, size=SIZE, may_fall_back=True)
    assert choice == Choice("eager", "fp32", "cpu", 4, "it does not work; so eager")
    assert isinstance(backend, Fake)
    assert backend.name == "eager"
    with pytest.raises(BackendError, match="it does not work"):
        open_backend(COMPILE, tiny_model, size=SIZE, may_fall_back=False)


def test_what_compiling_gained_is_remembered(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path
) -> None:
    speeds["eager", "fp32"], speeds["compile", "fp32"] = 0.4, 0.5
    open_backend(Choice("compile", "fp32", "cpu", module.CPU_BATCH, ""), tiny_model, size=SIZE, may_fall_back=True)
    (entry,) = json.loads((cache / "tuning.json").read_text()).values()
    assert (entry["eager_s"], entry["compiled_s"]) == (0.4, 0.5)
    assert entry["compile_s"] >= 0
    assert choose(config(precision="fp32"), tiny_model, num_clips=10**9, size=SIZE).backend == "eager"


def test_a_cache_that_cannot_be_written_does_no_harm(
    tiny_model: SqueezeTime, speeds: dict[tuple[str, str], float], cache: Path
) -> None:
    cache.write_text("a file")
    choice, _ = open_backend(COMPILE, tiny_model, size=SIZE, may_fall_back=True)
    assert choice == COMPILE


def test_a_real_choice_runs(tiny_model: SqueezeTime) -> None:
    choice = choose(config(), tiny_model, num_clips=1, size=SIZE)
    assert (choice.backend, choice.device, choice.batch_size) == ("eager", "cpu", module.CPU_BATCH)
    _, backend = open_backend(choice, tiny_model, size=SIZE, may_fall_back=True)
    logits, _ = backend.run(torch.zeros((choice.batch_size, 48, SIZE, SIZE), dtype=backend.dtype))
    assert logits.isfinite().all()
