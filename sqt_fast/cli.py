"""The command line: options in, one function called, results out.

Heavy imports wait inside the commands, so that ``--help`` is quick. Options that several have are in ``options.py``.
"""

import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sqt_fast import __version__
from sqt_fast.commands.engine_commands import build_engine, engines, export_onnx
from sqt_fast.commands.evaluate_command import evaluate
from sqt_fast.commands.options import WEIGHTS_HELP, decided, prepare_process, running_options
from sqt_fast.commands.samples_command import sample_videos
from sqt_fast.commands.train_command import train
from sqt_fast.config import PROTOCOLS, IndexConfig
from sqt_fast.errors import ConfigError, InterruptedRunError, SqtError
from sqt_fast.network.registry import PRECISIONS


class _Interrupt:
    """Ctrl-C, or a scheduler's stop. Remembered: torch turns an interrupt inside it into errors of other kinds."""

    happened = False

    def __call__(self, number: int, frame: object) -> None:
        del number, frame
        self.happened = True
        raise KeyboardInterrupt


class _Group(click.Group):
    """Turns expected failures into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.obj = interrupt = _Interrupt()
        try:
            return super().invoke(ctx)
        except (SqtError, KeyboardInterrupt) as error:
            message, code = "stopped; run the same command again to go on", 1
            if isinstance(error, InterruptedRunError) or (isinstance(error, SqtError) and not interrupt.happened):
                message, code = str(error), error.exit_code
            from sqt_fast.console import printable

            click.echo(f"sqt-fast: {printable(message)}", err=True)
            ctx.exit(code)


@click.group(cls=_Group, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sqt-fast")
def main() -> None:
    """Label what happens when in videos, with SqueezeTime."""


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--out", "output", type=click.Path(path_type=Path), required=True, help="The table: .parquet, .csv or .jsonl."
)
@click.option("--weights", default="k400", help=WEIGHTS_HELP)
@click.option("--labels", help="Class names: a file with one a line, or a bundled list such as kinetics400.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="fast",
    help="fast: windows of 64 frames cover the video. single: one clip from the middle, official: 10 clips x 3 crops; "
    "one row a video.",
)
@click.option("--stride", "stride_s", type=float, metavar="SECONDS", help="Start a window every so many seconds.")
@click.option("--target-fps", type=float, metavar="FPS", help="Sample by time, as if all videos had this frame rate.")
@click.option(
    "--level",
    type=click.Choice(["window", "video"]),
    help="One row a window or a video.  [default: window; video with other protocols than fast]",
    show_default=False,
)
@click.option("--top-k", type=click.IntRange(min=1), default=5, help="How many best classes to keep.")
@click.option("--embeddings", is_flag=True, help="Add the pooled features (float16) of every row.")
@running_options
@click.option("--path-col", default="path", help="Column of .csv and .parquet lists that holds the path.")
@click.option("-0", "--null", is_flag=True, help="Names on stdin and in .txt lists end in NUL bytes (find -print0).")
@click.option("--all-links", is_flag=True, help="Label a file under every name that links give it, not under one.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Label the first N videos only.")
@click.option(
    "--on-error",
    type=click.Choice(["record", "fail"]),
    default="record",
    help="A file that cannot be labelled: give it a row, or stop.",
)
@click.option("--retry-failed", is_flag=True, help="Try files again whose rows are not ok.")
@click.option("--prune", is_flag=True, help="Remove the rows of files that are gone from disk.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever the table or an unfinished run holds.")
@click.option("--dry-run", is_flag=True, help="Look at every file, say what would be done, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Name failed files as they come, and show tracebacks.")
def index(dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Label the videos in files, folders, globs, lists (.txt .csv .parquet) or '-' (stdin) into a table.

    Every file gets at least one row. A run that was stopped goes on when the same command is given again; a complete
    table takes in new and changed files.
    """
    config = IndexConfig(**decided(options))
    prepare_process(verbose=verbose)
    stdin = _stdin(null=config.null) if "-" in config.inputs else []
    if dry_run:
        _dry_run(config, stdin, as_json=as_json)
        return
    from sqt_fast.console import ProgressConsole, print_summary
    from sqt_fast.run import run

    with ProgressConsole(quiet=quiet or as_json, verbose=verbose) as progress:
        summary = run(config, progress, stdin=stdin)
    if as_json:
        click.echo(json.dumps(summary.as_dict()))
        if summary.labels_mean_nothing:
            click.echo("sqt-fast: the weights are random, never trained: the labels mean nothing", err=True)
    elif not quiet:
        print_summary(summary, progress.console)


def _stdin(*, null: bool) -> list[str]:
    """Return the names on standard input, which may be in any encoding, and end in NUL bytes with ``-0``."""
    return [os.fsdecode(name) for name in sys.stdin.buffer.read().split(b"\0" if null else b"\n")]


