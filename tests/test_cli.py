"""The command line: options, exit codes, one line for what goes wrong, and nothing imported before it is needed."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from sqt_fast import __version__
from sqt_fast import cli as module
from sqt_fast.cli import main
from sqt_fast.config import FAST, OFFICIAL, OFFICIAL_HMDB51, IndexConfig
from sqt_fast.engine.results import Summary
from sqt_fast.errors import BackendError, SqtError
from sqt_fast.network.metadata import labels_in, read_metadata
from sqt_fast.network.protocols import find_protocol
from sqt_fast.network.published import PUBLISHED
from sqt_fast.network.registry import BACKENDS
from tests.command_line import refused, sqt
from tests.conftest import TINY_LABELS
from tests.tables import read_table

if TYPE_CHECKING:
    from sqt_fast.network.model import SqueezeTime

pytestmark = pytest.mark.usefixtures("kept_signals")
PROMISED = """videos rows failed clips packets_read packets_dropped frames_decoded frames_wanted wall_s clips_per_s
x_realtime limit""".split()  # noqa: SIM905
HEAVY = ("torch", "numpy", "pyarrow", "av", "nvidia", "rich", "pooch", "safetensors", "onnx", "tensorrt_rtx")
PROBE = """
import sys
from sqt_fast.cli import main
try:
    main({arguments!r})
finally:
    print("IMPORTED", *[n for n in {heavy!r} if n in sys.modules], file=sys.stderr)
"""


def tiny(weights: tuple[str, str]) -> list[str]:
    how = ["--backend", "eager", "--precision", "fp32", "--device", "cpu", "--batch-size", "4"]
    return ["--weights", weights[0], "--labels", weights[1], *how]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[IndexConfig]:
    """Configurations that ``index`` was called with, instead of running."""
    seen: list[IndexConfig] = []

    def run(config: IndexConfig, report: Any, *, stdin: Any = ()) -> Summary:
        seen.append(config)
        return Summary(output=str(config.output))

    monkeypatch.setattr("sqt_fast.run.run", run)
    return seen


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label in this process: to start another takes seconds. Tests of what only that can show do without."""
    from sqt_fast.run import run
    from tests.test_run import in_process

    assert run.__kwdefaults__ is not None
    monkeypatch.setitem(run.__kwdefaults__, "launch", in_process)


