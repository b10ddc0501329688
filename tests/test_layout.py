"""Where things lie: what setuptools packs, what a bare checkout imports, and which test belongs to which module."""

import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernels", "pipelines")


def modules_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_is_packed_and_linked(folder: str) -> None:
    packing = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packing["package-dir"][f"sqt_fast.{folder}"] == folder
    assert f"sqt_fast.{folder}" in packing["packages"]
    assert (ROOT / "sqt_fast" / folder).samefile(ROOT / folder), "the link is missing: clone with core.symlinks=true"


@pytest.mark.parametrize("folder", [*FOLDERS, "sqt_fast"])
def test_no_module_is_left_out_of_the_wheel(folder: str) -> None:
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    prefix = "sqt_fast" if folder == "sqt_fast" else f"sqt_fast.{folder}"
    below = {path.parent.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
    assert {".".join((prefix, *part.parts)) for part in below} <= packages


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_short_name_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=rf"is the package sqt_fast\.{folder}"):
        importlib.import_module(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_kernel_and_pipeline_has_a_test(folder: str) -> None:
    assert {name for name in modules_in(ROOT / folder) if not (ROOT / "tests" / f"test_{name}.py").is_file()} == set()


HELPERS = (
    "__init__.py",
    "accuracy.py",
    "compile_kernels.py",
    "conftest.py",
    "fake_gpu.py",
    "nvrtc.py",
    "poison.py",
    "videos.py",
    "watching.py",
)


def test_tests_lie_flat_and_say_what_they_test() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name not in HELPERS]
    assert [path.name for path in files if path.parent != ROOT / "tests"] == []
    assert [path.name for path in files if not path.name.startswith("test_")] == []
