"""Which tiles a problem gets, and who carries it out."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sqt_fast.kernels import launch, tuned
from sqt_fast.kernels.launch import (
    SHARED_BYTES,
    Config,
    Problem,
    architecture,
    best_config,
    check,
    dtype_name,
    executing,
    fitting,
    launch_best,
    power_of_two_divisor,
    power_of_two_over,
    product_bytes,
    run,
)

HEURISTIC = Config(64, 32, 16)
X = torch.empty(1, dtype=torch.float16)
configs = st.builds(
    Config,
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([4, 8]),
    st.integers(2, 5),
)


class Recorder:
    """A kernel that is not launched and remembers with which tiles it should have been."""

    arg_names = ("out", "tiles", "BLOCK_M", "BLOCK_K", "BLOCK_N")

    def __init__(self) -> None:
        self.configs: list[Config] = []

    def problem(self, name: str = "made up", rows: int = 1024) -> Problem:
        out = torch.empty(rows, 96)
        parts = 2, rows // 2, 96
        return Problem("test", name, self, out, parts, lambda tiles: (out, tiles), HEURISTIC, lambda: [HEURISTIC])

    def __getitem__(self, grid: tuple[int, ...]) -> "Recorder":
        self.grid = grid
        return self

    def __call__(
        self, *, out: Tensor, tiles: int, BLOCK_M: int, BLOCK_K: int, BLOCK_N: int, num_warps: int, num_stages: int
    ) -> None:
        assert tiles == math.ceil(len(out) // 2 / BLOCK_M)
        assert self.grid == (2 * tiles * math.ceil(96 / BLOCK_N),)
        self.configs.append(Config(BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages))


@pytest.fixture(autouse=True)
def _nothing_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(tuned, "COMMITTED", tmp_path / "tuned.json")
    tuned.forget()
    yield
    tuned.forget()


def test_a_problem_is_launched_with_its_heuristic() -> None:
    recorder = Recorder()
    run(recorder.problem())
    assert recorder.configs == [HEURISTIC]


def test_a_problem_is_launched_with_its_tuned_tiles(tmp_path: Path) -> None:
    tiles = {"sm_86": {"tiles": {"test made up": {"10": [128, 64, 32, 8, 4]}}}}
    (tmp_path / "tuned.json").write_text(json.dumps(tiles))
    recorder = Recorder()
    with executing(launch_best, architecture=86):
        run(recorder.problem())
        run(recorder.problem("unknown"))
        assert best_config(recorder.problem()) == Config(128, 64, 32, 8, 4)
    with executing(launch_best, architecture=90):
        run(recorder.problem())
    assert recorder.configs == [Config(128, 64, 32, 8, 4), HEURISTIC, HEURISTIC]


def test_others_may_carry_problems_out() -> None:
    recorder, seen = Recorder(), list[str]()
    with executing(lambda problem: seen.append(problem.name)):
        run(recorder.problem("outer"))
        with executing(lambda problem: seen.append(problem.name.upper())):
            run(recorder.problem("inner"))
        run(recorder.problem("outer again"))
    assert seen == ["test outer", "TEST INNER", "test outer again"]
    assert recorder.configs == []
    run(recorder.problem())
    assert recorder.configs == [HEURISTIC]


def test_what_was_before_comes_back_behind_an_error() -> None:
    recorder, before = Recorder(), architecture()

    def fail(problem: Problem) -> None:
        raise RuntimeError(problem.name)

    with pytest.raises(RuntimeError, match="test made up"), executing(fail, architecture=80):
        run(recorder.problem())
    assert architecture() == before
    run(recorder.problem())
    assert recorder.configs == [HEURISTIC]


def test_the_architecture_may_be_pretended() -> None:
    before = architecture()
    with executing(launch_best, architecture=120):
        assert architecture() == 120
        with executing(launch_best, architecture=80):
            assert architecture() == 80
        assert architecture() == 120
    assert architecture() == before


def test_the_architecture_is_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))
    assert architecture() == 89
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert architecture() == 90


@given(
    config=configs,
    dtype=st.sampled_from([torch.float16, torch.float32]),
    arch=st.sampled_from(sorted(SHARED_BYTES)),
    data=st.data(),
)
def test_tiles_fit_into_shared_memory(config: Config, dtype: torch.dtype, arch: int, data: st.DataObject) -> None:
    extra_bytes, x = data.draw(st.integers(0, SHARED_BYTES[arch] // 4)), torch.empty(1, dtype=dtype)

    def needed(config: Config, itemsize: int) -> int:
        return product_bytes(config, itemsize) + extra_bytes

    with executing(launch_best, architecture=arch):
        fitted = fitting(config, x, needed)
        assert fitting(fitted, x, needed) == fitted
    assert needed(fitted, dtype.itemsize) <= SHARED_BYTES[arch] or fitted[2:5:2] == (16, 2), "nothing smaller is left"
    smallest = config[2:5:2] == (16, 2)  # which stays as it is, though it does not fit
    assert (fitted == config) == (smallest or needed(config, dtype.itemsize) <= SHARED_BYTES[arch])
    assert fitted[:2] == config[:2]
    assert fitted.num_warps == config.num_warps
    assert 2 <= fitted.num_stages <= config.num_stages
    assert 16 <= fitted.block_k <= config.block_k
    if fitted.block_k < config.block_k:
        assert fitted.num_stages == 2, "stages go first"


def test_a_product_keeps_its_operands_in_shared_memory() -> None:
    assert product_bytes(Config(128, 64, 32, 8, 3), 2) == 3 * (128 * 32 + 32 * 64) * 2
    assert product_bytes(Config(128, 64, 32, 8, 3), 4) == 4 * (128 * 32 + 32 * 64) * 4


def test_the_gpu_of_the_tensors_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def architecture(device: object) -> int:
        asked.append(device)
        return 90

    monkeypatch.setattr(launch, "architecture", architecture)
    fitting(HEURISTIC, torch.empty(1, device="meta"))
    assert asked == [torch.device("meta")]


@pytest.mark.parametrize(
    ("arch", "like"),
    [(75, 86), (84, 80), (88, 87), (101, 100), (130, 120)],
    ids=["older than all", "between", "between as well", "of a family", "newer than all"],
)
def test_gpus_that_are_not_listed_are_like_the_one_before(arch: int, like: int) -> None:
    assert arch not in SHARED_BYTES
    config = Config(256, 256, 128, 8, 5)
    with executing(launch_best, architecture=like):
        wanted = fitting(config, X)
    with executing(launch_best, architecture=arch):
        assert fitting(config, X) == wanted


@given(number=st.integers(1, 5000), most=st.sampled_from([16, 32, 64, 128]))
def test_power_of_two_divisor(number: int, most: int) -> None:
    powers = [2**i for i in range(13)]
    assert power_of_two_divisor(number, most) == max(p for p in powers if number % p == 0 and p <= most)


@given(number=st.integers(1, 5000), least=st.sampled_from([1, 16, 64]))
def test_power_of_two_over(number: int, least: int) -> None:
    assert power_of_two_over(number, least) == min(p for p in (2**i for i in range(14)) if p >= max(number, least))


def test_names_of_dtypes() -> None:
    names = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
    assert {dtype: dtype_name(dtype) for dtype in names} == names
    with pytest.raises(ValueError, match=r"tensors of torch\.uint8: give one of torch\.float32, torch\.float16"):
        dtype_name(torch.uint8)


def test_a_tensor_as_it_should_be() -> None:
    x = torch.zeros(2, 3)
    check("x", x, (2, 3), torch.float32, x)
    check("x", x, x.shape, torch.float32, x)
    check("x", torch.zeros(0, 3), (0, 3), torch.float32, x)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(3, 2), r"thing of shape \(3, 2\): give \(2, 3\)"),
        (torch.zeros(2, 3, 1), r"thing of shape \(2, 3, 1\): give \(2, 3\)"),
        (torch.zeros(2, 3).half(), r"thing of torch\.float16: give torch\.float32"),
        (torch.zeros(2, 3, device="meta"), r"thing on meta: move it to cpu"),
        (torch.zeros(3, 2).mT, r"thing with strides \(1, 2\): call contiguous\(\) first"),
        (torch.zeros(2, 6)[:, ::2], r"thing with strides \(6, 2\): call contiguous\(\) first"),
    ],
    ids=["shape", "dimensions", "dtype", "device", "transposed", "every second"],
)
def test_tensors_that_are_refused(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check("thing", tensor, (2, 3), torch.float32, torch.zeros(1))


def test_a_launch_hands_on_what_it_holds() -> None:
    recorder = Recorder()
    launched = run(recorder.problem())
    assert launched.args["out"].shape == (1024, 96)
    launched()
    assert recorder.configs == [HEURISTIC] * 2


def test_where_nobody_launches_the_launch_is_the_heuristics() -> None:
    recorder = Recorder()
    with executing(lambda _: None):
        launched = run(recorder.problem())
    assert (launched.args["BLOCK_M"], launched.args["BLOCK_K"]) == (HEURISTIC.block_m, HEURISTIC.block_k)
    assert recorder.configs == []
