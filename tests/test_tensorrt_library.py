"""TensorRT under its names: found, refused in a line, heard; and everything that we call is there in every version.

``tensorrt_api.json`` holds the names that TensorRT's Python modules of five versions have in the classes that we use.
"""

import ast
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tensorrt_rtx

from sqt_fast.errors import BackendError
from sqt_fast.tensorrt.tensorrt_library import FLAVOURS, hear, is_older, load_library, why
from tests import fake_tensorrt
from tests.fake_tensorrt import FakeTensorRT, Severity

TENSORRT, RTX = FLAVOURS["tensorrt"], FLAVOURS["rtx"]
NUMBERS = ("tensorrt", "tensorrt_bindings")


# -- loading ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from, before all others."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in NUMBERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in NUMBERS:
        sys.modules.pop(name, None)


def refused() -> str:
    with pytest.raises(BackendError) as caught:
        load_library(TENSORRT)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rtx_is_here() -> None:
    assert load_library(RTX) is tensorrt_rtx


@pytest.mark.parametrize("version", ["10.13.3.9", "10.16", "11.0.0.114", "12"])
def test_versions_that_fit(place: Path, version: str) -> None:
    (place / "tensorrt.py").write_text(f"__version__ = {version!r}")
    assert load_library(TENSORRT).__version__ == version


def test_bindings_alone_will_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (place / "tensorrt_bindings.py").write_text("__version__ = '11.0'")
    assert load_library(TENSORRT).__name__ == "tensorrt_bindings"


def test_none_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NUMBERS:
        monkeypatch.setitem(sys.modules, name, None)
    assert refused() == (
        "TensorRT is not installed: pip install 'sqt-fast[tensorrt]', whose libraries come from NVIDIA's own package "
        "index"
    )


def test_a_folder_of_that_name_is_not_it(place: Path) -> None:
    (place / "tensorrt").mkdir()
    (place / "tensorrt" / "notes.txt").touch()
    assert "TensorRT is not installed: pip install" in refused()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "raise OSError('libnvinfer.so.11: no such file\\nmore')",
            "cannot be loaded (libnvinfer.so.11: no such file);",
        ),
        ("import tensorrt_libs_of_nobody", "cannot be loaded (No module named 'tensorrt_libs_of_nobody');"),
        ("raise Exception", "cannot be loaded (Exception);"),
        ("__version__ = '10.12.9'", "TensorRT 10.12.9 is too old: 10.13 or newer is needed;"),
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is too old"),
    ],
    ids=["without libraries", "without a part", "without a word", "nearly", "long ago"],
)
def test_one_that_will_not_do_says_why_and_what_to_install(place: Path, source: str, said: str) -> None:
    (place / "tensorrt.py").write_text(source)
    line = refused()
    assert said in line
    assert "pip install 'sqt-fast[tensorrt]'" in line


@pytest.mark.parametrize(
    ("version", "other", "older"),
    [("10.13.3", "10.16", True), ("11.0", "10.16", False), ("9.9", "10.0", True), ("11.4.0", "11.4.9", False)],
)
def test_versions_are_numbers(version: str, other: str, older: bool) -> None:
    assert is_older(version, other) == older


# -- what it says -----------------------------------------------------------------------------------------------------


def test_errors_are_kept_layers_are_noted_and_the_rest_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[str] = []
    layers: list[str] = []
    logger = hear(FakeTensorRT(), errors, layers)
    with caplog.at_level(logging.DEBUG):
        for severity in Severity:
            logger.log(severity, f"{severity.name} came\n")
        logger.log(Severity.VERBOSE, "Layers:\nName: one\nName: two\n\nI/O Tensors:\n Name: clips")
    assert errors == ["INTERNAL_ERROR came", "ERROR came"]
    assert layers == ["Name: one", "Name: two"]
    assert len(caplog.records) == 6


def test_its_last_words_are_a_line() -> None:
    assert why([]) == "it did not say why"
    assert why(["first", "a\n   b", "c", "d"]) == "a b; c; d"


def test_the_real_one_can_be_heard() -> None:
    errors: list[str] = []
    runtime = tensorrt_rtx.Runtime(logger := hear(tensorrt_rtx, errors))
    assert runtime.deserialize_cuda_engine(b"no engine") is None
    assert errors
    del runtime, logger


# -- every name that we call is there in every version ----------------------------------------------------------------