# -- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["-h"],
        ["--version"],
        ["index", "--help"],
        ["sample-videos", "-h"],
        ["convert", "-h"],
        ["tune", "-h"],
        ["evaluate", "-h"],
        ["train", "-h"],
        ["export-onnx", "-h"],
        ["build-engine", "-h"],
        ["engines", "-h"],
        ["engines", "check", "-h"],
        ["index"],
    ],
    ids=str,
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: list[str]) -> None:
    code = PROBE.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == (2 if arguments == ["index"] else 0)
    assert done.stderr.splitlines()[-1] == "IMPORTED"


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, sqt_fast; print([n for n in {HEAVY!r} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_dry_run_needs_no_weights(archive: Path) -> None:
    arguments = ["index", str(archive), "-o", "t.csv", "--dry-run"]
    done = subprocess.run([sys.executable, "-c", PROBE.format(arguments=arguments, heavy=("safetensors", "pooch"))],
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "IMPORTED"


def test_version() -> None:
    assert sqt("--version").output == f"sqt-fast, version {__version__}\n"


def test_every_option_explains_itself() -> None:
    assert isinstance(main, click.Group)
    groups = [command for command in main.commands.values() if isinstance(command, click.Group)]
    for command in (*main.commands.values(), *(inner for group in groups for inner in group.commands.values())):
        assert command.help
        assert all(o.help for o in command.params if isinstance(o, click.Option))


def test_names_of_errors_are_usage_or_failure() -> None:
    kinds: list[type[SqtError]] = [SqtError, *SqtError.__subclasses__(), *BackendError.__subclasses__()]
    assert {kind.__name__: kind.exit_code for kind in kinds if kind.__module__ == "sqt_fast.errors"} == {
        "SqtError": 1,
        "ConfigError": 2,
        "CheckpointError": 1,
        "BackendError": 1,
        "ParityError": 3,
        "DeviceLostError": 1,
        "OutputError": 1,
        "InterruptedRunError": 1,
        "VideoError": 1,
    }


# -- options ----------------------------------------------------------------------------------------------------------


def test_what_is_not_said_is_left_to_the_program(asked: list[IndexConfig]) -> None:
    assert sqt("index", "a", "-o", "t.csv").exit_code == 0
    assert asked == [IndexConfig(inputs=("a",), output=Path("t.csv"))]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--weights", "hmdb51"], {"weights": "hmdb51"}),
        (["--labels", "l.txt"], {"labels": "l.txt"}),
        (["--protocol", "official"], {"protocol": "official"}),
        (["--protocol", "single"], {"protocol": "single"}),
        (["--stride", "0.5"], {"stride_s": 0.5}),
        (["--target-fps", "12.5"], {"target_fps": 12.5}),
        (["--level", "video"], {"level": "video"}),
        (["--level", "window"], {"level": "window"}),
        (["--top-k", "1"], {"top_k": 1}),
        (["--embeddings"], {"embeddings": True}),
        *[(["--backend", name], {"backend": None if name == "auto" else name}) for name in BACKENDS],
        (["--device", "cuda:1"], {"device": "cuda:1"}),
        (["--device", "auto"], {"device": None}),
        (["--precision", "auto"], {"precision": None}),
        (["--precision", "bf16"], {"precision": "bf16"}),
        (["--precision", "fp32"], {"precision": "fp32"}),
        (["--batch-size", "auto"], {"batch_size": None}),
        (["--batch-size", "16"], {"batch_size": 16}),
        (["--decoder", "auto"], {"decoder": None}),
        (["--decoder", "nvdec"], {"decoder": "nvdec"}),
        (["--decoder", "cpu"], {"decoder": "cpu"}),
        (["--memory", "auto"], {"memory_bytes": None}),
        (["--memory", "1.5G"], {"memory_bytes": 3 << 29}),
        (["--path-col", "file"], {"path_col": "file"}),
        (["--limit", "7"], {"limit": 7}),
        (["--on-error", "fail"], {"on_error": "fail"}),
        (["--on-error", "record"], {"on_error": "record"}),
        (["--retry-failed"], {"retry_failed": True}),
        (["--overwrite"], {"overwrite": True}),
        (["--prune"], {"prune": True}),
        (["--all-links"], {"all_links": True}),
        (["-0"], {"null": True}),
        (["--null"], {"null": True}),
        (["--quiet"], {}),
        (["-q"], {}),
        (["-v"], {}),
        (["--verbose"], {}),
        (["--json"], {}),
        (["b", "-"], {"inputs": ("a", "b", "-")}),
    ],
    ids=str,
)
def test_every_option_parses(asked: list[IndexConfig], arguments: list[str], wanted: dict[str, Any]) -> None:
    assert sqt("index", "a", "--out", "t.csv", *arguments).exit_code == 0
    assert asked == [IndexConfig(**{"inputs": ("a",), "output": Path("t.csv"), **wanted})]


def test_this_file_tries_every_option() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    for option in module.index.params:
        for name in option.opts if isinstance(option, click.Option) else ():
            assert f'"{name}"' in text, name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing option"),
        (["-o", "t.txt"], "must end in .parquet, .csv, .jsonl"),
        (["-o", "t.csv", "--stride", "0"], "--stride 0"),
        (["-o", "t.csv", "--stride", "-1"], "--stride -1"),
        (["-o", "t.csv", "--stride", "nan"], "--stride nan"),
        (["-o", "t.csv", "--stride", "x"], "'x' is not a valid float"),
        (["-o", "t.csv", "--target-fps", "0"], "--target-fps 0"),
        (["-o", "t.csv", "--protocol", "official", "--stride", "1"], "--stride: the official protocol"),
        (["-o", "t.csv", "--protocol", "official", "--level", "window"], "--level window: the official protocol"),
        (["-o", "t.csv", "--protocol", "slow"], "'slow' is not one of"),
        (["-o", "t.csv", "--level", "frame"], "'frame' is not one of"),
        (["-o", "t.csv", "--top-k", "0"], "0 is not in the range x>=1"),
        (["-o", "t.csv", "--limit", "0"], "0 is not in the range x>=1"),
        (["-o", "t.csv", "--batch-size", "0"], "0 is not in the range x>=1"),
        (["-o", "t.csv", "--batch-size", "many"], "'many' is not a valid integer"),
        (["-o", "t.csv", "--backend", "magic"], "'magic' is not one of"),
        (["-o", "t.csv", "--precision", "int4"], "'int4' is not one of"),
        (["-o", "t.csv", "--on-error", "ignore"], "'ignore' is not one of"),
        (["-o", "t.csv", "--decoder", "gpu"], "'gpu' is not one of"),
        (["-o", "t.csv", "--memory", "8"], "--memory 8: must be a size of at least 200M, as 8G or 1500M, or auto"),
        (["-o", "t.csv", "--wieghts", "k400"], "No such option"),
    ],
    ids=str,
)
def test_usage_errors(archive: Path, arguments: list[str], said: str) -> None:
    line = refused(sqt("index", archive, *arguments))
    assert said in line
    assert line.startswith(("sqt-fast: ", "Error: "))


