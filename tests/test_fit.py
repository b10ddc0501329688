"""Whole runs of a tiny network: killed and resumed, on two devices, with broken files, stopped by signals."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("pytorch_lightning", reason="Lightning trains: pip install 'sqt-fast[train]'")
pytest.importorskip("nvidia.dali", reason="DALI makes the clips: pip install 'sqt-fast[train]'")

from matplotlib.image import imread
from safetensors.torch import load_file

import sqt_fast
from sqt_fast.errors import ConfigError, InterruptedRunError, OutputError
from sqt_fast.files import replace_file
from sqt_fast.network.checkpoint import read_checkpoint
from sqt_fast.network.metadata import read_metadata
from sqt_fast.network.protocols import find_protocol
from sqt_fast.network.weights import load_weights
from sqt_fast.train.lists import LabelledVideos
from tests.tables import read_table
from tests.training import TINY, Killed, Stop, broken, run, videos_in

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def videos(training_list: Path) -> LabelledVideos:
    return videos_in(training_list)


def states(output: Path) -> dict[str, torch.Tensor]:
    """Return everything that a run has made of its weights."""
    checkpoint = torch.load(output / "checkpoints" / "resume.ckpt", weights_only=True)
    found = {f"final {name}": tensor for name, tensor in load_file(output / "weights.safetensors").items()}
    for part in ("state_dict", "current_model_state"):
        found |= {f"{part} {name}": tensor for name, tensor in checkpoint.get(part, {}).items()}
    momenta = checkpoint["optimizer_states"][0]["state"]
    return found | {f"momentum {k}": state["momentum_buffer"] for k, state in momenta.items()}


def validations(output: Path) -> list[tuple[str, ...]]:
    """Return epoch, step and results of every validation in the logs of all starts."""
    rows = []
    for start in range(len(list((output / "logs").iterdir()))):
        path = output / "logs" / f"version_{start}" / "metrics.csv"
        if path.exists():
            with path.open(newline="") as file:
                rows += [row for row in csv.DictReader(file) if row.get("val_top1")]
    return [tuple(row[name] for name in ("epoch", "step", "val_top1", "val_top5", "val_mean_class")) for row in rows]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


# Resuming ------------------------------------------------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"recipe": replace(TINY, ema=0.7)},
    "frozen norms": {"recipe": replace(TINY, frozen_norm=True)},
    "two batches a step": {"accumulate": 2},
    "no validation": {"recipe": replace(TINY, ema=0.7), "val": False},
}


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory, training_list: Path) -> Any:
    """Uninterrupted runs, each made once: (summary, states, validations) by its way."""
    done: dict[str, tuple[Any, ...]] = {}

    def get(way: str) -> tuple[Any, ...]:
        if way not in done:
            folder = tmp_path_factory.mktemp("through")
            summary = run(folder, videos_in(training_list), **WAYS[way])
            done[way] = summary, states(folder), validations(folder)
        return done[way]

    return get


MANY = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("way", "stop", "every"),
    [
        pytest.param("plain", Stop(1, 1), 500, id="from the end of an epoch"),
        pytest.param("averaged", Stop(1, 1, validating=True), 4, id="in a validation after a checkpoint's turn"),
        pytest.param("plain", Stop(1, 2), 3, id="within an epoch", marks=MANY),
        pytest.param("frozen norms", Stop(1, 3), 2, id="frozen norms", marks=MANY),
        pytest.param("two batches a step", Stop(1, 1), 2, id="gradients wait", marks=MANY),
        pytest.param("no validation", Stop(1, 0), 500, id="no validation", marks=MANY),
        pytest.param("no validation", Stop(1, 3), 3, id="no validation, within an epoch", marks=MANY),
        pytest.param("averaged", Stop(0, 0, validating=True), 3, id="in the first validation", marks=MANY),
        pytest.param("plain", Stop(0, 1), 1, id="after the first step", marks=MANY),
        pytest.param("plain", Stop(0, 0), 1, id="before any checkpoint", marks=MANY),
        pytest.param("two batches a step", Stop(1, 2), 1, id="two batches a step", marks=MANY),
    ],
)
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    way: str, stop: Stop, every: int, videos: LabelledVideos, tmp_path: Path, through: Any
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, videos, stop=stop, checkpoint_every=every, **WAYS[way])
    resumed = run(tmp_path, videos, checkpoint_every=every, **WAYS[way])
    summary, truth, validated = through(way)
    assert equal(states(tmp_path), truth)
    assert validations(tmp_path) == validated
    assert resumed.metrics == summary.metrics
    assert (resumed.epochs, resumed.failures) == (2, {})


def test_a_run_that_is_complete_is_left_as_it_is(
    videos: LabelledVideos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are the averaged ones again, and its pictures are there."""
    way: dict[str, Any] = {"recipe": replace(TINY, ema=0.7, epochs=1), "val": False}
    first = run(tmp_path, videos, draw=True, **way)
    before = states(tmp_path)
    assert not before["final conv1.weight"].equal(before["current_model_state model.conv1.weight"])
    (tmp_path / "curves.png").unlink()
    monkeypatch.setattr(
        "sqt_fast.train.module.ClipClassifier.training_step", lambda *args: pytest.fail("trained again")
    )
    assert run(tmp_path, videos, draw=True, **way) == first
    assert equal(states(tmp_path), before)
    assert (tmp_path / "curves.png").is_file()


