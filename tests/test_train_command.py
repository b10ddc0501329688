"""``sqt-fast train`` as a person types it: what reaches the run, what it prints, and what it refuses."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest

from sqt_fast.commands import train_command as module
from sqt_fast.commands.train_command import MAX_NAMED, RECIPE_NAMES, train
from sqt_fast.train.recipes import RECIPES
from tests import command_line

sqt, refused = partial(command_line.sqt, "train"), partial(command_line.refused, after=("13 videos",))
pytestmark = pytest.mark.usefixtures("one_thread", "kept_signals")
ROOT = Path(__file__).parents[1]
TINY = """width=0.25 pos_dim=8,4,2,1 crop_size=32 short_side=40 epochs=2""".split()  # noqa: SIM905


def needs_lightning() -> None:
    pytest.importorskip("pytorch_lightning", reason="Lightning trains: pip install 'sqt-fast[train]'")
    pytest.importorskip("nvidia.dali", reason="DALI makes the clips: pip install 'sqt-fast[train]'")


Asked = list[tuple[Any, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What runs were asked for, instead of running: (configuration, lists)."""
    needs_lightning()
    from sqt_fast.train.fit import TrainSummary

    seen: Asked = []

    def run(config: Any, lists: Any, say: Any) -> TrainSummary:
        seen.append((config, lists))
        say("3 videos")
        return TrainSummary(config.output / "weights.safetensors", 1, None, {})

    monkeypatch.setattr("sqt_fast.train.fit.train", run)
    return seen


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder with train.txt, val.csv, names.txt and a folder of classes."""
    (tmp_path / "train.txt").write_text("a.mp4 0\nb.mp4 2\n")
    (tmp_path / "val.csv").write_text("path,label\nc.mp4,run\nd.mp4,walk\n")
    (tmp_path / "names.txt").write_text("run\nwalk\njump\n")
    (tmp_path / "videos" / "jump").mkdir(parents=True)
    (tmp_path / "videos" / "jump" / "e.mp4").touch()
    return tmp_path


# Options -------------------------------------------------------------------------------------------------------------


def test_what_runs_without_options(lists: Path, asked: Asked) -> None:
    result = sqt("--train", lists / "train.txt", "-o", lists / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{lists}/out/weights.safetensors: 1 epoch\n"
    assert result.stderr == "3 videos\n"
    from sqt_fast.train.fit import TrainConfig

    ((config, found),) = asked
    assert config == TrainConfig(lists / "out", RECIPES["k400"])
    assert found.val is None
    assert found.train.paths == (f"{lists}/a.mp4", f"{lists}/b.mp4")
    assert found.train.names == ("class 0", "class 1", "class 2")


K400 = RECIPES["k400"]
OPTIONS: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (["--recipe", "hmdb51"], {"recipe": RECIPES["hmdb51"]}),
    (["--init", "none"], {"recipe": replace(K400, init="none")}),
    (["--epochs", "7"], {"recipe": replace(K400, epochs=7)}),
    (["--batch-size", "3"], {"recipe": replace(K400, batch_size=3)}),
    (["--ema", "0.99"], {"recipe": replace(K400, ema=0.99)}),
    (["--set", "lr=0.5", "--set", "flip=0"], {"recipe": replace(K400, lr=0.5, flip=0.0)}),
    (["--epochs", "7", "--set", "epochs=8"], {"recipe": replace(K400, epochs=8)}),
    (["--device", "cpu"], {"device": "cpu"}),
    (["--device", "auto"], {"device": None}),
    (["--devices", "2"], {"devices": 2}),
    (["--precision", "bf16-mixed"], {"precision": "bf16-mixed"}),
    (["--compile"], {"compile": True}),
    (["--accumulate", "4"], {"accumulate": 4}),
    (["--device", "cuda", "--sync-norm"], {"device": "cuda", "sync_norm": True}),
    (["--seed", "4294967295"], {"seed": 4294967295}),
    (["--workers", "0"], {"workers": 0}),
    (["--checkpoint-every", "9"], {"checkpoint_every": 9}),
    (["--resume", "never"], {"resume": False}),
    (["--resume", "auto"], {"resume": True}),
    (["--quiet"], {"quiet": True}),
    (["-q"], {"quiet": True}),
]


@pytest.mark.parametrize(("arguments", "wanted"), OPTIONS, ids=str)
def test_options_reach_the_run(arguments: list[str], wanted: dict[str, Any], lists: Path, asked: Asked) -> None:
    result = sqt("--train", lists / "train.txt", "--out", "out", *arguments)
    assert result.exit_code == 0, result.output
    ((config, _),) = asked
    from sqt_fast.train.fit import TrainConfig

    assert config == TrainConfig(**{"output": Path("out"), "recipe": K400, **wanted})


@pytest.mark.parametrize(
    ("arguments", "names", "train_paths", "val_paths"),
    [
        (["--train", "videos"], ("jump",), ("{0}/videos/jump/e.mp4",), None),
        (
            ["--train", "train.txt", "--val", "val.csv", "--label-names", "names.txt"],
            ("run", "walk", "jump"),
            ("{0}/a.mp4", "{0}/b.mp4"),
            ("{0}/c.mp4", "{0}/d.mp4"),
        ),
        (
            ["--train", "val.csv", "--val", "val.csv", "--video-root", "videos"],
            ("run", "walk"),
            ("{0}/videos/c.mp4", "{0}/videos/d.mp4"),
            ("{0}/videos/c.mp4", "{0}/videos/d.mp4"),
        ),
    ],
    ids=["folders", "names", "root"],
)
def test_lists_reach_the_run(
    arguments: list[str], names: tuple[str, ...], train_paths: Any, val_paths: Any, lists: Path, asked: Asked
) -> None:
    full = [part if part.startswith("--") else str(lists / part) for part in arguments]
    result = sqt(*full, "-o", "out")
    assert result.exit_code == 0, result.output
    ((_, found),) = asked
    assert found.train.names == names
    assert found.train.paths == tuple(path.format(lists) for path in train_paths)
    if val_paths is None:
        assert found.val is None
    else:
        assert found.val.names == names
        assert found.val.paths == tuple(path.format(lists) for path in val_paths)


def test_this_file_tries_every_option() -> None:
    text = Path(__file__).read_text()
    for option in train.params:
        for name in option.opts if isinstance(option, click.Option) else ():
            assert f'"{name}"' in text, name


def test_options_are_fields_of_the_configuration() -> None:
    needs_lightning()
    from sqt_fast.train.fit import MAX_SEED, TrainConfig

    names = {option.name for option in train.params}
    lists = {"train_list", "val_list", "video_root", "label_names"}
    recipe = {"init", "epochs", "batch_size", "ema", "settings"}
    assert names - lists - recipe - {"compiled"} == set(TrainConfig.__dataclass_fields__) - {"compile"}
    assert tuple(RECIPES) == RECIPE_NAMES
    assert module.MAX_SEED == MAX_SEED
    assert all(option.help for option in train.params if isinstance(option, click.Option))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom sqt_fast.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n"
        "    heavy = {'torch', 'numpy', 'pytorch_lightning', 'nvidia', 'av', 'rich'}\n"
        "    print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--checkpoint-every STEPS" in done.stdout
    assert done.stderr == "\n"


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--train", "nowhere.txt", "-o", "out"], "'nowhere.txt' does not exist"),
        (["-o", "out"], "Missing option '--train'"),
        (["--train", __file__], "Missing option '-o' / '--out'"),
        (["--recipe", "k500"], "'k500' is not one of 'k400'"),
        (["--set", "epoch=3"], "sqt-fast: --set epoch=3: expected name=value with one of depth"),
        (["--set", "lr=0"], "sqt-fast: lr 0.0: expected above 0"),
        (
            ["--set", "width=0.001", "--device", "cpu"],
            "sqt-fast: width 0.001: the narrowest stage would have no channel",
        ),
        (["--epochs", "0"], "0 is not in the range x>=1"),
        (["--ema", "2"], "2.0 is not in the range 0<=x<=1"),
        (["--seed", "4294967296"], "is not in the range 0<=x<=4294967295"),
        (["--device", "cpu", "--sync-norm"], "sqt-fast: --sync-norm: batch norms are shared by GPUs only"),
        (["--label-names", "nowhere"], "sqt-fast: labels nowhere: neither a file nor one of the lists"),
        (["--init", "nowhere.pth", "--device", "cpu"], "sqt-fast: weights nowhere.pth: no such file"),
        (["--video-root", "nowhere"], "'nowhere' does not exist"),
        (["--precision", "8-bit"], "'8-bit' is not one of '32-true'"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(arguments: list[str], said: str, lists: Path) -> None:
    needs_lightning()
    whole = [] if "-o" in arguments or "--train" in arguments else ["--train", lists / "train.txt", "-o", lists / "out"]
    assert said in refused(sqt(*whole, *arguments))


def test_labels_of_the_validation_are_those_of_training(lists: Path) -> None:
    needs_lightning()
    (lists / "val.txt").write_text("a.mp4 3\n")
    line = refused(sqt("--train", lists / "train.txt", "--val", lists / "val.txt", "-o", lists / "out"))
    assert line == f"sqt-fast: {lists}/val.txt, line 1: label '3': expected 0 to 2; see --label-names"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (["pytorch_lightning"], "pytorch_lightning"),
        (["torchmetrics", "matplotlib"], "torchmetrics, matplotlib"),
        (["nvidia.dali"], "DALI"),
        (["nvidia", "pytorch_lightning"], "pytorch_lightning, DALI"),
    ],
    ids=str,
)
def test_what_is_not_installed(missing: list[str], said: str, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    lacking = lambda name, *args: None if name in missing else real(name, *args)  # noqa: E731
    monkeypatch.setattr("importlib.util.find_spec", lacking)
    monkeypatch.setattr("sqt_fast.pipelines.dali_errors.find_spec", lacking)
    line = refused(sqt("--train", lists / "train.txt", "-o", lists / "out"))
    assert line == f"sqt-fast: training needs {said}: pip install 'sqt-fast[train]'"


# Runs ----------------------------------------------------------------------------------------------------------------


def test_what_is_said_of_broken_videos(lists: Path, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqt_fast.train.fit import TrainSummary

    failures = {f"/v/{k:03d}\x1b[31m.mp4": "gone" for k in range(MAX_NAMED + 3)}
    summary = TrainSummary(lists / "out" / "w.safetensors", 2, {"val_top1": 0.5, "val_top5": 1.0}, failures)
    monkeypatch.setattr("sqt_fast.train.fit.train", lambda *args: summary)
    result = sqt("--train", lists / "train.txt", "-o", lists / "out")
    assert result.stdout == f"{lists}/out/w.safetensors: 2 epochs, top1 0.5000, top5 1.0000\n"
    lines = result.stderr.splitlines()
    assert lines[0] == "23 videos could not be read:"
    assert lines[1:-1] == [f"  /v/{k:03d}\\x1b[31m.mp4: gone" for k in range(MAX_NAMED)]
    assert lines[-1] == f"  ... and 3 more: {lists}/out/unreadable.csv"
    monkeypatch.setattr("sqt_fast.train.fit.train", lambda *args: replace(summary, speaks=False))
    assert sqt("--train", lists / "train.txt", "-o", lists / "out").output == ""


@pytest.fixture
def tiny(training_list: Path, tmp_path: Path) -> list[str]:
    """The options of a run of seconds."""
    needs_lightning()
    options = ["--recipe", "motions", "--device", "cpu", "--workers", "0", "--batch-size", "4"]
    options += ["--train", str(training_list), "-o", str(tmp_path / "out"), "--checkpoint-every", "2"]
    return [*options, *(part for setting in TINY for part in ("--set", setting))]


def test_a_run_shows_its_progress_beside_the_result(tiny: list[str], tmp_path: Path, training_list: Path) -> None:
    result = sqt(*tiny, "--val", training_list)
    assert result.exit_code == 0, result.output
    line = result.stdout.splitlines()[-1]
    assert line.startswith(f"{tmp_path}/out/weights.safetensors: 2 epochs, top1 0.")
    assert result.stdout.count("\n") == 1
    assert result.stderr.startswith("13 videos of 13 classes; starts from random weights, seed 0\n")
    assert "Epoch 1/1" in result.stderr


@pytest.mark.usefixtures("heard_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_stopped_run_is_one_line(
    number: signal.Signals, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqt_fast.train.module import ClipClassifier

    real = ClipClassifier.training_step

    def step(self: ClipClassifier, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 3:
            signal.raise_signal(number)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(ClipClassifier, "training_step", step)
    line = refused(sqt(*tiny, "-q"), 1)
    assert line == "sqt-fast: stopped in epoch 1 of 2; the same command goes on from the last checkpoint"
    monkeypatch.undo()
    again = sqt(*tiny, "-q")
    assert again.exit_code == 0
    assert again.stderr == f"13 videos of 13 classes; goes on from {tmp_path}/out/checkpoints/resume.ckpt\n"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("heard_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_processes_that_read_end_with_the_run(number: signal.Signals, tiny: list[str], tmp_path: Path) -> None:
    """A terminal's Ctrl-C goes to all of them, and none has anything to say; if the first is killed, the others end."""
    command = [sys.executable, "-m", "sqt_fast", "train", *tiny, "-q", "--workers", "2", "--set", "epochs=1000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "out" / "checkpoints" / "resume.ckpt"
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
        text=True,
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 100
        while not checkpoint.exists() and time.monotonic() < until and process.poll() is None:
            time.sleep(0.1)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.kill()
        stdout, stderr = process.communicate(timeout=60)  # it ends when no process holds the pipes any more
    assert checkpoint.exists()
    assert stdout == ""
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        assert process.returncode == 1
        lines = stderr.splitlines()
        assert len(lines) == 2
        assert lines[1].startswith("sqt-fast: stopped in epoch ")
    else:
        assert process.returncode == -signal.SIGKILL
