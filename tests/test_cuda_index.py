"""The whole program, from files to the table, by every decoder: the same rows, times and labels."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("nvidia.dali", reason="DALI is not installed")
pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("cv2", reason="OpenCV is not installed")

import sqt_fast
from sqt_fast.samples.encoding import SampleSet, make_samples
from tests.tables import read_table

# What the decoder must not change: which file, which window, when, and what the file is.
FRAMES = ("start_s", "end_s", "start_frame", "end_frame", "num_frames")
SAME = ("path", "status", "clip_index", "codec", "rotation", *FRAMES)
# Pixels differ by a level or two, and so may the labels of windows that are in doubt.
SAME_LABELS, SAME_SCORES = 0.9, 0.05


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos in all formats, those that no GPU decodes among them."""
    folder = tmp_path_factory.mktemp("samples")
    make_samples(folder, SampleSet(count=24, seconds=4.0))
    return folder


def labelled(samples: Path, decoder: str, device: str) -> dict[str, list[object]]:
    """Return the columns of the table that ``sqt-fast index`` makes."""
    output = samples.parent / f"{samples.name} {decoder} {device}.parquet"
    summary = sqt_fast.index(
        samples, output, weights="motions", device=device, decoder=decoder, backend="eager", precision="fp32"
    )
    assert summary.failed == 0
    table, _ = read_table(output)
    return {name: table[name].to_pylist() for name in table.column_names}


def assert_alike(found: dict[str, list[object]], wanted: dict[str, list[object]]) -> None:
    """Check that two tables differ by no more than their pixels may explain."""
    for name in SAME:
        assert found[name] == wanted[name], name
    pairs = list(zip(found["label"], wanted["label"], strict=True))
    assert sum(a == b for a, b in pairs) >= SAME_LABELS * len(pairs)
    scores = [torch.tensor(columns["score"], dtype=torch.float64) for columns in (found, wanted)]
    assert (scores[0] - scores[1]).abs().mean() <= SAME_SCORES


@pytest.mark.needs_cuda
@pytest.mark.parametrize("decoder", ["nvdec", "auto"])
def test_the_gpus_decoders_give_the_hosts_table(samples: Path, decoder: str) -> None:
    found, wanted = (labelled(samples, name, "cuda") for name in (decoder, "cpu"))
    assert_alike(found, wanted)
    assert set(map(str, wanted["decoder"])) == {"cpu"}
    used = set(zip(found["codec"], found["decoder"], strict=True))
    assert ("h264", "nvdec") in used
    assert {decoder for codec, decoder in used if codec == "mpeg2video"} == {"cpu"}  # not decoded on any GPU


@pytest.mark.needs_cuda
def test_a_gpu_gives_the_cpus_table(samples: Path) -> None:
    assert_alike(labelled(samples, "cpu", "cuda"), labelled(samples, "cpu", "cpu"))


@pytest.mark.exhaustive
def test_without_a_gpu_both_are_the_hosts(samples: Path) -> None:
    """And what is compared above can differ: another table is not alike."""
    found, wanted = (labelled(samples, name, "cpu") for name in ("auto", "cpu"))
    assert_alike(found, wanted)
    assert found == wanted
    with pytest.raises(AssertionError, match="start_s"):
        assert_alike({**found, "start_s": [0.0] * len(found["start_s"])}, wanted)
    with pytest.raises(AssertionError):
        assert_alike({**found, "label": found["label"][::-1]}, wanted)
