"""The sample videos: the files hold the pixels of the scenes at their times, in every format and size."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import FORMATS, SampleSet, SampleVideo, make_samples
from sqt_fast.samples.scenes import MOTIONS, SPLITS, Frames, Scene, draw, random_scene
from tests.test_scenes import Floats, background_of, track

CLEAN = SampleSet(seconds=2.0, clean=True)

# What the files hold -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SampleVideo]]:
    directory = tmp_path_factory.mktemp("samples") / "new" / "archive"
    return directory, make_samples(directory, CLEAN)


class Decoded(NamedTuple):
    """One file as PyAV reads it. times_s: from the first frame; frames: as displayed, (F, H, W, 3) RGB."""

    codec: str
    times_s: Floats
    duration_s: float
    frames: Frames


def decode(path: Path) -> Decoded:
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert container.duration is not None
        duration_s = container.duration / 1e6
    times_s = np.array([float(frame.time or 0.0) for frame in frames])
    pixels: Frames = np.stack([np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames])
    return Decoded(stream.codec_context.codec.canonical_name, times_s - times_s[0], duration_s, pixels)


@pytest.mark.parametrize("index", range(24))
def test_file_holds_the_scene(archive: tuple[Path, list[SampleVideo]], index: int) -> None:
    directory, made = archive
    sample, seen = made[index], decode(directory / made[index].path)
    assert seen.codec == sample.codec
    assert seen.frames.shape == (sample.num_frames, sample.height, sample.width, 3)
    assert seen.duration_s == pytest.approx(float(sample.duration_s), abs=0.002)
    assert float(sample.fps) == pytest.approx(sample.num_frames / seen.duration_s, rel=0.003)
    scene, size = CLEAN.scene(index), (sample.width, sample.height)
    assert scene == random_scene(sample.label, [0, index], split="test")
    assert scene.shape == sample.shape
    drawn, background = np.stack(list(draw(scene, seen.times_s, size))), background_of(scene, size)
    assert np.abs(drawn.astype(float) - seen.frames).mean() < 6  # of 255: the codec's loss
    want, have = track(drawn, background), track(seen.frames, background)
    whole = want.whole & (want.area > 300)
    assert whole.any()
    np.testing.assert_allclose(have.x[whole], want.x[whole], atol=1.5)
    np.testing.assert_allclose(have.y[whole], want.y[whole], atol=1.5)


def test_disturbed_files_hold_their_scenes(tmp_path: Path) -> None:
    """The camera where it was and the bar in front; most codecs leave little of noise, Motion JPEG much."""
    wanted = SampleSet(count=12, seconds=0.4, seed=1, split="val")
    seen = {"shake": 0, "noise": 0, "bar": 0}
    for index, sample in enumerate(make_samples(tmp_path, wanted)):
        scene, have = wanted.scene(index), decode(tmp_path / sample.path)
        was = scene.disturbances
        assert sample.shape in SPLITS["val"].shapes
        full, calm, steady = (
            pixels_of(replace(scene, disturbances=each), sample, have.times_s)
            for each in (was, replace(was, noise=0.0), replace(was, noise=0.0, shake=0.0))
        )
        assert have.frames.shape == calm.shape
        assert apart(have.frames, full) < 6 + 0.3 * was.noise
        if was.noise and sample.codec == "mjpeg":
            grains = [(frames.astype(float) - calm).mean(-1).ravel() for frames in (have.frames, full)]
            assert np.corrcoef(grains)[0, 1] > 0.3
            seen["noise"] += 1
        if was.shake * min(sample.width, sample.height) > 2:
            assert apart(have.frames, calm) < 0.8 * apart(have.frames, steady)
            seen["shake"] += 1
        start, end = was.bar
        if end > start:
            turned = have.frames if was.bar_upright else have.frames.swapaxes(1, 2)
            inside = slice(round(start * turned.shape[2]) + 3, round(end * turned.shape[2]) - 3)
            colour = np.median(turned[:, :, inside], axis=(0, 1, 2))
            np.testing.assert_allclose(colour, was.bar_colour, atol=12)
            seen["bar"] += 1
    assert all(seen.values()), seen


def pixels_of(scene: Scene, sample: SampleVideo, times_s: Floats) -> Frames:
    return np.stack(list(draw(scene, times_s, (sample.width, sample.height))))


def apart(one: Frames, other: Frames) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_labels_tell_what_is_on_disk(archive: tuple[Path, list[SampleVideo]]) -> None:
    directory, made = archive
    with (directory / "labels.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert ",".join(header) == "path,label,shape,codec,container,fps,num_frames,width,height,duration_s"
    assert {row[0] for row in rows} == {
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    } - {"labels.csv"}
    for row, sample in zip(rows, made, strict=True):
        texts = (sample.path.as_posix(), sample.label, sample.shape, sample.codec, sample.container)
        numbers = (sample.fps, sample.num_frames, sample.width, sample.height, sample.duration_s)
        assert tuple(row[:5]) == texts
        assert [float(text) for text in row[5:]] == pytest.approx([float(number) for number in numbers], abs=1e-5)
        assert sample.path.suffix == f".{sample.container}"
    assert rows[6][5] == "29.97003"


def test_every_motion_and_format_appears(archive: tuple[Path, list[SampleVideo]]) -> None:
    _, made = archive
    assert [sample.label for sample in made] == [*MOTIONS, *MOTIONS[:8]]
    for sample, wanted in zip(made, FORMATS, strict=False):
        found, lacks = encoding.available_format(wanted)
        assert (sample.container, sample.fallback) == (found.container, lacks)
        assert (sample.width, sample.height) == wanted.size
        assert bool(sample.fallback) == (found != wanted)
    assert len({sample.path.parent for sample in made}) > 3


def test_time_varies_where_it_should(archive: tuple[Path, list[SampleVideo]]) -> None:
    directory, made = archive
    for sample, wanted in zip(made, FORMATS, strict=False):
        steps = np.diff(decode(directory / sample.path).times_s) * float(wanted.fps)
        assert set(np.rint(steps).tolist()) == set(map(float, wanted.ticks)), sample.path
        np.testing.assert_allclose(steps, np.rint(steps), atol=0.06)  # Matroska rounds to milliseconds


@pytest.mark.parametrize("short_side", [64, 100])
def test_every_format_comes_in_any_size(tmp_path: Path, short_side: int) -> None:
    wanted = SampleSet(count=len(FORMATS), seconds=0.4, short_side=short_side, clean=True)
    for index, sample in enumerate(make_samples(tmp_path, wanted)):
        have, (width, height) = decode(tmp_path / sample.path), FORMATS[index].size
        assert have.frames.shape == (sample.num_frames, sample.height, sample.width, 3)
        assert min(sample.width, sample.height) == short_side
        assert sample.width % 2 == sample.height % 2 == 0
        assert sample.width / sample.height == pytest.approx(width / height, rel=1.5 / short_side)
        assert sample.rotation == FORMATS[index].rotation
        assert apart(have.frames, pixels_of(wanted.scene(index), sample, have.times_s)) < 12


def test_sets_differ_in_what_they_say_and_nothing_else() -> None:
    plain = SampleSet()
    assert (plain.count, plain.seconds, plain.split, plain.short_side) == (24, 4.0, "test", None)
    for index in range(18):
        scene = plain.scene(index)
        assert scene.motion == MOTIONS[index % 16]
        assert SampleSet(seconds=1.0, count=2, short_side=64).scene(index) == scene
        assert SampleSet(clean=True).scene(index) == random_scene(scene.motion, [0, index], split="test")
        assert SampleSet(split="val").scene(index).shape in SPLITS["val"].shapes
        assert SampleSet(seed=1).scene(index).phase != scene.phase
        assert plain.format(index) == encoding.available_format(FORMATS[index % 17])


def test_progress_is_told_after_each_file(tmp_path: Path) -> None:
    there: list[int] = []
    wanted = SampleSet(count=3, seconds=0.1, short_side=64)
    made = make_samples(tmp_path, wanted, progress=lambda: there.append(len([*tmp_path.glob("m*/*.m*")])))
    assert len(made) == 3
    assert there == [1, 2, 3]


def test_missing_encoders_fall_back_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "has_encoder", lambda name: name == "mpeg4")
    for index, sample in enumerate(make_samples(tmp_path, SampleSet(seconds=0.3, count=len(FORMATS)))):
        seen = decode(tmp_path / sample.path)
        assert sample.codec == seen.codec == "mpeg4"
        assert len(seen.frames) == sample.num_frames
        assert bool(sample.fallback) == (FORMATS[index].encoder != "mpeg4")
        assert sample.container != "webm"


def test_again_gives_the_same_set(tmp_path: Path) -> None:
    wanted = SampleSet(seed=5, seconds=0.2, count=3)
    first = make_samples(tmp_path, wanted)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / first[0].path).write_bytes(b"broken")
    (tmp_path / "labels.csv").write_text("old")
    assert make_samples(tmp_path, wanted) == first
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)
    assert (tmp_path / "labels.csv").read_bytes() == before[tmp_path / "labels.csv"]
    assert len(decode(tmp_path / first[0].path).frames) == first[0].num_frames


def test_a_failed_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = make_samples(tmp_path, SampleSet(seconds=0.2, count=1))[0]
    before = (tmp_path / sample.path).read_bytes()

    def fail(path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding, "encode_video", fail)
    with pytest.raises(ConfigError, match="No space left"):
        make_samples(tmp_path, SampleSet(seconds=0.2, count=1))
    assert (tmp_path / sample.path).read_bytes() == before
    assert [path.name for path in (tmp_path / sample.path).parent.iterdir()] == [sample.path.name]


def test_nothing_is_printed(tmp_path: Path) -> None:
    """In a process of its own: SVT-AV1 and x265 write past Python, some of it once per process."""
    code = """if True:
        import pathlib, sys
        from sqt_fast.samples.encoding import SampleSet, make_samples
        make_samples(pathlib.Path(sys.argv[1]), SampleSet(seconds=0.2))"""
    env = {name: value for name, value in os.environ.items() if name != "SVT_LOG"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, env=env, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_environment_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "3")
    make_samples(tmp_path, SampleSet(seconds=0.1, count=1))
    assert os.environ["SVT_LOG"] == "3"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda d: SampleSet(seconds=0), "above 0", id="no seconds"),
        pytest.param(lambda d: SampleSet(seconds=-1), "above 0", id="negative seconds"),
        pytest.param(lambda d: SampleSet(seconds=float("nan")), "above 0", id="nan seconds"),
        pytest.param(lambda d: SampleSet(seconds=float("inf")), "up to 3600", id="endless"),
        pytest.param(lambda d: SampleSet(count=0), "1 video or more", id="no videos"),
        pytest.param(lambda d: SampleSet(seed=-1), "0 or more", id="negative seed"),
        pytest.param(lambda d: SampleSet(short_side=62), "short side 62: .* 64 or more", id="too small"),
        pytest.param(lambda d: SampleSet(short_side=65), "short side 65: .* even", id="odd"),
        pytest.param(lambda d: SampleSet(split="tset"), "split tset: expected one of train, val, test", id="split"),
        pytest.param(lambda d: make_samples(d / "file"), "name a folder", id="a file"),
        pytest.param(lambda d: make_samples(d / "file" / "below"), "name a folder", id="below a file"),
    ],
)
def test_refusals_say_what_is_allowed(call: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(ConfigError, match=message):
        call(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_frames_follow_each_other_without_gaps() -> None:
    edges = encoding.frame_edges(FORMATS[7], 2.0, [0])
    assert edges[0] == 0
    assert edges[-1] == 120
    assert all(later > earlier for earlier, later in pairwise(edges))