def test_a_process_that_was_killed(training_list: Path, videos: LabelledVideos, tmp_path: Path, through: Any) -> None:
    """By SIGKILL, in the middle of an epoch; the same command then goes on, bit for bit."""
    command = [sys.executable, "-m", "tests.training", str(training_list), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "here\n"
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "weights.safetensors").exists()
    run(tmp_path, videos, checkpoint_every=2)
    assert equal(states(tmp_path), through("plain")[1])


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"lr": 0.5}, {}, "lr 0.05, now 0.5"),
        ({"scales": (1.0, 0.5)}, {"seed": 3}, "scales [1.0, 0.875, 0.75], now [1.0, 0.5]; seed 0, now 3"),
        ({}, {"accumulate": 2}, "accumulate 1, now 2"),
    ],
    ids=["recipe", "several", "accumulate"],
)
def test_other_settings_are_refused_with_both_values(
    changes: dict[str, Any], settings: dict[str, Any], said: str, videos: LabelledVideos, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, videos, stop=Stop(0, 2), checkpoint_every=1)
    with pytest.raises(ConfigError) as caught:
        run(tmp_path, videos, checkpoint_every=1, recipe=replace(TINY, **changes), **settings)
    wanted = f"{tmp_path}: holds a run of other settings ({said}); choose another --out, or --resume never"
    assert str(caught.value) == wanted


def test_another_list_is_refused(videos: LabelledVideos, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, videos, stop=Stop(0, 2), checkpoint_every=1)
    for other in (
        replace(videos, labels=videos.labels[::-1]),
        replace(videos, paths=videos.paths[::-1]),
        replace(videos, paths=videos.paths[1:], labels=videos.labels[1:]),
    ):
        with pytest.raises(ConfigError, match=r"other settings \(videos 13, hash .{8}, now 1[23], hash .{8}\)"):
            run(tmp_path, other)
    with pytest.raises(ConfigError, match=r"other settings \(classes .*, now "):
        run(tmp_path, replace(videos, names=(*videos.names[1:], "other")))
    moved = replace(videos, paths=tuple(f"/elsewhere/{Path(path).name}" for path in videos.paths))
    with pytest.raises(sqt_fast.VideoError, match="100 videos in a row cannot be read"):  # accepted, but not there
        run(tmp_path, moved)


def test_a_folder_can_be_used_anew(videos: LabelledVideos, tmp_path: Path, through: Any) -> None:
    """Nothing of the run that was there is left: not its place, its best weights, or its curves."""
    run(tmp_path, videos, recipe=replace(TINY, lr=1e-6, epochs=1))
    run(tmp_path, videos, resume=False)
    assert equal(states(tmp_path), through("plain")[1])
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["first_log"], settings["settings"]["lr"]) == (1, 0.05)


@pytest.mark.parametrize("content", ["", "{}", '{"settings": 3'])
def test_settings_that_cannot_be_read(content: str, videos: LabelledVideos, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "resume.ckpt").touch()
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ConfigError, match=f"output {tmp_path}: cannot be used .*; choose another folder"):
        run(tmp_path, videos)


