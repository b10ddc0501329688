"""The house rules that a machine can hold: what setuptools packs, who may import what, which test belongs to what."""

import ast
import importlib
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_FOLDERS = ("kernels", "pipelines")  # real folders at the top, linked below sqt_fast/
PACKAGES = (
    "clips",
    "commands",
    "engine",
    "evaluate",
    "network",
    "samples",
    "table",
    "tensorrt",
    "train",
    "tuning",
    "video",
)
MAX_PARAMETERS = 6


def modules() -> dict[str, Path]:
    """Return every module of the program, as ``engine.worker`` or ``cli``, and its file."""
    found = {path.stem: path for path in (ROOT / "sqt_fast").glob("*.py")}
    for folder in (*PACKAGES, *TOP_FOLDERS):
        found |= {f"{folder}.{path.stem}": path for path in (ROOT / "sqt_fast" / folder).glob("*.py")}
    return {name: path for name, path in found.items() if not path.stem.startswith("__")}


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of what a file imports, inside functions too, ``if TYPE_CHECKING`` left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and ":" in node.value:
            yield node.value.replace(":", ".")  # "sqt_fast.network.eager:load" is an import that waits


def importers(*wanted: str) -> set[str]:
    """Return the modules of the program that import one of ``wanted`` or something below it."""
    return {
        name
        for name, path in modules().items()
        if any(found == one or found.startswith(f"{one}.") for found in imports(path) for one in wanted)
    }


def inside(*folders: str) -> set[str]:
    return {name for name in modules() if name.startswith(tuple(f"{folder}." for folder in folders))}


# -- packing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_folder_is_packed_and_linked(folder: str) -> None:
    packing = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packing["package-dir"][f"sqt_fast.{folder}"] == folder
    assert (ROOT / "sqt_fast" / folder).samefile(ROOT / folder), "the link is missing: clone with core.symlinks=true"


def test_no_module_is_left_out_of_the_wheel() -> None:
    packages = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    files = [path.relative_to(ROOT) for path in (ROOT / "sqt_fast").rglob("*.py")]
    files += [
        Path("sqt_fast") / path.relative_to(ROOT) for folder in TOP_FOLDERS for path in (ROOT / folder).rglob("*.py")
    ]
    assert {".".join(path.parent.parts) for path in files} <= packages


@pytest.mark.parametrize("folder", TOP_FOLDERS)
def test_the_short_name_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=rf"is the package sqt_fast\.{folder}"):
        importlib.import_module(folder)


# -- who may import what ----------------------------------------------------------------------------------------------


def test_video_knows_neither_torch_nor_the_rooms_above_it() -> None:
    above = ("clips", "engine", "evaluate", "network", "table", "train", "tuning", "commands", "run", "cli", "console")
    assert importers("torch", *(f"sqt_fast.{room}" for room in above)) & inside("video") == set()


def test_only_the_engine_and_what_compiles_kernels_start_processes() -> None:
    starting = importers("multiprocessing", "subprocess", "concurrent.futures.process")
    assert starting - inside("engine") == {"signals", "network.precompile"}


def test_only_pipelines_know_dali() -> None:
    assert importers("nvidia.dali") - inside("pipelines") == set()


def test_the_network_knows_neither_the_engine_nor_decoding() -> None:
    decoding = [f"sqt_fast.video.{room}" for room in ("container", "cpu_decoder", "reader", "scan", "segments")]
    above = [f"sqt_fast.{room}" for room in ("engine", "pipelines", "table", "train", "evaluate", "commands", "run")]
    assert importers(*above, *decoding) & inside("network") == set()


def test_kernels_stand_alone_but_for_errors() -> None:
    for name in inside("kernels"):
        ours = {found for found in imports(modules()[name]) if found.startswith("sqt_fast.")}
        assert {o for o in ours if not o.startswith(("sqt_fast.kernels.", "sqt_fast.errors."))} == set(), name


