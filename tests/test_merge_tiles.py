"""Which tiles the merge is offered, and what they must do."""

import pytest
import torch

from sqt_fast.kernels.cost import clocks
from sqt_fast.kernels.launch import SHARED_BYTES, executing, product_bytes
from sqt_fast.kernels.merge_tiles import MergeTiles

Y = torch.empty((256, 56, 56, 64), dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize("architecture", [80, 90, 100, 120])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("channels", "columns", "columns3", "depth2"),
    [(64, 64, 0, 0), (64, 64, 256, 64), (128, 128, 512, 0), (512, 512, 0, 0), (16, 16, 0, 0)],
)
def test_what_is_offered_fits(
    channels: int, columns: int, columns3: int, depth2: int, dtype: torch.dtype, architecture: int
) -> None:
    """A closing needs all columns in one tile; float32 has none (``can_close``)."""
    if dtype == torch.float32 and columns3:
        pytest.skip("no closing in float32")
    tiles = MergeTiles(Y.to(dtype), channels, columns, columns3, depth2)
    with executing(lambda _: None, architecture=architecture):
        offered = {tiles.heuristic(), *tiles.candidates()}
        for config in offered:
            assert tiles.shared_bytes(config, dtype.itemsize) <= SHARED_BYTES[architecture]
            assert channels % config.block_k == 0
            if columns3:
                assert config.block_n >= columns
    assert len(offered) > 1


def test_a_closing_costs_more() -> None:
    alone, closing = MergeTiles(Y, 64, 64, 0, 0), MergeTiles(Y, 64, 64, 256, 0)
    wider = MergeTiles(Y, 64, 64, 256, 64)
    with executing(lambda _: None, architecture=90):
        config = alone.heuristic()
        costs = [clocks(config, tiles.work(config)) for tiles in (alone, closing, wider)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2]


def test_the_work_is_that_of_the_formula() -> None:
    """3x3 and 1x1 of y, the gate's 3x3 of 16 channels in steps of 64: ten times C, and 192."""
    tiles = MergeTiles(Y, 64, 64, 256, 64)
    with executing(lambda _: None, architecture=90):
        config = tiles.heuristic()
        work = tiles.work(config)
    assert work.parts == (1, 256 * 56 * 56, 64)
    assert work.depth == 640 + 192
    assert work.more_products == work.tile_elements == 256 * (64 + 64)
    assert work.shared_bytes >= product_bytes(config, 2)
