"""Every launch of whole networks, compiled for GPUs that are not here: no spills, within shared memory, tensor cores.

bfloat16, in which networks run, with the tiles that are used: all shapes for sm_80 and sm_90, and in the exhaustive run
for sm_100 and sm_120; of these otherwise, and of float16 and float32, the first and the last shape of every kernel.
What tuning tries is compiled for sm_90. ``python -m tests.compile_kernels`` does all of all.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sqt_fast.kernels.launch import SHARED_BYTES
from tests.compile_kernels import ARCHITECTURES

# What multiplies tiles on each generation.
PRODUCTS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync"}
WIDE = ("cp.async.cg.shared.global", "cp.async.cg.shared.global.L2::128B")  # always 16 bytes
NARROW = ("bilinear",)  # bytes that lie apart
FEW_ROWS = ("importance",)  # too few for what multiplies 64 at once
WITHOUT_PRODUCTS = ("bilinear", "downsample", "pool", "squeeze")


def compile_apart(folder: Path, *options: str) -> list[dict[str, Any]]:
    """Compile in a process that is not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.compile_kernels", str(folder / "results.json"), *options],
        env={**environment, "TRITON_CACHE_DIR": str(folder / "triton")},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return list(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compile once, whichever process of pytest-xdist comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = folder / "results.json"
        return list(json.loads(results.read_text())) if results.exists() else compile_apart(folder, "--quick")


def of(compiled: list[dict[str, Any]], architecture: int) -> list[dict[str, Any]]:
    found = [result for result in compiled if result["architecture"] == architecture]
    assert len(found) > (40 if architecture in (80, 90) else 10)  # or nothing was looked at
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_compile_without_spills(architecture: int, tmp_path: Path) -> None:
    found = compile_apart(tmp_path, "--architectures", str(architecture), "--dtypes", "bf16")
    assert len(found) > 40  # or nothing was looked at
    bad = [
        f"{r['name']} {r['config']}: {r['error'] or r['stack_bytes']}" for r in found if r["error"] or r["stack_bytes"]
    ]
    assert not bad


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_memory_suffices(compiled: list[dict[str, Any]], architecture: int) -> None:
    limit = SHARED_BYTES[architecture]
    assert [r["name"] for r in of(compiled, architecture) if r["shared_bytes"] > limit] == []


@pytest.mark.exhaustive
def test_shared_memory_suffices_for_all_that_tuning_tries(tmp_path: Path) -> None:
    tried = compile_apart(tmp_path, "--candidates", "--quick", "--architectures", "90", "--dtypes", "bf16", "fp32")
    assert len(tried) > 30  # or nothing was looked at
    assert [f"{r['name']} {r['config']}: {r['error']}" for r in tried if r["error"]] == []
    assert [f"{r['name']} {r['config']}" for r in tried if r["shared_bytes"] > SHARED_BYTES[90]] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_the_tensor_cores(compiled: list[dict[str, Any]], architecture: int) -> None:
    without = []
    for r in of(compiled, architecture):
        wanted = PRODUCTS[architecture]
        allowed = (wanted, "mma.sync") if r["name"].startswith(FEW_ROWS) else (wanted,)
        if not r["name"].startswith(WITHOUT_PRODUCTS) and not any(op.startswith(allowed) for op in r["instructions"]):
            without.append(f"{r['name']} {r['config']}")
    assert not without


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_maps_move_16_bytes_at_a_time(compiled: list[dict[str, Any]], architecture: int) -> None:
    narrow = [
        r["name"]
        for r in of(compiled, architecture)
        if not r["name"].startswith(NARROW) and not any(".v4." in op or op in WIDE for op in r["instructions"])
    ]
    assert not narrow


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frames_are_squeezed_16_bytes_at_a_time(compiled: list[dict[str, Any]], architecture: int) -> None:
    """Coming and going: the only byte that is loaded by itself says whether the clip is mirrored."""
    squeezes = [r["instructions"] for r in of(compiled, architecture) if r["name"].startswith("squeeze")]
    assert squeezes
    for found in squeezes:
        assert sum(n for op, n in found.items() if op.startswith("ld.global") and op.endswith("8")) <= 1
        assert any(op.startswith("ld.global") and ".v4." in op for op in found)
        assert {op for op in found if op.startswith("st.global")} == {"st.global.v4.b32"}


def test_every_kernel_and_dtype_is_there(compiled: list[dict[str, Any]]) -> None:
    kinds = {(r["name"].split()[0], r["dtype"]) for r in compiled}
    ops = ("conv", "downsample", "importance", "merge", "pointwise", "pool", "squeeze")
    assert kinds == {("bilinear", "bf16"), *((op, dtype) for op in ops for dtype in ("bf16", "fp16", "fp32"))}
