"""The kernel that goes into engines: its numbers, its code for every GPU family, and what TensorRT is told of it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sqt_fast.errors import BackendError
from sqt_fast.kernels import ctl_plugin
from sqt_fast.kernels.ctl_plugin import (
    DTYPES,
    PLUGIN,
    TACTICS,
    ctl_end,
    ctl_end_reference,
    register,
    without_scratch,
)
from tests.accuracy import Draw, assert_as_good, each_dtype
from tests.compile_kernels import ARCHITECTURES

PTX = """.visible .entry end(
	.param .u64 .ptr .global .align 1 end_param_0,
	.param .u32 end_param_1,
	.param .u64 .ptr .global .align 1 end_param_2
)
.reqntid 128
{
	ld.param.b64 	%rd1, [end_param_0];
	ld.param.b32 	%r1, [end_param_1];
	ret;
}
"""


@each_dtype
@pytest.mark.parametrize("relu", [False, True], ids=["as it is", "relu"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 16, 9, 7), (1, 8, 16, 16)], ids=str)
@pytest.mark.parametrize("tactic", range(1, len(TACTICS) + 1))
def test_it_is_the_end_of_a_ctl(
    kernel_device: str, dtype: torch.dtype, relu: bool, shape: tuple[int, ...], tactic: int
) -> None:
    draw = Draw(kernel_device, dtype)
    tensors = [draw.normal(*shape) for _ in range(3)]
    assert_as_good(ctl_end(*tensors, relu=relu, tactic=tactic), ctl_end_reference, tensors, relu=relu)


def test_any_layout_that_is_the_same_for_all(kernel_device: str) -> None:
    draw = Draw(kernel_device, torch.float32)
    tensors = [draw.normal(2, 8, 5, 6).to(memory_format=torch.channels_last) for _ in range(3)]
    merged = ctl_end(*tensors, relu=True)
    assert merged.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(merged, ctl_end_reference(*tensors, relu=True))


COMPILE = """
import sys
from sqt_fast.kernels.ctl_plugin import DTYPES, TACTICS, compiled
for dtype in DTYPES.values():
    for tactic in range(1, len(TACTICS) + 1):
        for relu in (False, True):
            kernel = compiled(dtype, relu=relu, tactic=tactic, capability=int(sys.argv[1]))
            print(kernel.ptx, end="//// ")
            print(kernel.name, kernel.threads, kernel.shared_bytes, "////")
"""


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_it_compiles_with_the_parameters_that_tensorrt_passes(capability: int, tmp_path: Path) -> None:
    """Three inputs, a size, an output; ptxas assembles what is left. In a process that is not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env=environment,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    texts, about = done.stdout.split("////")[:-1:2], done.stdout.split("////")[1::2]
    assert len(texts) == 2 * len(DTYPES) * len(TACTICS)
    for ptx, line in zip(texts, about, strict=True):
        name, threads, shared = line.split()
        parameters = ptx.partition(f".entry {name}(")[2].partition(")")[0]
        kinds = re.findall(r"\.param \.(\w+)", parameters)
        assert kinds == ["u64", "u64", "u64", "u32", "u64"]
        assert int(threads) in (128, 256)
        assert shared == "0"
    assemble(texts[0], capability, tmp_path)
    assemble(texts[-1], capability, tmp_path)


