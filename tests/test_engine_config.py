"""What an engine is asked to be: checked when it is said, and said again as the command that builds it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqt_fast.commands.engine_commands import FLAVOUR_NAMES, HARDWARE_KINDS, INPUT_KINDS
from sqt_fast.errors import ConfigError
from sqt_fast.network.onnx_export import INPUTS, ExportConfig
from sqt_fast.tensorrt.engine_config import HARDWARE, Batches, EngineConfig
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS


@given(st.lists(st.integers(1, 999_999), min_size=3, max_size=3).map(sorted))
def test_batches_are_what_they_say(numbers: list[int]) -> None:
    batches = Batches.parse(":".join(map(str, numbers)))
    assert list(batches) == numbers
    assert Batches.parse(str(batches)) == batches
    assert Batches.parse(str(numbers[0])) == (numbers[0],) * 3


@pytest.mark.parametrize(
    "text", ["", "0", "0:1:2", "2:1:3", "1:3:2", "1:2", "1:2:3:4", "1:x:3", "-1", "1e3", "1:2:3 ", "٣", "1\n"]
)
def test_batches_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)batch .*: expected MIN:OPT:MAX, 1 or more and ascending, as 1:64:64"):
        Batches.parse(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flavour": "lean"}, "flavour lean: expected one of tensorrt, rtx"),
        ({"hardware": "hopper"}, "hardware hopper: expected one of none, same-capability, ampere-plus"),
        ({"level": 6}, "level 6: expected 0 to 5"),
        ({"level": -1}, "level -1: expected 0 to 5"),
        ({"workspace_mib": 0}, "workspace 0 MiB: expected 1 or more"),
        ({"flavour": "rtx", "hardware": "ampere-plus"}, "TensorRT-RTX takes --capability"),
        ({"flavour": "rtx", "version_compatible": True}, "TensorRT-RTX takes --capability"),
        ({"frontend": "tf"}, "frontend tf: expected one of onnx, torch"),
        ({"plugin": "gelu"}, "plugin gelu: expected one of none, ctl"),
        ({"flavour": "rtx", "plugin": "ctl"}, "TensorRT-RTX reads plain ONNX"),
        ({"flavour": "rtx", "frontend": "torch"}, "TensorRT-RTX reads plain ONNX"),
        ({"frontend": "torch", "plugin": "ctl"}, "--plugin goes into the exported network: use --frontend onnx"),
        ({"capabilities": ("8.9",)}, "--capability is for --flavour rtx; TensorRT takes --hardware"),
        ({"flavour": "rtx", "capabilities": ("sm89",)}, "capability sm89: expected a compute capability, as 8.9"),
    ],
    ids=str,
)
def test_what_cannot_be_is_said(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineConfig(**values)


def test_plain_values_are_what_json_gives_back() -> None:
    config = EngineConfig("rtx", ExportConfig(96, "fp16"), Batches(1, 2, 4), capabilities=("8.6", "8.9"))
    values = config.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert (values["size"], values["precision"], values["batches"]) == (96, "fp16", [1, 2, 4])
    assert len(values) == len(ExportConfig.__dataclass_fields__) + len(EngineConfig.__dataclass_fields__) - 1


def test_the_usual_one_is_a_short_command() -> None:
    assert EngineConfig().command("k400") == (
        "sqt-fast build-engine --weights k400 --flavour tensorrt --precision bf16 --batch 1:64:64 --size 224"
    )


def test_the_command_line_offers_what_there_is() -> None:
    """It names the choices itself, for torch would be imported with ours."""
    assert tuple(FLAVOURS) == FLAVOUR_NAMES
    assert HARDWARE == HARDWARE_KINDS
    assert INPUTS == INPUT_KINDS