def test_no_input() -> None:
    assert "Missing argument 'INPUT...'" in refused(sqt("index", "-o", "t.csv"))


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_inputs_that_are_not_there(tmp_path: Path, dry: list[str]) -> None:
    arguments = ["-o", tmp_path / "t.csv", *dry]
    assert "input nowhere: no such file or folder" in refused(sqt("index", "nowhere", *arguments))
    assert "nothing matches" in refused(sqt("index", tmp_path / "*.mp4", *arguments))
    (tmp_path / "list.csv").write_text("file\na.mp4\n")
    line = refused(sqt("index", tmp_path / "list.csv", *arguments))
    assert line.endswith("no column 'path'; it has file; name one with --path-col")
    (tmp_path / "list.parquet").write_text("no")
    assert "not a Parquet file" in refused(sqt("index", tmp_path / "list.parquet", *arguments))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["list.csv", "list.parquet"]


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    assert "no video files found" in refused(sqt("index", tmp_path / "in", "-o", tmp_path / "t.csv"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--device", "banana"], 2, "--device banana: no such device; use auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:x"], 2, "--device cuda:x: no such device"),
        (["--device", "cuda:77"], 2, "--device cuda:77: this machine has"),
        (["--labels", "nowhere.txt"], 2, "labels nowhere.txt"),
        (["--labels", "ucf101"], 2, "101 names for the 7 classes"),
        (["--weights", "nowhere.pth"], 2, "weights nowhere.pth: no such file"),
        (["--out", "/proc/nowhere/t.csv"], 1, "cannot write beside it"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], arguments: list[str], code: int, said: str
) -> None:
    result = sqt("index", archive, "-o", tmp_path / "t.csv", *tiny(tiny_weights), *arguments)
    line = refused(result, code)
    assert line.startswith("sqt-fast: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


# -- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_index_json(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], suffix: str, request: pytest.FixtureRequest
) -> None:
    if suffix != ".parquet":
        request.getfixturevalue("quick")
    output = tmp_path / f"t{suffix}"
    arguments = ["index", archive / "mp4", archive / "broken", "-o", output, *tiny(tiny_weights), "--json"]
    result = sqt(*arguments)
    assert result.exit_code == 0  # files that cannot be labelled are rows
    assert result.stderr == ""
    printed = json.loads(result.stdout)
    assert set(PROMISED) <= set(printed)
    table = read_table(output)[0]
    assert printed["rows"] == table.num_rows
    assert printed["videos"] == len(set(table["path"].to_pylist()))
    assert printed["failed"] == 5
    assert printed["clips"] == table["status"].to_pylist().count("ok") > 0
    assert printed["packets_read"] >= printed["frames_decoded"] >= printed["frames_wanted"] > 0
    assert printed["limit"] in ("start", "network", "decode", "write")
    if suffix != ".parquet":
        assert f"{suffix} cannot be added to" in refused(sqt(*arguments), 1)
        return
    again = json.loads(sqt(*arguments).stdout)
    assert (again["clips"], again["packets_read"], again["limit"], again["rows"]) == (0, 0, "none", printed["rows"])


@pytest.mark.usefixtures("quick")
def test_what_people_see(archive: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> None:
    arguments = ["index", archive / "broken", archive / "avi", "-o", tmp_path / "t.parquet", *tiny(tiny_weights)]
    result = sqt(*arguments, "--verbose", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "eager fp32 on cpu: as asked" in result.stderr
    assert "empty.mp4: empty_file: the file is empty (0 bytes)" in result.stderr
    assert "limited by" in result.stderr
    assert "complete and up to date" in sqt(*arguments).stderr
    quiet = sqt(*arguments, "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    line = refused(sqt(*arguments, "--top-k", "2"))
    assert "other settings: --top-k 5, now 2" in line
    assert "--overwrite" in line
    line = refused(sqt(*arguments, "--overwrite", "--on-error", "fail", "-q"), 1)
    assert "(stopped by --on-error fail)" in line


@pytest.mark.usefixtures("quick")
def test_official(archive: Path, tmp_path: Path, tiny_weights: tuple[str, str]) -> None:
    output = tmp_path / "t.jsonl"
    result = sqt("index", archive / "avi", "-o", output, *tiny(tiny_weights), "--protocol", "official", "--json")
    assert json.loads(result.stdout)["clips"] == 30
    assert [r["clip_index"] for r in read_table(output)[0].to_pylist()] == [None]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet", "-"])
def test_lists(archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = sorted(str(p) for p in (archive / "avi").glob("*.avi"))
    paths += [str(archive / "broken" / "empty.mp4"), str(tmp_path / "nowhere.mp4")]
    text = "\n".join(paths) + "\n"
    (tmp_path / "list.txt").write_text(text)
    (tmp_path / "list.csv").write_text("n,file\n" + "".join(f"1,{p}\n" for p in paths))
    pq.write_table(pa.table({"file": paths}), tmp_path / "list.parquet")
    source = name if name == "-" else tmp_path / name
    options = ["--path-col", "file", "--json", *tiny(tiny_weights)]
    result = sqt("index", source, "-o", tmp_path / "t.csv", *options, input=text if name == "-" else None)
    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / "t.csv")[0].to_pylist()
    assert sorted({r["path"] for r in rows}) == sorted(paths)
    assert {r["path"]: r["status"] for r in rows}[str(tmp_path / "nowhere.mp4")] == "unreadable"


def test_stdin_may_hold_names_in_any_encoding(archive: Path, tmp_path: Path) -> None:
    name = tmp_path / os.fsdecode(b"caf\xe9.avi")
    name.write_bytes(next((archive / "avi").glob("*.avi")).read_bytes())
    result = sqt("index", "-", "-o", tmp_path / "t.csv", "--dry-run", "--json", input=os.fsencode(name) + b"\n")
    assert result.exit_code == 0
    (file,) = json.loads(result.stdout)["files"]
    assert file["path"].endswith(r"caf\xe9.avi")
    assert file["status"] == "ok"


def test_an_interrupt_is_one_line(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sqt_fast.engine.supervisor.Supervisor.load", interrupt)
    line = refused(sqt("index", archive, "-o", tmp_path / "t.csv", *tiny(tiny_weights)), 1)
    assert line == "sqt-fast: stopped; run the same command again to go on"
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_a_library_mistakes_for_something_else_is_one(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: torch.asarray swallows it, and the checkpoint looks damaged."""

    def swallow(*args: Any, **options: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise SqtError("weights are damaged") from None

    monkeypatch.setattr("sqt_fast.engine.supervisor.Supervisor.load", swallow)
    line = refused(sqt("index", archive, "-o", tmp_path / "t.csv", *tiny(tiny_weights)), 1)
    assert line == "sqt-fast: stopped; run the same command again to go on"


# -- dry run ----------------------------------------------------------------------------------------------------------


def test_dry_run_json(archive: Path, tmp_path: Path) -> None:
    result = sqt("index", archive, "-o", tmp_path / "new" / "t.csv", "--dry-run", "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert (printed["videos"], printed["failed"]) == (13, 4)
    assert len(printed["files"]) == 13
    assert printed["clips"] == sum(f.get("clips", 0) for f in printed["files"])
    assert printed["failures"] == {"empty_file": 1, "unreadable": 1, "no_video_stream": 1, "not_a_video": 1}
    assert list(tmp_path.iterdir()) == []
    limited = json.loads(sqt("index", archive, "-o", "t.csv", "--dry-run", "--json", "--limit", "2").stdout)
    assert limited["files"] == printed["files"][:2]


def test_dry_run_for_people_writes_nothing(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = sqt("index", archive, "-o", "t.parquet", "--dry-run", "--overwrite", "--stride", "1")
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert len(lines) == 13 + 4
    assert sum("  no_video_stream: " in line for line in lines) == 1
    assert lines[-1].startswith("would label ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_dry_run_counts_the_clips_that_a_run_labels(
    archive: Path, tmp_path: Path, tiny_weights: tuple[str, str]
) -> None:
    for options in ([], ["--stride", "0.7"], ["--target-fps", "60"], ["--protocol", "official"]):
        arguments = ["index", archive / "mp4", "-o", tmp_path / "t.csv", "--json", "--overwrite", *options]
        promised = json.loads(sqt(*arguments, "--dry-run").stdout)["clips"]
        assert json.loads(sqt(*arguments, *tiny(tiny_weights)).stdout)["clips"] == promised


# -- the other commands -----------------------------------------------------------------------------------------------


def test_convert(tmp_path: Path, tiny_weights: tuple[str, str]) -> None:
    import torch

    from sqt_fast.network.weights import load_weights

    target = tmp_path / "out.safetensors"
    result = sqt("convert", tiny_weights[0], target)
    assert (result.exit_code, result.stdout) == (0, f"{target}\n")
    ours, wanted = load_weights(str(target)), load_weights(tiny_weights[0])
    for name, value in wanted.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value)
    assert ours.labels == wanted.labels
    assert "no such file" in refused(sqt("convert", "nowhere.pth", target))
    (tmp_path / "bad.pth").write_text("no weights")
    assert "text file, not weights" in refused(sqt("convert", tmp_path / "bad.pth", target), 1)
    assert "cannot be written" in refused(sqt("convert", tiny_weights[0], tmp_path / "no" / "x.safetensors"), 1)
    assert "is a directory" in refused(sqt("convert", tiny_weights[0], tmp_path))


def test_convert_keeps_what_the_weights_need(
    tmp_path: Path, tiny_model: "SqueezeTime", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class names and protocols: the file's own, or those that the release has for it; also from copy to copy."""
    from sqt_fast.network.checkpoint import save_safetensors

    small = replace(FAST, short_side=64, crop_size=56)
    about = {"labels": json.dumps(TINY_LABELS), "protocols": json.dumps({"fast": asdict(small)})}
    save_safetensors(tiny_model, tmp_path / "own.safetensors", about)
    save_safetensors(tiny_model, tmp_path / "plain.safetensors")
    monkeypatch.setenv("SQT_FAST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    known = replace(PUBLISHED["hmdb51"], labels=None)  # as if the release had a network of 7 classes
    monkeypatch.setitem(PUBLISHED, "hmdb51", known)
    save_safetensors(tiny_model, known.path)
    for source, fast, official, labels in (
        (tmp_path / "own.safetensors", small, OFFICIAL, TINY_LABELS),
        (tmp_path / "plain.safetensors", FAST, OFFICIAL, tuple(f"class {i}" for i in range(7))),
        ("hmdb51", FAST, OFFICIAL_HMDB51, tuple(f"class {i}" for i in range(7))),
    ):
        for target in (tmp_path / "once.safetensors", tmp_path / "twice.safetensors"):
            assert sqt("convert", source, target).exit_code == 0
            kept = read_metadata(target)
            assert kept["source"] == str(source)
            assert json.loads(kept["protocols"]) == {"fast": asdict(fast), "official": asdict(official)}
            assert labels_in(target) == labels
            assert find_protocol("fast", str(target)) == fast
            assert find_protocol("official", str(target)) == official
            single = find_protocol("single", str(target))
            assert (single.short_side, single.crop_size) == (fast.short_side, fast.crop_size)
            source = target


def test_unknown_command() -> None:
    assert "No such command" in refused(sqt("lable"))


@pytest.mark.parametrize(
    ("null", "names"), [(False, ["a.mp4", "b\0c.mp4", ""]), (True, ["a.mp4\nb", "c.mp4\n"])], ids=["lines", "NUL"]
)
def test_names_on_stdin(monkeypatch: pytest.MonkeyPatch, null: bool, names: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a.mp4\nb\0c.mp4\n")))
    assert module._stdin(null=null) == names


def test_names_on_stdin_may_be_in_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff.mp4")))
    assert [os.fsencode(name) for name in module._stdin(null=False)] == [b"\xff.mp4"]