API: Mapping[str, Mapping[str, set[str]]] = {
    version: {name: set(names.split()) for name, names in classes.items()}
    for version, classes in json.loads((Path(__file__).parent / "tensorrt_api.json").read_text()).items()
}
# What a name stands for in a file, where it stands for something of TensorRT's.
OWNERS = {
    "tensorrt_library": {"library": "module"},
    "engine_runner": {
        "library": "module",
        "runtime": "Runtime",
        "cuda_engine": "ICudaEngine",
        "context": "IExecutionContext",
    },
    "engine_build": {
        "library": "module",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "each": "ParserError",
        "settings": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "levels": "HardwareCompatibilityLevel",
    },
}
RETURNS = {"get_input": "ITensor", "get_output": "ITensor", "get_timing_cache": "ITimingCache"}
ONLY_RTX = {
    "module.ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}


def owner(node: ast.AST, names: Mapping[str, str]) -> str | None:
    """Return the class that an expression is of, or is; None if it is nothing of TensorRT's."""
    match node:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return names.get(name)
        case ast.Call(func=ast.Attribute(attr=name)):
            return RETURNS.get(name)
        case ast.Attribute(value=value, attr=name):
            above = owner(value, names)
            return name if above == "module" else above if name == "Severity" else None
    return None


def touched(source: str, names: Mapping[str, str]) -> set[str]:
    """Return what a source uses, as ``Builder.create_network``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (of := owner(node.value, names)) and not node.attr.startswith("__"):
            found.add(f"{of}.{node.attr}")
    return found


def source_of(module: str) -> str:
    return (Path(__file__).parents[1] / "sqt_fast" / "tensorrt" / f"{module}.py").read_text(encoding="utf-8")


def missing(used: set[str], version: str) -> set[str]:
    """Return what a version does not have."""
    classes = API[version]
    pairs = {name: name.split(".") for name in used if "RTX" in version or name not in ONLY_RTX}
    return {n for n, (of, attr) in pairs.items() if attr not in (classes if of == "module" else classes.get(of, ()))}


@pytest.mark.parametrize("version", API)
@pytest.mark.parametrize("module", OWNERS)
def test_every_name_that_we_use_is_there(module: str, version: str) -> None:
    assert missing(touched(source_of(module), OWNERS[module]), version) == set()


def test_every_name_that_we_use_is_seen() -> None:
    """A name of ours that stands for nothing any more, or a check that looks at nothing, is a mistake."""
    for module, names in OWNERS.items():
        used = touched(source_of(module), names)
        for of in {of for of in names.values() if of != "module"}:
            assert any(name.startswith(f"{of}.") for name in used), (module, of)
    used = set.union(*(touched(source_of(module), names) for module, names in OWNERS.items()))
    assert len(used) > 50
    assert used >= ONLY_RTX | {"ITimingCache.serialize", "ILogger.Severity", "IExecutionContext.execute_async_v3"}


def test_a_name_that_is_gone_is_found() -> None:
    source = "settings.set_flag(library.BuilderFlag.FP16)\nself.settings.int8_calibrator = 1"
    names = OWNERS["engine_build"]
    gone = {"BuilderFlag.FP16", "IBuilderConfig.int8_calibrator"}
    assert missing(touched(source, names), "TensorRT 10.13") == set()
    for version in ("TensorRT 11.0", "TensorRT 11.4", "TensorRT-RTX 1.7"):
        assert missing(touched(source, names), version) == gone


@pytest.mark.parametrize("version", API)
def test_what_it_calls_back_is_what_we_answer(version: str) -> None:
    answers = {
        ast.unparse(base).split(".")[-1]: {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef)}
        for module in OWNERS
        for node in ast.walk(ast.parse(source_of(module)))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    }
    assert API[version]["IProgressMonitor"] <= answers["IProgressMonitor"]
    assert "log" in API[version]["ILogger"] & answers["ILogger"]


def test_the_fake_one_has_nothing_of_its_own() -> None:
    real = {"FakeEngine": "ICudaEngine", "FakeContext": "IExecutionContext", "FakeBuilder": "Builder"}
    for fake, name in {**real, "FakeSettings": "IBuilderConfig"}.items():
        methods = {each for each in vars(getattr(fake_tensorrt, fake)) if not each.startswith("_")}
        assert methods <= API["TensorRT 11.4"][name] | API["TensorRT-RTX 1.7"][name], fake
    for name, kind in vars(FakeTensorRT).items():
        if hasattr(kind, "__members__"):
            assert set(kind.__members__) <= API["TensorRT-RTX 1.7"][name], name


def test_the_installed_one_is_as_recorded() -> None:
    """Of RTX, which can be installed anywhere: what was recorded was read off rightly."""
    real: ModuleType = tensorrt_rtx
    for name, names in API["TensorRT-RTX 1.7"].items():
        if tensorrt_rtx.__version__.startswith("1.7."):
            found: Any = getattr(real, name)
            assert [each for each in names if not hasattr(found, each)] == [], name
