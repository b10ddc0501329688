"""Networks that are given away as ONNX: checked first, written whole, and nothing is left of one that is wrong."""

from pathlib import Path

import pytest
import torch

from sqt_fast.errors import OutputError, ParityError
from sqt_fast.network.onnx_export import ExportConfig
from sqt_fast.network.parity import compare
from sqt_fast.tensorrt import exports
from sqt_fast.tensorrt.exports import Exports, keep
from tests.exports import SIZE, ExportedOnce

pytest.importorskip("onnxscript", reason="torch exports through it: pip install 'sqt-fast[onnx]'")


@pytest.fixture(autouse=True)
def _exported_once(exported: ExportedOnce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "export_onnx", exported.write)


@pytest.mark.parametrize(
    ("precision", "said"),
    [("fp32", "error "), ("bf16", "not run, for it has no bfloat16 convolution on CPUs")],
)
def test_what_is_written_and_said(precision: str, said: str, tiny_weights: tuple[str, str], tmp_path: Path) -> None:
    lines: list[str] = []
    summary = Exports(tiny_weights[0], ExportConfig(SIZE, precision), 4).write(tmp_path / "x.onnx", lines.append)
    assert summary == f"{tmp_path}/x.onnx: {precision}, normalised clips of {SIZE}x{SIZE}, opset 22"
    assert lines[0] == "exporting to ONNX"
    assert lines[1].startswith(f"exported, and in ONNX Runtime: {said}")
    assert (tmp_path / "x.onnx").stat().st_size > 100_000


def test_a_network_that_gives_other_results_is_not_written(
    tiny_weights: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = torch.eye(3, dtype=torch.float64)
    monkeypatch.setattr(exports, "onnx_parity", lambda *args: compare(truth * 1.1, truth, truth, torch.float16))
    with pytest.raises(ParityError, match="the exported network does not give what the network gives: error"):
        Exports(tiny_weights[0], ExportConfig(SIZE), 4).write(tmp_path / "y.onnx", lambda line: None)
    assert list(tmp_path.glob("*.*")) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"no/y: cannot be written \(no such file or directory\); choose another"):
        keep(tmp_path / "x", tmp_path / "no" / "y")