def test_a_folder_that_cannot_be(videos: LabelledVideos, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/out: cannot be used \(not a directory\); choose another folder"):
        run(tmp_path / "file" / "out", videos)


# Stopped -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signal(Stop):
    """Sends a signal to the process."""

    number: int = signal.SIGINT

    def here(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.usefixtures("heard_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_run_that_was_stopped_can_be_resumed(
    number: signal.Signals, videos: LabelledVideos, tmp_path: Path, through: Any
) -> None:
    """In a program that has no handlers of its own: SIGTERM waits for the end of the batch."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(InterruptedRunError) as caught:
        run(tmp_path, videos, stop=Signal(1, 3, number=number), checkpoint_every=2)
    assert str(caught.value) == "stopped in epoch 2 of 2; the same command goes on from the last checkpoint"
    assert {n: signal.getsignal(n) for n in before} == before
    run(tmp_path, videos, checkpoint_every=2)
    assert equal(states(tmp_path), through("plain")[1])


def test_a_full_disk_ends_in_words_and_leaves_the_checkpoint(
    videos: LabelledVideos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through: Any
) -> None:
    writes = iter([None] * 3)

    def full(path: Path, write: Any) -> None:
        if next(writes, "full") == "full":
            raise OSError(28, "No space left on device")
        replace_file(path, write)

    monkeypatch.setattr("sqt_fast.train.trainer.replace_file", full)
    with pytest.raises(OutputError) as caught:
        run(tmp_path, videos, checkpoint_every=2)
    said = "resume.ckpt: cannot be written (no space left on device); the same command goes on when it can"
    assert str(caught.value).endswith(said)
    monkeypatch.undo()
    run(tmp_path, videos, checkpoint_every=2)
    assert equal(states(tmp_path), through("plain")[1])


# What comes out ------------------------------------------------------------------------------------------------------


def best(output: Path) -> Any:
    return torch.load(output / "checkpoints" / "best.ckpt", weights_only=True)


def test_weights_are_what_index_takes(videos: LabelledVideos, tmp_path: Path) -> None:
    summary = run(tmp_path / "out", videos, recipe=replace(TINY, epochs=1))
    loaded = load_weights(str(summary.weights))
    assert loaded.labels == videos.names
    assert loaded.labels_source == "the metadata of the checkpoint"
    assert (loaded.model.config.depth, loaded.model.config.width) == (10, 0.25)
    fast, official = (find_protocol(name, str(summary.weights)) for name in ("fast", "official"))
    assert (fast.short_side, fast.crop_size, fast.num_clips) == (40, 32, None)
    assert official == TINY.official
    about = read_metadata(summary.weights)
    assert json.loads(about["recipe"]) == json.loads(json.dumps(asdict(replace(TINY, epochs=1))))
    assert (about["seed"], about["train_videos"], about["sqt_fast"]) == ("0", "13", sqt_fast.__version__)
    assert json.loads(about["validation"]) == summary.metrics

    table = tmp_path / "t.csv"
    options = {"weights": str(summary.weights), "device": "cpu", "backend": "eager", "precision": "fp32"}
    done = sqt_fast.index(videos.paths[1], table, batch_size=1, **options)
    assert (done.videos, done.failed) == (1, 0)
    (row,) = read_table(table)[0].to_pylist()
    assert row["status"] == "ok"
    assert row["label"] in videos.names


def test_metrics_are_those_of_the_weights_that_are_kept(videos: LabelledVideos, tmp_path: Path) -> None:
    from sqt_fast.train.clip_source import ClipSource
    from sqt_fast.train.loader import ClipLoader, open_clips

    summary = run(tmp_path, videos, draw=True)
    source = ClipSource(replace(videos, paths=videos.paths[:6], labels=videos.labels[:6]), TINY, 6, training=False)
    (batch,) = ClipLoader(source, open_clips(device_id=None, num_workers=0, num_threads=1))
    with torch.inference_mode():
        hits = load_weights(str(summary.weights)).model(batch.clips).argmax(1) == batch.labels
    assert summary.metrics["val_top1"] == pytest.approx(float(hits.float().mean()))
    for name in ("curves.png", "confusion.png"):
        assert imread(tmp_path / name).shape[0] > 300


def test_the_best_weights_are_kept(videos: LabelledVideos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the epoch in which all was right, of four; the first of equals; also by a run that was resumed."""
    right, wrong = torch.eye(13, dtype=torch.int64), torch.eye(13, dtype=torch.int64).roll(1, 0)
    found = iter([wrong, right, right, wrong])
    monkeypatch.setattr("torchmetrics.classification.MulticlassConfusionMatrix.compute", lambda self: next(found))
    with pytest.raises(Killed):
        run(tmp_path, videos, recipe=replace(TINY, epochs=4), stop=Stop(2, 1))
    summary = run(tmp_path, videos, recipe=replace(TINY, epochs=4))
    assert (summary.metrics["val_top1"], summary.metrics["val_mean_class"]) == (1, 1)
    assert best(tmp_path)["epoch"] == 1
    kept, state = load_file(summary.weights), best(tmp_path)["state_dict"]
    assert all(tensor.equal(state[f"model.{name}"]) for name, tensor in kept.items())


def test_a_checkpoint_of_the_run_is_a_checkpoint_of_the_network(videos: LabelledVideos, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, videos, stop=Stop(0, 2), checkpoint_every=1)
    path = tmp_path / "checkpoints" / "resume.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    found = read_checkpoint(path)
    assert {f"model.{name}" for name in found} == set(state)
    assert all(tensor.equal(state[f"model.{name}"]) for name, tensor in found.items())
    resumed_elsewhere = run(tmp_path / "more", videos, recipe=replace(TINY, init=str(path), epochs=1), val=False)
    assert resumed_elsewhere.metrics is None


def test_one_video_in_twenty_may_be_broken(videos: LabelledVideos, tmp_path: Path) -> None:
    """Here one of 13 to train with; it is validated with too."""
    sick = broken(videos, [4], tmp_path)
    path = f"{tmp_path}/broken-4.mp4"
    with pytest.raises(Killed):
        run(tmp_path / "out", sick, stop=Stop(1, 0))
    summary = run(tmp_path / "out", sick)  # what was met before the run was killed is known yet
    assert summary.failures == {path: "not a video: a text file"}
    with (tmp_path / "out" / "unreadable.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["path", "reason"], [path, "not a video: a text file"]]
    assert summary.epochs == 2
    assert best(tmp_path / "out")["validation"]["matrix"].sum() == 5


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": replace(TINY, epochs=1, mixup=0.4, cutmix=1.0, label_smoothing=0.1)},
        {"recipe": replace(TINY, epochs=1, clip_norm=0.0)},
        {"precision": "bf16-mixed", "recipe": replace(TINY, epochs=1, ema=0.9)},
    ],
    ids=["mixed", "no clipping", "bf16 and ema"],
)
def test_other_ways_run(settings: dict[str, Any], videos: LabelledVideos, tmp_path: Path) -> None:
    summary = run(tmp_path, videos, **settings)
    assert 0 <= summary.metrics["val_top1"] <= 1
    assert all(tensor.isfinite().all() for tensor in load_file(summary.weights).values())


def test_norms_are_measured_anew(videos: LabelledVideos, tmp_path: Path) -> None:
    """Weights are the same; the first norm's mean is that of what it sees of the first two batches."""
    from sqt_fast.train.clip_source import ClipSource
    from sqt_fast.train.loader import ClipLoader, open_clips

    plain, precise = (
        load_file(run(tmp_path / str(count), videos, recipe=replace(TINY, epochs=1, precise_norm=count)).weights)
        for count in (0, 2)
    )
    statistics = {name for name in plain if name.rpartition(".")[2] in ("running_mean", "running_var")}
    others = {name for name in plain if not plain[name].equal(precise[name])}
    assert statistics <= others <= statistics | {name for name in plain if name.endswith("num_batches_tracked")}
    loader = ClipLoader(ClipSource(videos, TINY, 4), open_clips(device_id=None, num_workers=0, num_threads=1))
    seen = [
        torch.nn.functional.conv2d(b.clips, plain["conv1.weight"], stride=2, padding=2)
        for b, _ in zip(loader, "ab", strict=False)
    ]
    wanted = torch.stack([conv.mean((0, 2, 3)) for conv in seen]).mean(0)
    torch.testing.assert_close(precise["bn1.running_mean"], wanted, atol=1e-4, rtol=1e-4)


# Several devices -----------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_two_devices_are_one_with_the_same_global_batch(training_list: Path, tmp_path: Path) -> None:
    """As processes of a command; what they could not read is gathered, and one speaks for both."""
    videos = videos_in(training_list)
    (tmp_path / "bad.mp4").write_text("no video")
    rows = [f"{path},{videos.names[label]}" for path, label in zip(videos.paths, videos.labels, strict=True)]
    rows[5] = f"{tmp_path}/bad.mp4,{videos.names[videos.labels[5]]}"
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
    settings = {"width": 0.25, "pos_dim": "8,4,2,1", "crop_size": 32, "short_side": 40, "epochs": 2, "dropout": 0}
    common = [
        sys.executable,
        "-m",
        "sqt_fast",
        "train",
        "--recipe",
        "motions",
        "--device",
        "cpu",
        "-q",
        "--workers",
        "0",
    ]
    common += ["--train", str(tmp_path / "list.csv"), "--val", str(tmp_path / "list.csv")]
    for name, value in (settings | {"frozen_norm": "true", "lr_batch": 4, "warmup_epochs": 0}).items():
        common += ["--set", f"{name}={value}"]
    outputs = []
    for devices, batch_size in ((1, 4), (2, 2)):
        out = tmp_path / str(devices)
        options = ["--out", str(out), "--devices", str(devices), "--batch-size", str(batch_size)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*common, *options], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"{out}/weights.safetensors: 2 epochs, top1 0.")
        assert done.stderr.count("1 video could not be read:") == 1
        outputs.append(out)
    one, two = (load_file(out / "weights.safetensors") for out in outputs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-5, rtol=2e-4)
    metrics = [json.loads(read_metadata(out / "weights.safetensors")["validation"]) for out in outputs]
    assert metrics[0] == pytest.approx(metrics[1])
    refused = subprocess.run(
        [*common, "--out", str(outputs[1]), "--devices", "1", "--batch-size", "2"],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=100, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "holds a run of other settings (devices 2, now 1); choose another --out" in refused.stderr
