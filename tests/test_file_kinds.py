"""No picture is lost in silence, whatever the times in a file say."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sqt_fast.video.cpu_decoder import DecodeReport
from tests.file_kinds import CLOCKED, FPS, FileKind, all_pictures, digest, file_kinds, frames_of, outcome, recording
from tests.restamp import restamp
from tests.videos import KINDS, look

pytestmark = pytest.mark.usefixtures("quiet_ffmpeg")

# What the decoder does with these, tests/test_segments.py compares with FFmpeg picture by picture.
OTHERS = [kind for kind in file_kinds() if kind.name not in KINDS]
SOUND = [kind for kind in OTHERS if kind.damaged_from is None]
DAMAGED = [kind for kind in OTHERS if kind.damaged_from is not None]


@pytest.mark.parametrize("kind", SOUND, ids=lambda kind: kind.name)
def test_every_picture_is_found_once(kind: FileKind, tmp_path: Path) -> None:
    seen = outcome(kind.make(tmp_path))
    assert seen.there > 0
    assert (seen.found, seen.lost, seen.said) == (seen.there, 0, "")


@pytest.mark.parametrize("kind", DAMAGED, ids=lambda kind: kind.name)
def test_what_is_lost_is_said(kind: FileKind, tmp_path: Path) -> None:
    seen = outcome(kind.make(tmp_path))
    assert seen.said != "" or seen.found == kind.damaged_from  # of some only the index is cut


@pytest.mark.exhaustive
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_times_of_any_kind_lose_no_picture(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Stretches of a recording, each with its own idea of the time."""
    container = data.draw(st.sampled_from(CLOCKED))
    starts = sorted(data.draw(st.sets(st.integers(1, 59), max_size=4)) | {0})
    shifts_s = [data.draw(st.sampled_from((0.0, -1.0, -0.12, 0.5, 5.0))) for _ in starts]
    speeds = [data.draw(st.sampled_from((1.0, 1.0, 0.0, 0.5, -1.0))) for _ in starts]

    def stamp(rank: int, time_s: float) -> float:
        part = sum(start <= rank for start in starts) - 1
        begun_s = starts[part] / FPS
        return max(0.0, 1 + begun_s + shifts_s[part] + speeds[part] * (time_s - begun_s))

    folder = tmp_path_factory.mktemp("times")
    path = recording(folder, container, b_frames=data.draw(st.sampled_from((0, 2))), frames=60)
    restamp(path, stamp)
    there = Counter(all_pictures(path))
    facts = look(path)
    found = frames_of(facts, DecodeReport())
    assert facts.num_frames == there.total() == len(found)
    assert Counter(digest(image) for image in found.values()) == there
    assert (facts.times_s[1:] > facts.times_s[:-1]).all()
