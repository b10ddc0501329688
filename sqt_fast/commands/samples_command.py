"""``sqt-fast sample-videos``."""

from pathlib import Path
from typing import Any

import click

SPLIT_NAMES = ("train", "val", "test")
MANY = 50  # videos, from which on progress is shown


@click.command("sample-videos")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-n", "--count", type=click.IntRange(min=1), default=24, help="How many videos.")
@click.option("--seconds", type=float, default=4.0, help="Length of each video.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The same seed makes the same pictures.")
@click.option(
    "--split",
    type=click.Choice(SPLIT_NAMES),
    default="test",
    help="Of the motions data set: no shape and no kind of background is in two of them.",
)
@click.option("--short-side", type=int, metavar="PIXELS", help="Of every video.  [default: that of its format]")
@click.option("--clean", is_flag=True, help="No noise, no shaking camera, nothing in front.")
def sample_videos(directory: Path, **options: Any) -> None:
    """Make videos of moving shapes in many codecs, with the truth in DIRECTORY/labels.csv.

    They are the motions data set: 16 classes, of which 12 are 6 pairs that differ in the order of time alone.
    """
    from rich.console import Console
    from rich.progress import Progress

    from sqt_fast.samples.encoding import SampleSet, make_samples

    wanted = SampleSet(**options)
    with Progress(console=Console(stderr=True), disable=wanted.count < MANY) as bar:
        task = bar.add_task("videos", total=wanted.count)
        samples = make_samples(directory, wanted, progress=lambda: bar.advance(task))
    click.echo(f"{len(samples)} video{'s' * (len(samples) != 1)} in {directory}")
    for sample in samples:
        if sample.fallback:
            click.echo(f"{sample.path}: {sample.fallback}", err=True)
