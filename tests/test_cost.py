"""The estimate of what tiles cost: it tells apart what an H100 told apart, and chooses tiles that differ in kind."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.kernels import conv, merge_tiles, pointwise
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
    """Of convolutions, with more rows: most of those tried share rows of a map, which it was not offered."""
    problem = problems()[name]
    with executing(lambda _: None, architecture=90):
        tried = {problem.heuristic, *problem.candidates()}
    alike = [config for config in tried if config[1:4] == found[1:4] and config.out_rows == 1]
    assert alike
    assert "conv" in name or found[0] in {config.block_m for config in alike}


# Microseconds on that H100, of tiles that it was given: kernels whose limit is not memory itself.
MEASURED = {
    "conv bf16 7x7/1 c=16 n=16 r=3136": (Config(128, 16, 64, 4, 3), 183),
    "conv bf16 3x3/1 c=64 n=16 r=3136 importance position": (Config(64, 16, 64, 4, 3), 148),
    "merge bf16 c=64 n=64 n3=256+64": (Config(128, 64, 64, 4, 3), 550),
    "merge bf16 c=64 n=64 n3=256+0 residual": (Config(128, 64, 64, 8, 3, 8), 624),
    "merge bf16 c=128 n=128 n3=512+256": (Config(128, 128, 64, 8, 3), 597),
    "merge bf16 c=128 n=128 n3=512+0 residual": (Config(128, 128, 64, 8, 3), 421),
    "merge bf16 c=256 n=256": (Config(128, 128, 64, 8, 3), 171),
    "merge bf16 c=512 n=512": (Config(128, 128, 64, 8, 3), 145),
    "pointwise bf16 k=1024+0 n=256 sums r=196": (Config(128, 128, 64, 8, 3), 73),
    "pointwise bf16 k=2048+0 n=512 sums r=49": (Config(64, 128, 64, 4, 3), 69),
    "pointwise bf16 k=512+1024 n=2048": (Config(128, 128, 64, 8, 3), 142),
    "pointwise bf16 k=256+512 n=1024": (Config(128, 128, 64, 8, 3), 163),
}


def estimates(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the microseconds of ``MEASURED`` as estimated."""
    seen: list[Callable[[Config], Work]] = []
    found: dict[str, float] = {}

    def listen(configs: Iterable[Config], work: Callable[[Config], Work], most: int = 8) -> list[Config]:
        seen.append(work)
        return list(configs)[:most]

    for module in (conv, merge_tiles, pointwise):
        monkeypatch.setattr(module, "promising", listen)
    for name, problem in problems().items():
        if name in MEASURED:
            with executing(lambda _: None, architecture=90):
                problem.candidates()
                found[name] = 1e6 * clocks(MEASURED[name][0], seen[-1](MEASURED[name][0])) / HERTZ
    return found


def test_the_estimate_is_near_what_an_h100_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a factor of 1.7, where the slowest takes 9 times as long as the fastest; and most in the right order."""
    estimated = estimates(monkeypatch)
    assert estimated.keys() == MEASURED.keys()
    for name, (_, us) in MEASURED.items():
        assert us / 1.7 < estimated[name] < 1.7 * us, name
    pairs = [(a, b) for a in MEASURED for b in MEASURED if MEASURED[a][1] > 1.3 * MEASURED[b][1]]
    right = sum(estimated[a] > estimated[b] for a, b in pairs)
    assert right / len(pairs) > 0.85


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
