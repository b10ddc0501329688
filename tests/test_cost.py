"""The estimate of what tiles cost: it tells apart what an H100 told apart, and chooses tiles that differ in kind."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.kernels.cost import VARIED, Work, clocks, promising
from sqt_fast.kernels.launch import Config, Problem, executing, product_bytes
from tests.compile_kernels import network_problems

HERTZ = 1.755e9

configs = st.builds(
    Config,
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 64, 128, 256]),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([4, 8]),
    st.integers(1, 4),
    st.sampled_from([8, 16]),
    st.sampled_from([1, 2, 4]),
)


def work(config: Config, rows: int = 100_000, columns: int = 256, depth: int = 1024) -> Work:
    return Work((1, rows, columns), depth, product_bytes(config, 2), 2)


def problems() -> dict[str, Problem]:
    """Return those of the network of depth 50, bf16, 256 clips, on Hopper."""
    return {problem.name: problem for problem in network_problems(90, torch.bfloat16)}


# What tuning found on an H100, 256 clips (docs/experiments.md), one row of a map at once.
FOUND = {
    "conv bf16 3x3/1 c=64 n=16 r=3136 importance position": (64, 16, 64, 4),
    "conv bf16 7x7/1 c=16 n=16 r=3136": (128, 16, 64, 4),
    "merge bf16 c=64 n=64 n3=256+64": (128, 64, 64, 4),
    "pointwise bf16 k=256+0 n=64 sums r=3136": (128, 64, 64, 4),
}


@pytest.mark.parametrize(("name", "found"), FOUND.items(), ids=FOUND)
def test_tiles_like_those_that_an_h100_chose_are_tried(name: str, found: tuple[int, ...]) -> None:
    """Or tiles that share more rows of a map, which it was not offered."""
    problem = problems()[name]
    with executing(lambda _: None, architecture=90):
        tried = {problem.heuristic, *problem.candidates()}
    alike = [config for config in tried if config[1:4] == found[1:4] and config.out_rows == 1]
    assert alike
    assert any(abs(math.log2(config.block_m / found[0])) <= 1 for config in alike)


# Microseconds on that H100.
MEASURED = {
    "conv bf16 7x7/1 c=16 n=16 r=3136": (Config(128, 16, 64, 4, 3), 183),
    "conv bf16 3x3/1 c=64 n=16 r=3136 importance position": (Config(64, 16, 64, 4, 3), 148),
    "pointwise bf16 k=1024+0 n=256 sums r=196": (Config(128, 128, 64, 8, 3), 73),
}


@pytest.mark.parametrize(("name", "tiles", "us"), [(name, *value) for name, value in MEASURED.items()], ids=MEASURED)
def test_the_estimate_is_near_what_an_h100_took(name: str, tiles: Config, us: float) -> None:
    problem = problems()[name]
    samples, rows, columns = problem.parts
    depths = {"7x7": 7 * 128, "3x3": 3 * 192, "k=1024": 1024}
    depth = next(depth for part, depth in depths.items() if part in name)
    estimate = clocks(tiles, Work((samples, rows, columns), depth, product_bytes(tiles, 2), 2)) / HERTZ
    assert 0.7 * us < 1e6 * estimate < 1.4 * us


@given(config=configs, rows=st.integers(1, 10**7), columns=st.integers(1, 4096), depth=st.integers(1, 10**4))
def test_more_work_never_costs_less(config: Config, rows: int, columns: int, depth: int) -> None:
    given = work(config, rows, columns, depth)
    cost = clocks(config, given)
    assert cost > 0
    for more in (
        replace(given, parts=(2, rows, columns)),
        replace(given, depth=depth + 64),
        replace(given, more_products=1000),
        replace(given, more_elements=100),
        replace(given, tile_elements=1000),
    ):
        assert clocks(config, more) >= cost * (1 - 1e-9)


def test_what_does_not_fit_costs_infinitely_much() -> None:
    large = Config(256, 256, 64, 4, 3)
    assert clocks(large, work(large)) == math.inf
    small = Config(64, 64, 64, 4, 3)
    assert clocks(small, replace(work(small), shared_bytes=240_000)) == math.inf
    assert clocks(small, work(small)) < math.inf


@given(found=st.sets(configs, min_size=1, max_size=60), most=st.integers(1, 10))
def test_few_are_chosen_the_cheapest_among_them(found: set[Config], most: int) -> None:
    cost = {config: clocks(config, work(config)) for config in found}
    fitting = [config for config in found if cost[config] < math.inf]
    chosen = promising(found, work, most)
    assert len(set(chosen)) == len(chosen) == max(1, min(most, len(fitting)))
    assert set(chosen) <= found
    assert min(cost[config] for config in chosen) == min(cost.values())
    if fitting:
        assert set(chosen) <= set(fitting)


@given(found=st.sets(configs, min_size=1, max_size=60))
def test_each_value_of_the_most_important_field_is_tried(found: set[Config]) -> None:
    fitting = [config for config in found if clocks(config, work(config)) < math.inf]
    field = VARIED[0]
    chosen = {getattr(config, field) for config in promising(found, work)}
    assert chosen >= {getattr(config, field) for config in fitting}


def test_tuning_tries_few() -> None:
    """At most nine of every problem, and no more than 320 in all for the network of depth 50."""
    with executing(lambda _: None, architecture=90):
        numbers = [len({problem.heuristic, *problem.candidates()}) for problem in problems().values()]
    assert max(numbers) <= 9
    assert sum(numbers) <= 320