def _dry_run(config: IndexConfig, stdin: list[str], *, as_json: bool) -> None:
    from sqt_fast.clips.recipe import Recipe
    from sqt_fast.console import print_findings
    from sqt_fast.survey import Totals, survey, videos_of
    from sqt_fast.table.ledger import existing_ledger

    found = videos_of(config, stdin)
    ledger = existing_ledger(config.output, overwrite=config.overwrite)
    videos = ledger.todo(found, ledger.gone(found), retry_failed=config.retry_failed)
    findings = survey(videos, Recipe.of(config))
    totals = Totals(already_done=len(found) - len(videos))
    if not as_json:
        print_findings(findings, totals)
        return
    click.echo('{"files": [', nl=False)  # one by one: an archive may hold more of them than memory does
    for number, finding in enumerate(findings):
        totals.add(finding)
        click.echo((", " if number else "") + json.dumps(finding.as_dict()), nl=False)
    click.echo(f"], {json.dumps(totals.as_dict())[1:]}")


@main.command()
@click.argument("source")
@click.argument("target", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--note", "notes", multiple=True, metavar="NAME=TEXT", help="Add to the metadata. Repeat it for more.")
def convert(source: str, target: Path, notes: tuple[str, ...]) -> None:
    """Convert the checkpoint SOURCE (a path or a published name) to TARGET, a .safetensors file.

    Class names, clip sizes and what else the metadata of SOURCE says go with it.
    """
    added = dict(_note(text) for text in notes)
    from sqt_fast.network.checkpoint import save_safetensors
    from sqt_fast.network.metadata import read_metadata
    from sqt_fast.network.protocols import find_protocol
    from sqt_fast.network.weights import load_weights

    weights = load_weights(source)
    about = {} if weights.path is None else read_metadata(weights.path)
    about |= {"source": weights.name, "source_sha256": weights.sha256}
    about["protocols"] = json.dumps({name: asdict(find_protocol(name, source)) for name in ("fast", "official")})
    if weights.labels:
        about["labels"] = json.dumps(weights.labels)
    save_safetensors(weights.model, target, metadata=about | added)
    click.echo(str(target))


def _note(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--note {text}: expected NAME=TEXT")
    return name, value


@main.command()
@click.option("--device", default="cuda", metavar="cuda[:N]", help="The GPU to tune for.")
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(PRECISIONS),
    multiple=True,
    default=["bf16"],
    help="Of the network. Repeat the option for more.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=[1, 8, 64, 256],
    help="Clips at once. Repeat the option for more; the largest goes first.",
)
@click.option("--weights", default="random", help=WEIGHTS_HELP + " Tiles depend on the network's shape only.")
@click.option(
    "--out",
    "output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep what is found; what is there of other GPUs stays. In a checkout, kernels/tuned.json is what is "
    "committed for everybody.  [default: kernels.json in the user's cache]",
    show_default=False,
)
@click.option("--budget", "budget_s", type=click.FloatRange(min=0, min_open=True), help="Seconds for the tiles.")
@click.option("--overwrite", is_flag=True, help="Start anew, whatever was found on this GPU before.")
def tune(**options: Any) -> None:
    """Find the fastest tiles of every kernel on this GPU (minutes), and measure every backend there.

    Later runs on this kind of GPU use what was found, and choose their backend by it. A run that was stopped goes on
    from there.
    """
    from sqt_fast.tuning.tune import TuneConfig
    from sqt_fast.tuning.tune import tune as run

    for line in run(TuneConfig(**options), lambda line: click.echo(line, err=True)):
        click.echo(line)


@main.group()
def bench() -> None:
    """Measure speed here, from a checkout of the repository."""


def _bench(name: str, options: tuple[str, ...]) -> None:
    root = Path(__file__).resolve().parents[1]
    if not (root / "bench" / f"{name}.py").is_file():
        raise ConfigError("the benches are in the repository, not in the installed package: run it from a checkout")
    sys.path.insert(0, str(root))
    importlib.import_module(f"bench.{name}").main(options)


_PASSED_ON = {"context_settings": {"ignore_unknown_options": True}, "add_help_option": False}  # the bench has its own


@bench.command(**_PASSED_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def kernels(options: tuple[str, ...]) -> None:
    """Every kernel at every shape of the network, against PyTorch and what the GPU allows."""
    _bench("bench_kernels", options)


@bench.command(**_PASSED_ON)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def network(options: tuple[str, ...]) -> None:
    """The network alone, with every backend and precision."""
    _bench("bench_network", options)


for command in (build_engine, engines, evaluate, export_onnx, sample_videos, train):
    main.add_command(command)