def test_evaluation_judges_tables_and_nothing_but_the_command_line_knows_it() -> None:
    rooms = tuple(f"sqt_fast.{room}." for room in ("clips", "engine", "network", "train"))
    known = tuple(f"sqt_fast.{module}." for module in ("engine.events", "network.class_names", "train.lists"))
    used = {found for name in inside("evaluate") for found in imports(modules()[name]) if found.startswith(rooms)}
    assert {found for found in used if not found.startswith(known)} == set()
    assert importers("torch") & inside("evaluate") == {"evaluate.reports"}
    assert importers("sqt_fast.evaluate") - inside("evaluate", "commands") - {"cli"} == set()


def test_training_stands_beside_the_engine_and_only_its_lists_are_for_others() -> None:
    assert importers("sqt_fast.engine") & inside("train") == set()
    known = dict.fromkeys(inside("evaluate"), "sqt_fast.train.lists.")
    known["pipelines.train"] = "sqt_fast.train.clip_source."
    for name in importers("sqt_fast.train") - inside("train", "commands"):
        used = {found for found in imports(modules()[name]) if f"{found}.".startswith("sqt_fast.train.")}
        assert name in known, used
        assert {found for found in used if not found.startswith(known[name])} == set(), name


def test_the_room_of_tensorrt_knows_the_network_and_nothing_above_it() -> None:
    rooms = ("clips", "engine", "pipelines", "table", "train", "tuning", "evaluate", "video", "commands", "run", "cli")
    assert importers("click", "rich", *(f"sqt_fast.{room}" for room in rooms)) & inside("tensorrt") == set()
    assert importers("sqt_fast.tensorrt") - inside("tensorrt") == {"commands.engine_commands", "network.registry"}


def test_tensorrt_is_loaded_in_one_place_by_name() -> None:
    """Both of them are one API: what it is called there is nobody else's business."""
    names = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings", "torch_tensorrt")
    assert importers(*names) == set()
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules().items()}
    with_names = {name for name, text in texts.items() if any(f'"{each}"' in text for each in names[1:])}
    assert with_names == {"tensorrt.tensorrt_library", "tensorrt.torch_frontend"}


def test_commands_are_the_last_word() -> None:
    assert importers("sqt_fast.commands") - inside("commands") == {"cli"}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("click", {"cli", *inside("commands")}),
        ("matplotlib", {"confusion"}),
        ("pytorch_lightning", {f"train.{room}" for room in ("data", "fit", "module", "trainer")}),
        ("torchmetrics", {"train.module"}),
        ("onnx", {"network.onnx_export", "tensorrt.plugin_graph", "tensorrt.quantize"}),
        ("onnxruntime", {"network.parity"}),
        ("pyarrow", {"video.archive", *(f"table.{room}" for room in ("export", "ledger", "merge", "parts", "schema"))}),
        ("av", {"engine.selftest", *(name for name in modules() if name.startswith(("video.", "samples.")))}),
    ],
)
def test_a_library_is_known_where_it_belongs(library: str, allowed: set[str]) -> None:
    assert importers(library) - allowed == set()


# -- names, tests, sizes ----------------------------------------------------------------------------------------------


def test_names_are_unique_across_folders() -> None:
    stems = Counter(path.stem for path in modules().values())
    assert [stem for stem, count in stems.items() if count > 1] == []


def test_every_module_has_a_test_of_its_own_name() -> None:
    without = {name for name, path in modules().items() if not (ROOT / "tests" / f"test_{path.stem}.py").is_file()}
    assert without == set()


def test_tests_lie_flat() -> None:
    assert [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"] == []


def test_constructors_take_few_parameters() -> None:
    crowded = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                count = len(node.args.args) - 1 + len(node.args.kwonlyargs)
                if count > MAX_PARAMETERS:
                    crowded.append(f"{name}:{node.lineno} takes {count}")
    assert crowded == []


def test_files_are_short_enough_to_read() -> None:
    """A kernel stands in one file with its launcher, its tiles and its reference, and may be a little longer."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    limits = {name: 330 if name in inside("kernels") else 300 for name in lines}
    assert {name: count for name, count in lines.items() if count > limits[name]} == {}