def assemble(ptx: str, capability: int, folder: Path) -> None:
    """Have ptxas, which comes with Triton, make a program of it."""
    from triton import knobs

    tool = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas
    (folder / "kernel.ptx").write_text(ptx)
    (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
    command = [tool.path, f"--gpu-name={target}", str(folder / "kernel.ptx"), "-o", str(folder / "kernel.cubin")]
    subprocess.run(command, check=True, capture_output=True)


def test_parameters_that_nobody_passes_are_taken_out() -> None:
    assert without_scratch(PTX, "end", keep=3).count(".param .") == 3
    kept = without_scratch(PTX, "end", keep=2)
    assert "end_param_2" not in kept
    assert kept.endswith(PTX.partition(")")[2])


@pytest.mark.parametrize(
    ("name", "keep", "said"),
    [("end", 1, "uses end_param_1, which TensorRT does not pass"), ("end", 4, "has 3 parameters, 4 are wanted"),
     ("other", 2, "has 0 parameters")],
)  # fmt: skip
def test_what_cannot_be_called_is_refused(name: str, keep: int, said: str) -> None:
    with pytest.raises(BackendError, match=f"plugin ctl: .*{said}"):
        without_scratch(PTX, name, keep=keep)


class Expression:
    """A size that is known when the engine runs."""

    def __init__(self, text: str) -> None:
        self.text = text


class FakePlugins:
    """Stands in for ``tensorrt.plugin``: keeps what is registered."""

    TensorDesc = KernelLaunchParams = SymExprs = SymInt32 = SimpleNamespace

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        for name in ("register", "autotune", "aot_impl"):
            setattr(self, name, self._decorator(name))

    def _decorator(self, name: str) -> Any:
        def of(plugin: str) -> Any:
            assert plugin == PLUGIN
            return lambda function: self.kept.setdefault(name, function)

        return of

    def AutoTuneCombination(self, dtypes: str, layouts: str, tactics: list[int]) -> tuple[str, str, list[int]]:
        return dtypes, layouts, tactics

    def cdiv(self, count: Expression, block: int) -> Expression:
        return Expression(f"cdiv({count.text}, {block})")

    def SymIntExprs(self, count: int) -> list[Any]:
        return [None] * count


def test_what_tensorrt_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins: Any = FakePlugins()
    plugins.SymInt32 = lambda count: ("i32", count.text)
    asked: list[dict[str, Any]] = []

    def compile_(dtype: str, **how: Any) -> ctl_plugin.Compiled:
        asked.append({"dtype": dtype, **how})
        return ctl_plugin.Compiled("end", "ptx", 256, 0)

    monkeypatch.setattr(ctl_plugin, "compiled", compile_)
    register(plugins, capability=90)
    tensor = SimpleNamespace(
        like=lambda: "as temporal",
        dtype=SimpleNamespace(name="HALF"),
        shape_expr=SimpleNamespace(numel=lambda: Expression("n")),
    )
    assert plugins.kept["register"](tensor, tensor, tensor, 1) == "as temporal"
    offers = plugins.kept["autotune"](tensor, tensor, tensor, 1, (tensor,))
    assert {(dtypes.split(", ")[0], layouts.split(", ")[0]) for dtypes, layouts, _ in offers} == {
        ("FP32", "LINEAR"), ("FP16", "LINEAR"), ("FP16", "HWC8"), ("BF16", "LINEAR"), ("BF16", "HWC8")
    }  # fmt: skip
    assert all(dtypes.count(",") == layouts.count(",") == 3 for dtypes, layouts, _ in offers)
    name, ptx, how, sizes = plugins.kept["aot_impl"](tensor, tensor, tensor, 1, (tensor,), 3)
    assert (name, ptx, how.grid_x.text, how.block_x, how.shared_mem) == ("end", b"ptx", "cdiv(n, 2048)", 256, 0)
    assert sizes == [("i32", "n")]
    assert plugins.kept["aot_impl"](tensor, tensor, tensor, 0, (tensor,), 0)[2].grid_x.text == "cdiv(n, 512)"
    assert asked == [
        {"dtype": "fp16", "relu": True, "tactic": 3, "capability": 90},
        {"dtype": "fp16", "relu": False, "tactic": 1, "capability": 90},
    ]
    annotations = plugins.kept["aot_impl"].__annotations__
    assert list(annotations) == ["temporal", "spatial", "gate", "relu", "outputs", "tactic", "return"]
    assert annotations["relu"] is annotations["tactic"] is int
