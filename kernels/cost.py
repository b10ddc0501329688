"""What tiles cost, estimated: enough to tell the few that are worth compiling and timing from the many that are not.

A kernel of products asks three things of a multiprocessor, and the slowest decides: its matrix unit, which also has to
read what it multiplies from shared memory; the L2 cache, which gives each multiprocessor some bytes a clock, however
often the same ones; and the time until loads arrive, which other programs and loads in flight hide. The numbers are
those of an H100; between tiles they decide the order, not the truth.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqt_fast.kernels.launch import SHARED_BYTES, Config

MULTIPROCESSORS = 132
# A clock and multiprocessor: multiply-adds of 16 bits, bytes of shared memory, bytes of L2; the last by what an H100
# took for 1x1 convolutions of many channels and for 7x7 ones of 16.
PRODUCTS, SHARED, L2 = 2048, 128, 40
# float32 is three TF32 products, each at half the rate.
FLOAT32_FACTOR = 6
# Clocks until a load arrives from L2, of the instructions of a step, and of a program's beginning and end.
LATENCY, STEP, PROGRAM = 700, 40, 1500
REGISTERS, THREADS = 65536, 2048  # of a multiprocessor
# What should differ between the tiles that are tried, the most important first.
VARIED = ("out_rows", "block_m", "block_n", "num_warps", "copy_bytes", "num_stages", "block_k")
# Registers of a thread for addresses, by the size of copies, and in all: beyond, the compiler spilled some on sm_90.
ADDRESSES, MOST_REGISTERS = {8: 112, 16: 80}, 232


@dataclass(frozen=True)
class Work:
    """What the tiles of a problem have to do. Elements are those of the problem's dtype.

    parts: samples, rows of a sample, columns, as these tiles share them. depth: of all products of a row and a column.
    shared_bytes: of a program. accumulators: sums that a tile holds at once; held_elements: what else it holds in
    registers. more_products, more_elements: of a row of a tile beside its products, as of what is chained behind;
    tile_elements: of a tile.
    """

    parts: tuple[int, int, int]
    depth: int
    shared_bytes: int
    itemsize: int
    accumulators: int = 1
    held_elements: int = 0
    more_products: int = 0
    more_elements: int = 0
    tile_elements: int = 0


def fill(config: Config, parts: tuple[int, int, int]) -> bool:
    """Return whether there are tiles of ``parts``, see ``Work``, for every multiprocessor of an H100."""
    return _num_programs(config, parts) >= MULTIPROCESSORS


def _num_programs(config: Config, parts: tuple[int, int, int]) -> int:
    samples, rows, columns = parts
    return samples * math.ceil(rows / config.block_m) * math.ceil(columns / config.block_n)


def clocks(config: Config, work: Work) -> float:
    """Return about how many clocks all programs take on an H100; infinity where registers or shared memory run out."""
    programs = _num_programs(config, work.parts)
    if not (together := _together(config, work)):
        return math.inf
    busy, alone = _program(config, work)
    waves = math.ceil(programs / (MULTIPROCESSORS * together))
    last = math.ceil((programs - (waves - 1) * MULTIPROCESSORS * together) / MULTIPROCESSORS)
    return (waves - 1) * max(together * busy, alone) + max(last * busy, alone)


def _program(config: Config, work: Work) -> tuple[float, float]:
    """Return the clocks for which a program keeps the busiest part of a multiprocessor busy, and what it takes alone.

    Its loop loads while it multiplies. What is chained behind waits for its loads, then multiplies.
    """
    m, n = config.block_m, config.block_n
    rate = PRODUCTS / (FLOAT32_FACTOR if work.itemsize == 4 else 1)
    products, chained = m * n * work.depth / rate, m * work.more_products / rate
    operands, more = (m + n) * work.depth, m * (n + work.more_elements) + work.tile_elements
    shared, loaded, more_loaded = (
        operands * work.itemsize / SHARED,
        operands * work.itemsize / L2,
        more * work.itemsize / L2,
    )
    wait = LATENCY / (config.num_stages - 1) if config.num_stages > 1 else 2 * LATENCY
    loop = work.depth / config.block_k * (STEP + wait) + max(products, shared, loaded)
    behind = work.more_products / (64 * config.block_n) * (STEP + LATENCY) + chained + more_loaded
    return max(products + chained, shared, loaded + more_loaded), PROGRAM + loop + behind


def _together(config: Config, work: Work) -> int:
    """Return how many programs fit on a multiprocessor at once."""
    threads, (m, n, k) = 32 * config.num_warps, config[:3]
    held = work.held_elements + (m + n) * k * (config.num_stages == 1)  # what waits in registers for its product
    used = work.accumulators * m * n + held * work.itemsize / 4
    registers = math.ceil((ADDRESSES[config.copy_bytes] + used / threads) / 8) * 8
    if registers > MOST_REGISTERS:
        return 0
    by_shared = SHARED_BYTES[90] // max(work.shared_bytes, 1024)
    return min(by_shared, REGISTERS // (threads * registers), THREADS // threads)


def promising(configs: Iterable[Config], work: Callable[[Config], Work], most: int = 8) -> list[Config]:
    """Return at most ``most`` configs: the cheapest with each value of each field, then the cheapest of the rest.

    So they differ in kind: the estimate tells little between neighbours, and nothing of what the L1 cache gives. Among
    equals, those come first that load as usual: past L1, three steps at once.
    """
    cost = {config: clocks(config, work(config)) for config in configs}
    ordered = sorted(cost, key=lambda config: (cost[config], -config.copy_bytes, abs(config.num_stages - 3), config))
    ordered = [config for config in ordered if cost[config] < math.inf] or ordered[:1]
    chosen = dict.fromkeys(ordered[:1])
    for field in VARIED:
        cheapest = {getattr(config, field): config for config in reversed(ordered)}
        chosen |= dict.fromkeys(sorted(cheapest.values(), key=ordered.index))
    return sorted([*chosen, *(config for config in ordered if config not in chosen)][:most])
