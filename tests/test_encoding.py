"""The sample videos: the pixels do what the label says, and the files hold those pixels at those times."""

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sqt_fast.errors import ConfigError
from sqt_fast.samples import encoding
from sqt_fast.samples.encoding import FORMATS, SampleVideo, make_samples
from sqt_fast.samples.scenes import MOTIONS, Frames, Scene, draw, random_scene, render

FPS, NUM_FRAMES, SIZE = 20, 80, (160, 120)
SEEDS = range(4)
Floats = NDArray[np.floating[Any]]


# What the pixels show ------------------------------------------------------------------------------------------------


class Track(NamedTuple):
    """Measured from pixels, per frame (F,): centre and area of the shape, and whether all of it is in the frame."""

    x: Floats
    y: Floats
    area: Floats
    whole: NDArray[np.bool_]

    @property
    def steps(self) -> tuple[Floats, Floats]:
        """Movement in x and y between consecutive frames that both show the whole shape."""
        both = self.whole[1:] & self.whole[:-1]
        return np.diff(self.x)[both], np.diff(self.y)[both]


def background_of(scene: Scene, size: tuple[int, int]) -> Frames:
    return next(draw(replace(scene, motion="still", opacity=0.0), [0.0], size))


def track(frames: Frames, background: Frames) -> Track:
    masks = np.abs(frames.astype(np.int64) - background).sum(-1) > 90
    area = masks.sum((1, 2)).astype(float)
    rows, columns = np.mgrid[: masks.shape[1], : masks.shape[2]]
    with np.errstate(invalid="ignore"):  # no shape: no centre
        x, y = (masks * columns).sum((1, 2)) / area, (masks * rows).sum((1, 2)) / area
    border = masks[:, [0, -1]].any((1, 2)) | masks[:, :, [0, -1]].any((1, 2))
    return Track(x, y, area, ~border & (area > 0))


def shown(motion: str, seed: int) -> tuple[Scene, Frames, Track]:
    scene = random_scene(motion, seed)
    frames = render(motion, num_frames=NUM_FRAMES, fps=FPS, size=SIZE, seed=seed)
    return scene, frames, track(frames, background_of(scene, SIZE))


