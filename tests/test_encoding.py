"""The sample videos: the pixels do what the label says, and the files hold those pixels at those times."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from sqt_fast.errors import ConfigError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import FORMATS, SampleVideo, make_samples
from sqt_fast.samples.scenes import MOTIONS, Frames, draw, random_scene
from tests.test_scenes import Floats, background_of, track

# What the files hold -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SampleVideo]]:
    directory = tmp_path_factory.mktemp("samples") / "new" / "archive"
    return directory, make_samples(directory, seconds=1.0)


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
    scene, size = random_scene(sample.label, [0, index]), (sample.width, sample.height)
    assert scene.shape == sample.shape
    drawn, background = np.stack(list(draw(scene, seen.times_s, size))), background_of(scene, size)
    assert np.abs(drawn.astype(float) - seen.frames).mean() < 6  # of 255: the codec's loss
    want, have = track(drawn, background), track(seen.frames, background)
    whole = want.whole & (want.area > 300)
    assert whole.any()
    np.testing.assert_allclose(have.x[whole], want.x[whole], atol=1.5)
    np.testing.assert_allclose(have.y[whole], want.y[whole], atol=1.5)


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
    assert [sample.label for sample in made] == [*MOTIONS, *MOTIONS]
    assert len(MOTIONS) == 12
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


def test_missing_encoders_fall_back_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "has_encoder", lambda name: name == "mpeg4")
    for index, sample in enumerate(make_samples(tmp_path, seconds=0.3, count=len(FORMATS))):
        seen = decode(tmp_path / sample.path)
        assert sample.codec == seen.codec == "mpeg4"
        assert len(seen.frames) == sample.num_frames
        assert bool(sample.fallback) == (FORMATS[index].encoder != "mpeg4")
        assert sample.container != "webm"


def test_again_gives_the_same_set(tmp_path: Path) -> None:
    first = make_samples(tmp_path, seed=5, seconds=0.2, count=3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / first[0].path).write_bytes(b"broken")
    (tmp_path / "labels.csv").write_text("old")
    assert make_samples(tmp_path, seed=5, seconds=0.2, count=3) == first
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(before)
    assert (tmp_path / "labels.csv").read_bytes() == before[tmp_path / "labels.csv"]
    assert len(decode(tmp_path / first[0].path).frames) == first[0].num_frames


def test_a_failed_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = make_samples(tmp_path, seconds=0.2, count=1)[0]
    before = (tmp_path / sample.path).read_bytes()

    def fail(path: Path, *rest: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding, "encode_video", fail)
    with pytest.raises(ConfigError, match="No space left"):
        make_samples(tmp_path, seconds=0.2, count=1)
    assert (tmp_path / sample.path).read_bytes() == before
    assert [path.name for path in (tmp_path / sample.path).parent.iterdir()] == [sample.path.name]


def test_nothing_is_printed(tmp_path: Path) -> None:
    """In a process of its own: SVT-AV1 and x265 write past Python, some of it once per process."""
    code = "import sys, pathlib, sqt_fast.samples.encoding as s; s.make_samples(pathlib.Path(sys.argv[1]), seconds=0.2)"
    env = {name: value for name, value in os.environ.items() if name != "SVT_LOG"}
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, env=env, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_environment_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "3")
    make_samples(tmp_path, seconds=0.1, count=1)
    assert os.environ["SVT_LOG"] == "3"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda d: make_samples(d, seconds=0), "above 0", id="no seconds"),
        pytest.param(lambda d: make_samples(d, seconds=-1), "above 0", id="negative seconds"),
        pytest.param(lambda d: make_samples(d, seconds=float("nan")), "above 0", id="nan seconds"),
        pytest.param(lambda d: make_samples(d, seconds=float("inf")), "up to 3600", id="endless"),
        pytest.param(lambda d: make_samples(d, count=0), "1 video or more", id="no videos"),
        pytest.param(lambda d: make_samples(d, seed=-1), "0 or more", id="negative seed"),
        pytest.param(lambda d: make_samples(d / "file"), "name a folder", id="a file"),
        pytest.param(lambda d: make_samples(d / "file" / "below"), "name a folder", id="below a file"),
        pytest.param(lambda d: random_scene("sideways"), "expected one of left, right", id="unknown motion"),
        pytest.param(
            lambda d: next(draw(random_scene("up"), [0.0], (16, 15))), "at least 16x16 pixels", id="too small"
        ),
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
