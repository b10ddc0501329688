"""sqt-fast tune: the network is tuned as it runs, its speed is kept, and what cannot be is one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from sqt_fast.cli import main
from sqt_fast.errors import BackendError, ConfigError, InterruptedRunError
from sqt_fast.files import tuned_file
from sqt_fast.kernels import tuned
from sqt_fast.kernels.launch import Config, Launch, Problem, best_config, executing
from sqt_fast.network.backends import InferenceModel
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import SqueezeTime
from sqt_fast.tuning import tune as module
from sqt_fast.tuning.tune import BEFORE, Gpu, TuneConfig, Tuned, Tuner, tune, tune_on
from tests.fake_gpu import GPU, FakeStopwatch

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def said() -> list[str]:
    return []


# -- the network ------------------------------------------------------------------------------------------------------

TORCH_COMPILE = pytest.mark.filterwarnings("ignore")  # what torch says of itself while it compiles
TINY = TuneConfig(precisions=("fp32",), batch_sizes=(1,), size=32, quick=True)


@pytest.fixture
def tiny_network(tiny_model: SqueezeTime, monkeypatch: pytest.MonkeyPatch) -> SqueezeTime:
    """The tiny network for every name of weights, and one candidate a problem."""
    monkeypatch.setattr(module, "load_weights", lambda name: SimpleNamespace(model=tiny_model))
    monkeypatch.setattr(module, "QUICK_CANDIDATES", 1)
    return tiny_model


def by_rows(launch: Launch) -> float:
    """Few rows are fast."""
    return float(launch.args["BLOCK_M"])


@pytest.mark.exhaustive
@TORCH_COMPILE
def test_the_network_is_tuned_as_it_runs(tiny_network: SqueezeTime, kernel_device: str, said: list[str]) -> None:
    watch = FakeStopwatch(by_rows)
    watch.speeds = [10.0, 20.0, 30.0, BackendError("no compiler here")]
    result = tune_on(Gpu(kernel_device, GPU, 90, watch), TINY, said.append)
    assert result == Tuned(tuned_file(), GPU, len(said) - 5, {"fp32": {"eager": 10, BEFORE: 20, "triton": 30}})
    assert tuned.network_speeds(90, "fp32") == ({"eager": 10.0, "triton": 30.0}, GPU)
    assert said[0] == f"fp32, 1 clips: {result.num_problems} problems"
    assert said[-1] == "fp32, 1 clips, compile: not measured (no compiler here)"
    assert not any("wrong" in line or "failed" in line for line in said)
    assert "fp32 triton: 30 clips/s" in result.lines()

    network = FusedNetwork(tiny_network, device=kernel_device, dtype=torch.float32)
    clips = torch.randn(1, 48, 32, 32, device=kernel_device)
    used: list[tuple[Problem, Config]] = []

    def launch_best(problem: Problem) -> None:
        used.append((problem, best_config(problem)))
        problem.launch(used[-1][1])()

    with torch.no_grad(), executing(launch_best, architecture=90):
        logits, _ = network(clips)
    assert any(config != problem.heuristic for problem, config in used)
    eager = InferenceModel(tiny_network, "eager", device=kernel_device, precision="fp32").logits(clips)
    torch.testing.assert_close(logits, eager, rtol=1e-2, atol=1e-2 * float(eager.abs().max()))


def test_an_interrupted_run_says_where_what_it_found_is(
    tiny_network: SqueezeTime, kernel_device: str, said: list[str], tmp_path: Path
) -> None:
    watch = FakeStopwatch(lambda launch: KeyboardInterrupt() if "PAD" in launch.args else by_rows(launch))
    config = replace(TINY, output=tmp_path / "sub" / "t.json")
    message = r"stopped: 0 problems were tuned and are kept in .*t\.json; add --resume to go on"
    with pytest.raises(InterruptedRunError, match=message):
        tune_on(Gpu(kernel_device, GPU, 90, watch), config, said.append)
    assert (tmp_path / "sub" / "t.json").exists()


@TORCH_COMPILE
def test_batches_that_do_not_fit_are_left_out(
    tiny_network: SqueezeTime, kernel_device: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tuner, problem: Problem) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Tuner, "_tune", full)
    watch = FakeStopwatch(by_rows)
    full_gpu = torch.OutOfMemoryError("CUDA out of memory")
    watch.speeds = [1.0, 1.0, full_gpu, 0.5, full_gpu, full_gpu]
    result = tune_on(Gpu(kernel_device, GPU, 90, watch), replace(TINY, batch_sizes=(1, 3)), said.append)
    assert result.num_problems == 0
    assert said[1] == "fp32, 3 clips: more than fits in memory, left out"
    assert said[3] == "fp32, 1 clips: more than fits in memory, left out"
    tried = [line.rpartition(":")[0] for line in said[-4:]]
    assert tried == [f"fp32, {size} clips, {name}" for name in ("triton", "compile") for size in (3, 1)]
    assert set(result.clips_per_s["fp32"]) == {"eager", BEFORE, "triton"}  # triton's of the largest batch that ran


@pytest.mark.needs_cuda
@TORCH_COMPILE
def test_a_gpu_is_tuned(tiny_network: SqueezeTime, said: list[str]) -> None:
    torch.use_deterministic_algorithms(False)
    result = tune(replace(TINY, precisions=("bf16", "fp32")), said.append)
    assert result.num_problems > 20
    assert not any("wrong" in line or "failed ->" in line for line in said), said
    assert set(result.clips_per_s["bf16"]) >= {"eager", BEFORE, "triton"}, said


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "--device cpu: tiles are tuned on a GPU; use cuda or cuda:N"),
        ({"precisions": ("int8",)}, "--precision int8: no such precision; use fp32, bf16, fp16"),
        ({"precisions": ()}, "--precision: give at least one"),
        ({"batch_sizes": ()}, "--batch-size: give at least one"),
        ({"batch_sizes": (8, 0)}, "--batch-size 0: must be more than 0"),
        ({"budget_s": 0.0}, "--budget 0: must be more than 0"),
        ({"budget_s": float("nan")}, "--budget nan: must be more than 0"),
    ],
    ids=str,
)
def test_what_cannot_be_tuned(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TuneConfig(**options)


def sqt(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["tune", *arguments])


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = sqt()
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == ("sqt-fast: --device cuda: torch sees no CUDA GPU; run this where the GPU to tune for is\n")
    assert not empty_cache.exists()


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert "compute capability 8.0 (Ampere) or newer, Tesla T4 has 7.5; choose another" in sqt().stderr


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TuneConfig] = []

    def fake(config: TuneConfig, say: Callable[[str], None]) -> Tuned:
        asked.append(config)
        say("at work")
        return Tuned(Path("t.json"), GPU, 3, {"bf16": {"eager": 1000.4}})

    monkeypatch.setattr(module, "tune", fake)
    result = sqt()
    assert (result.stdout, result.stderr) == (
        f"3 problems tuned on {GPU}, kept in t.json\nbf16 eager: 1000 clips/s\n",
        "at work\n",
    )
    arguments = "--device cuda:1 --precision fp16 --precision bf16 --batch-size 4 --weights hmdb51 --out x.json"
    assert sqt(*arguments.split(), "--budget", "60", "--quick", "--resume").exit_code == 0
    assert asked == [
        TuneConfig(),
        TuneConfig("cuda:1", ("fp16", "bf16"), (4,), "hmdb51", 224, Path("x.json"), 60.0, quick=True, resume=True),
    ]