def dot_angles(scene: Scene, frames: Frames, x: float, y: float) -> Floats:
    """Directions of the dark dot seen from (x, y), radians, clockwise on the screen, (F,)."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    near = np.hypot(columns - x, rows - y) < 0.5 * scene.radius * min(SIZE)
    dots = near & (np.abs(frames - np.array(scene.dot_colour)).sum(-1) < 60)
    return np.array([np.arctan2((rows - y)[dot].mean(), (columns - x)[dot].mean()) for dot in dots])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("motion", "sign_x", "sign_y"), [("left", -1, 0), ("right", 1, 0), ("up", 0, -1), ("down", 0, 1)]
)
def test_slides_move_one_way_and_come_back(motion: str, sign_x: int, sign_y: int, seed: int) -> None:
    _, _, seen = shown(motion, seed)
    for steps, sign in zip(seen.steps, (sign_x, sign_y), strict=True):
        assert len(steps) > NUM_FRAMES / 3
        assert (steps * sign > 1).all() if sign else (np.abs(steps) < 0.5).all()
    starts = seen.whole[1:] & ~seen.whole[:-1]
    assert starts.sum() >= 1, "the shape never came back"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("clockwise", 1), ("anticlockwise", -1)])
def test_spins_turn_one_way_on_the_spot(motion: str, sign: int, seed: int) -> None:
    scene, frames, _ = shown(motion, seed)
    reach = scene.radius * min(SIZE)
    x, y = (place * (side + 2 * reach) - reach - 0.5 for place, side in zip((scene.x, scene.y), SIZE, strict=True))
    turned = np.unwrap(dot_angles(scene, frames, x, y))
    assert turned[-1] - turned[0] == pytest.approx(sign * 2 * np.pi * scene.rate_hz * (NUM_FRAMES - 1) / FPS, abs=0.2)
    assert (np.diff(turned) * sign > 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_sizes_change_one_way_and_restart(motion: str, sign: int, seed: int) -> None:
    _, _, seen = shown(motion, seed)
    ratio = np.diff(np.log(seen.area)) * sign
    assert seen.whole.all()
    assert seen.area.max() > 8 * seen.area.min()
    assert 1 <= (ratio < 0).sum() <= 4, "not a sawtooth"
    assert (ratio[ratio < 0] < -1.5).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_still_is_still(seed: int) -> None:
    _, frames, seen = shown("still", seed)
    assert seen.whole.all()
    assert (frames == frames[0]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_bounce_falls_and_rises(seed: int) -> None:
    _, _, seen = shown("bounce", seed)
    bend = np.diff(seen.y, 2)
    assert seen.whole.all()
    assert np.ptp(seen.y) > 0.3 * SIZE[1]
    assert np.ptp(seen.x) < 0.5
    assert (bend > 0).mean() > 0.8, "free fall bends downwards, except where it meets the floor"


@pytest.mark.parametrize("seed", SEEDS)
def test_shake_turns_back_twice_per_repetition(seed: int) -> None:
    scene, _, seen = shown("shake", seed)
    turns = (np.diff(np.sign(np.diff(seen.x))) != 0).sum()
    assert turns == pytest.approx(2 * scene.rate_hz * NUM_FRAMES / FPS, abs=3)
    assert np.ptp(seen.x) > 0.08 * SIZE[0]
    assert np.ptp(seen.y) < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_blink_is_there_half_the_time(seed: int) -> None:
    scene, _, seen = shown("blink", seed)
    there = seen.area > 0
    assert len(set(seen.area[there])) == 1
    assert 0.35 < there.mean() < 0.65
    assert (there[1:] != there[:-1]).sum() == pytest.approx(2 * scene.rate_hz * NUM_FRAMES / FPS, abs=1)


def test_render_depends_on_its_arguments_only() -> None:
    frames = render("left", num_frames=3, fps=Fraction(30000, 1001), size=(64, 48), seed=[7, 1])
    again = render("left", num_frames=3, fps=Fraction(30000, 1001), size=(64, 48), seed=[7, 1])
    alone = next(draw(random_scene("left", [7, 1]), [2 * 1001 / 30000], (64, 48)))
    other = render("left", num_frames=3, fps=Fraction(30000, 1001), size=(64, 48), seed=[7, 2])
    assert frames.shape == (3, 48, 64, 3)
    assert frames.dtype == np.uint8
    assert (frames == again).all()
    assert (frames[2] == alone).all()
    assert (frames != other).any(-1).mean() > 0.9


def test_edges_are_anti_aliased_and_areas_right() -> None:
    scene = replace(random_scene("still", 0), radius=0.3, x=0.5, y=0.5, colour=(255,) * 3, dot_colour=(255,) * 3)
    expected = {"circle": np.pi, "square": 2.0, "triangle": 3**1.5 / 4, "star": 5 * 0.5 * np.sin(np.pi / 5)}
    expected["cross"] = 4 * 0.66 * (0.94 - 0.33) + 0.66**2
    for shape, area in expected.items():
        frame, background = (next(draw(replace(scene, shape=shape, opacity=o), [0.0], (200, 200))) for o in (1.0, 0.0))
        cover = (frame.astype(float) - background) / (255.0 - background)
        assert cover.mean(-1).sum() == pytest.approx(area * 60**2, rel=0.005), shape
        assert ((cover > 0.2) & (cover < 0.8)).any(-1).sum() > 50, shape


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
        pytest.param(lambda d: render("up", num_frames=0, fps=1, size=(16, 16)), "at least 1 frame", id="no frames"),
        pytest.param(lambda d: render("up", num_frames=1, fps=0, size=(16, 16)), "a rate above 0", id="no rate"),
        pytest.param(lambda d: render("up", num_frames=1, fps=1, size=(16, 15)), "at least 16x16", id="too small"),
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
