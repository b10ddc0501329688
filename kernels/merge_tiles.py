"""Which tiles suit the merge of ``kernels/ctl_merge.py``."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sqt_fast.kernels.cost import Work, fill, promising
from sqt_fast.kernels.launch import (
    Config,
    architecture,
    fitting,
    power_of_two_divisor,
    power_of_two_over,
    product_bytes,
)


@dataclass(frozen=True)
class MergeTiles:
    """Which tiles suit a merge of ``channels`` of y to ``columns``. columns3: of a closing, 0: none; depth2: of x2."""

    y: Tensor
    channels: int
    columns: int
    columns3: int
    depth2: int

    def heuristic(self) -> Config:
        """128 rows and up to 128 columns; all of z in one tile where the closing follows.

        4 warps and copies of 16 bytes for up to 64 columns, found on an H100, bf16, 256 clips: 64 channels with the
        closing and its second operand took 550 us, and 724 with 8 warps. Where single warps multiply, 4 would spill.
        """
        itemsize, y = self.y.element_size(), self.y
        block_m, block_n = (128, 128) if itemsize == 2 else (64, 64)
        block_n = min(power_of_two_over(self.columns), block_n)
        # With a closing and steps of 64, 8 bytes a thread are spilled on sm_100 (Triton 3.6; 3.7 in one case).
        deepest = 32 if self.columns3 and 100 <= architecture(y.device) < 120 else 128 // itemsize
        block_k = power_of_two_divisor(self.channels | self.depth2, deepest)
        narrow = block_n <= 64
        # Addresses of small copies take registers that wider tiles have not.
        config = Config(block_m, block_n, block_k, 8, 3, copy_bytes=8 if narrow else 16)
        if narrow and itemsize == 2 and _multiplies_in_groups(y.device):
            config = config._replace(num_warps=4, copy_bytes=16)
        if itemsize == 2 and not fill(config, self.parts):  # few clips: smaller tiles for more of the GPU
            block_n = block_n if self.columns3 else min(block_n, 64)
            config = config._replace(block_m=64, block_n=block_n, num_warps=4, copy_bytes=16)
        return fitting(config, y, self.shared_bytes)

    def candidates(self) -> list[Config]:
        """The best 8 of 64 to 256 rows and columns, 4 or 8 warps, 3 or 4 loads in flight, through L1 or not."""
        widest = power_of_two_over(self.columns)
        block_k = power_of_two_divisor(self.channels | self.depth2, 128 // self.y.element_size())
        tiles = [(64, 64), (128, 64), (256, 64), (64, 128), (128, 128), (256, 128), (128, 256), (64, 256)]
        cut = {(m, min(n, widest)) for m, n in tiles if not self.columns3 or n >= widest}
        configs = {
            fitting(Config(m, n, block_k, warps, stages, copy_bytes), self.y, self.shared_bytes)
            for m, n in cut
            for warps in (4, 8)
            for stages in (3, 4)
            for copy_bytes in (8, 16)
            if 16 <= m * n // (32 * warps) <= 128
        }
        return promising(configs, self.work)

    @property
    def parts(self) -> tuple[int, int, int]:
        """Rows are pixels of all samples."""
        return 1, math.prod(self.y.shape[:3]), self.columns

    def work(self, config: Config) -> Work:
        """Return what a tile has to do: 3x3 and 1x1 of y, the gate in three steps of 64, and the closing."""
        itemsize = self.y.element_size()
        depth, shared = 10 * self.channels + 3 * 64, self.shared_bytes(config, itemsize)
        inner = self.columns + self.depth2
        return Work(
            self.parts,
            depth,
            shared,
            itemsize,
            accumulators=2,
            more_products=self.columns3 * inner,
            more_elements=self.columns3 * (2 + self.depth2 // 64),
            tile_elements=self.columns3 * inner,
        )

    def shared_bytes(self, config: Config, itemsize: int) -> int:
        """Return what the greediest of the loops needs, at most; test_compile.py holds it against the compiler.

        In float32 the gated product has a tile of its own. The loop of the closing loads w3 and, where there are some,
        x2 and w2; groups of warps read z, too, from shared memory, or leave a tile of what goes out there.
        """
        m, n, k, stages = config.block_m, config.block_n, config.block_k, config.num_stages
        needed = product_bytes(config, itemsize) + (m * k * itemsize if itemsize == 4 else 0)
        if not self.columns3:
            return needed
        a_stage = n * 64 + ((m + 64) * k if self.depth2 else 0)
        z = max(m * n, 128 * 64) if _multiplies_in_groups(self.y.device) else 0
        return max(needed, (stages * a_stage + z) * itemsize)


def _multiplies_in_groups(device: torch.device) -> bool:
    """Return whether this GPU's products are those of groups of warps (wgmma, tcgen05), not of single ones."""
    return 90 <= architecture(device) < 120
