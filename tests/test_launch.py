"""Which tiles a problem gets, and who carries it out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.kernels import launch, tuned
from sqt_fast.kernels.launch import (
    SHARED_BYTES,
    Config,
    Launch,
    Problem,
    all_fitting,
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
    shared_bytes,
)

HEURISTIC = Config(64, 32, 16)
configs = st.builds(
    Config,
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([4, 8]),
    st.integers(2, 5),
)


class Recorder:
    """Launches nothing and remembers what it should have."""

    def __init__(self) -> None:
        self.configs: list[Config] = []

    def problem(self, name: str = "made up", rows: int = 1024) -> Problem:
        return Problem("test", name, rows, 0, 0, HEURISTIC, lambda: [HEURISTIC], self.launch)

    def launch(self, config: Config) -> Launch:
        return Launch(self, (3,), {"config": config}, config.num_warps, config.num_stages)

    def __getitem__(self, grid: tuple[int, ...]) -> "Recorder":
        assert grid == (3,)
        return self

    def __call__(self, *, config: Config, num_warps: int, num_stages: int) -> None:
        assert (num_warps, num_stages) == (config.num_warps, config.num_stages)
        self.configs.append(config)


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


@given(config=configs, itemsize=st.sampled_from([2, 4]), arch=st.sampled_from(sorted(SHARED_BYTES)), data=st.data())
def test_tiles_fit_into_shared_memory(config: Config, itemsize: int, arch: int, data: st.DataObject) -> None:
    extra_bytes = data.draw(st.integers(0, SHARED_BYTES[arch] // 3))

    def needed(config: Config) -> int:
        return product_bytes(config, itemsize) + extra_bytes

    with executing(launch_best, architecture=arch):
        fitted = fitting(config, needed, None)
        assert fitting(fitted, needed, None) == fitted
        assert all_fitting([config, fitted, fitted], needed, None) == sorted(
            {each for each in (config, fitted) if needed(each) <= SHARED_BYTES[arch]}
        )
    assert needed(fitted) <= SHARED_BYTES[arch]
    assert (fitted == config) == (needed(config) <= SHARED_BYTES[arch])
    assert fitted[:2] == config[:2]
    assert fitted.num_warps == config.num_warps
    assert 2 <= fitted.num_stages <= config.num_stages
    assert 16 <= fitted.block_k <= config.block_k
    if fitted.block_k < config.block_k:
        assert fitted.num_stages == 2, "stages go first"


def test_bytes_of_a_product_as_compiled_for_an_h100() -> None:
    """What Triton 3.7 asked for (metadata.shared of conv and pointwise)."""
    assert product_bytes(Config(128, 128, 64, 8, 3), 2) == 98304
    assert product_bytes(Config(128, 128, 32, 8, 4), 4) == 131072
    assert product_bytes(Config(64, 64, 32, 4, 2), 4) == 32768


def test_room_is_that_of_the_tensors_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the current one."""
    capabilities = {None: (8, 6), torch.device("cuda:1"): (9, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[device])
    assert shared_bytes(torch.device("cuda:1")) == SHARED_BYTES[90]
    assert shared_bytes(None) == SHARED_BYTES[86]


@pytest.mark.parametrize(
    ("arch", "like"),
    [(75, 86), (84, 80), (88, 87), (101, 100), (130, 120)],
    ids=["older than all", "between", "between as well", "of a family", "newer than all"],
)
def test_gpus_that_are_not_listed_are_like_the_one_before(arch: int, like: int) -> None:
    assert arch not in SHARED_BYTES
    with executing(launch_best, architecture=arch):
        assert shared_bytes(None) == SHARED_BYTES[like]


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
    launch.Launch(recorder, (3,), {"config": Config(1, 2, 3, 8, 5)}, 8, 5)()
    assert recorder.configs == [Config(1, 2, 3, 8, 5)]
