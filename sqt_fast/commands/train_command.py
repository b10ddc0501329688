"""``sqt-fast train``."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sqt_fast.commands.options import prepare_process
from sqt_fast.errors import ConfigError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
RECIPE_NAMES = ("k400", "k600", "hmdb51", "sthv2", "motions")
MAX_SEED = (1 << 32) - 1
MAX_NAMED = 20  # unreadable videos, of which there may be thousands


@click.command()
@click.option("--recipe", type=click.Choice(RECIPE_NAMES), default="k400", help="Network, augmentation and schedule.")
@click.option(
    "--train",
    "train_list",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="Videos: a list of 'path label' lines, a .csv with path and label, or a folder with one for each class.",
)
@click.option("--val", "val_list", type=click.Path(exists=True, path_type=Path), help="Videos to validate with.")
@click.option(
    "--video-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What paths in lists are relative to.  [default: the folder of the list]",
    show_default=False,
)
@click.option("--label-names", help="Class names: a file with one a line, or a bundled list such as kinetics400.")
@click.option("-o", "--out", "output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder.")
@click.option("--init", help="Weights to start from: a published name, a path, or none.  [default: the recipe's]")
@click.option("--epochs", type=click.IntRange(min=1), help="As --set epochs=N.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Clips a device; as --set batch_size=N.")
@click.option("--ema", type=click.FloatRange(0, 1), help="Decay of averaged weights; as --set ema=D.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Change anything of the recipe.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where it runs.")
@click.option("--devices", type=click.IntRange(min=1), help="How many.  [default: 1, or what torchrun says]")
@click.option("--precision", type=click.Choice(PRECISIONS), default="32-true", help="Of the network.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--accumulate", type=click.IntRange(min=1), default=1, help="Batches a step of the optimiser.")
@click.option("--sync-norm", is_flag=True, help="Batch norms see the batches of all devices (GPUs only).")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, help="Of weights, order, changes and dropout.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that read and decode.  [default: by cores]")
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=500, metavar="STEPS", help="Within an epoch.")
@click.option(
    "--resume", type=click.Choice(["auto", "never"]), default="auto", help="Go on with the run that is in --out."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def train(**options: Any) -> None:
    """Train SqueezeTime on labelled videos; --out/weights.safetensors is then what index and evaluate take.

    Stopped at any moment, the same command goes on where it was.
    """
    prepare_process()
    lists, config = _prepared(**options)
    from sqt_fast.console import counted, printable
    from sqt_fast.train.fit import UNREADABLE
    from sqt_fast.train.fit import train as run

    summary = run(config, lists, lambda line: click.echo(line, err=True))
    if not summary.speaks:
        return
    if count := len(summary.failures):
        click.echo(f"{counted(count, 'video')} could not be read:", err=True)
        for path, reason in sorted(summary.failures.items())[:MAX_NAMED]:
            click.echo(f"  {printable(path)}: {reason}", err=True)
        if count > MAX_NAMED:
            click.echo(f"  ... and {count - MAX_NAMED} more: {summary.weights.parent / UNREADABLE}", err=True)
    scores = [f"{name.removeprefix('val_')} {value:.4f}" for name, value in (summary.metrics or {}).items()]
    click.echo(f"{summary.weights}: " + ", ".join([counted(summary.epochs, "epoch"), *scores]))


def _prepared(
    recipe: str,
    train_list: Path,
    val_list: Path | None,
    video_root: Path | None,
    label_names: str | None,
    settings: tuple[str, ...],
    compiled: bool,
    resume: str,
    device: str,
    **options: Any,
) -> Any:
    """Return the lists and the configuration. Raises ConfigError."""
    _check_installed()
    from sqt_fast.network.class_names import read_labels
    from sqt_fast.train.data import Lists
    from sqt_fast.train.fit import TrainConfig
    from sqt_fast.train.lists import read_list
    from sqt_fast.train.recipes import RECIPES

    chosen = RECIPES[recipe]
    changes = {name: options.pop(name) for name in ("init", "epochs", "batch_size", "ema")}
    chosen = replace(chosen, **{name: value for name, value in changes.items() if value is not None}).changed(settings)
    names = None if label_names is None else read_labels(label_names)
    videos = read_list(train_list, root=video_root, names=names)
    val = None if val_list is None else read_list(val_list, root=video_root, names=videos.names)
    config = TrainConfig(
        recipe=chosen,
        compile=compiled,
        resume=resume == "auto",
        device=None if device == "auto" else device,
        **options,
    )
    return Lists(videos, val), config


def _check_installed() -> None:
    """Raise ConfigError where the extra is missing."""
    from importlib.util import find_spec

    from sqt_fast.pipelines.dali_errors import is_installed

    lacks = [name for name in ("pytorch_lightning", "torchmetrics", "matplotlib") if find_spec(name) is None]
    if lacks or not is_installed():
        lacks += [] if is_installed() else ["DALI"]
        raise ConfigError(f"training needs {', '.join(lacks)}: pip install 'sqt-fast[train]'")
