"""What tuning will try is compiled in processes without a GPU, and found by the process that has one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sqt_fast.kernels.launch import Config, Problem, executing
from sqt_fast.kernels.pointwise import pointwise
from sqt_fast.network.precompile import Specialisation, precompile, specialisations

# Kernels are interpreted where tests run: they are compiled in a process of its own.
SCRIPT = """
import json, sys
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from sqt_fast.kernels.launch import Config, executing
from sqt_fast.kernels.pointwise import pointwise
from sqt_fast.network.fused import FusedNetwork
from sqt_fast.network.model import ModelConfig, SqueezeTime
from sqt_fast.network.precompile import precompile, specialisations

class Driver:
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

triton.runtime.driver.set_active(Driver())
cache, launches = Path(sys.argv[1]), []

def note(problem):
    tiles = Config(64, 64, 32), Config(64, 64, 16), Config(64, 64, 32)
    launches.extend(problem.launch(config) for config in tiles)

x, w = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((2, 128, 64), (64, 64)))
with executing(note, architecture=90):
    for _ in range(2):
        pointwise(x, w, torch.empty(64, device="meta"))
wanted = specialisations(launches)
broken = wanted[0]._replace(data=wanted[0].data.replace('"num_warps": 4', '"num_warps": 3'))
before = list(cache.rglob("*.cubin"))
failed = precompile([*wanted, broken, wanted[0]._replace(module="no.such")], 2)
made = list(cache.rglob("*.cubin"))
compiled = [launch.compiled() for launch in launches]
after = len(list(cache.rglob("*.cubin")))
# The tiny network, as ``compile_ahead`` of a backend does it before its first batch.
with torch.device("meta"):
    model = SqueezeTime(ModelConfig(depth=10, width=0.25, num_classes=7, pos_dim=(8, 4, 2, 2))).eval()
network = FusedNetwork(model, device="meta", dtype=torch.bfloat16)
with executing(lambda problem: None, architecture=90):
    network.compile_ahead((4, 48, 32, 32))
    of_network = []
    with executing(lambda problem: of_network.append(problem.launch(problem.heuristic)), architecture=90):
        network(torch.empty(4, 48, 32, 32, dtype=torch.bfloat16, device="meta"))
ahead = len(list(cache.rglob("*.cubin"))) - len(made)
for launch in of_network:
    launch.compiled()
print(json.dumps({
    "ahead": ahead, "of_network": len(of_network), "needed": len(list(cache.rglob("*.cubin"))) - len(made),
    "launches": len(launches), "wanted": len(wanted), "failed": failed, "before": len(before), "made": len(made),
    "after": after, "left": len(specialisations(launches)),
    "targets": sorted({kernel.metadata.target.arch for kernel in compiled}),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    cache = tmp_path_factory.mktemp("triton")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(cache)],
        env=env | {"TRITON_CACHE_DIR": str(cache)},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def test_each_is_compiled_once_for_the_gpu_that_asked(found: dict[str, object]) -> None:
    assert (found["launches"], found["wanted"]) == (6, 2)
    assert (found["before"], found["made"]) == (0, 2)
    assert found["targets"] == [90]


def test_the_process_that_launches_finds_them(found: dict[str, object]) -> None:
    assert found["after"] == found["made"], "what was compiled ahead was compiled again"
    assert found["left"] == 0


def test_what_cannot_be_compiled_is_counted_and_costs_nothing_else(found: dict[str, object]) -> None:
    assert found["failed"] == 2


def test_a_whole_network_is_compiled_ahead(found: dict[str, object]) -> None:
    """All that it launches: nothing is left to compile when it runs."""
    assert 10 < int(str(found["ahead"])) <= int(str(found["of_network"]))
    assert found["needed"] == found["ahead"]


def test_in_the_interpreter_there_is_nothing_to_compile() -> None:
    launches = []

    def note(problem: Problem) -> None:
        launches.append(problem.launch(Config(64, 64, 32)))

    with executing(note, architecture=90):
        pointwise(torch.empty(1, 64, 64), torch.empty(64, 64), torch.empty(64))
    assert len(launches) == 1
    assert specialisations(launches) == []
    assert precompile([]) == 0


def test_processes_that_are_killed_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for count as not compiled."""
    (tmp_path / "deadly.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = [Specialisation("deadly", "any", "{}", ("cuda", 90, 32))] * 3
    assert precompile(wanted, 1) == 3
