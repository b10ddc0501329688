"""``sqt-fast evaluate``: options in, one function called, results out."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from sqt_fast.commands.options import WEIGHTS_HELP, decided, prepare_process, running_options
from sqt_fast.config import PROTOCOLS

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("source", metavar="LIST", type=click.Path(exists=True, path_type=Path))
@click.option("--weights", help=WEIGHTS_HELP)
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Run no network: take the scores of this .parquet table of sqt-fast index.",
)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="As of sqt-fast index, one label a video.  [default: official]",
    show_default=False,
)
@click.option(
    "--video-root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What paths in LIST are relative to.  [default: the folder of LIST]",
    show_default=False,
)
@click.option(
    "--label-names",
    help="Class names by number, of LIST and of the weights: a file with one a line, or a bundled list such as "
    "kinetics400.",
)
@click.option(
    "-o", "--out", "output", type=_FILE, help="Keep the table (.parquet); what was stopped goes on from there."
)
@click.option("--overwrite", is_flag=True, help="Start anew, whatever --out or an unfinished run holds.")
@click.option("--confusion", type=_FILE, help="Write the matrix, .csv or .png: rows truth, columns prediction.")
@click.option("--per-class", type=_FILE, help="Write a .csv with a row a class.")
@click.option("--dump", type=_FILE, help="Write every score, a .pkl as mmaction2's.")
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def evaluate(as_json: bool, confusion: Path | None, per_class: Path | None, dump: Path | None, **options: Any) -> None:
    """Say how well weights, or a table of labels, label the videos in LIST.

    LIST is a text with a line 'path label' for each video, a .csv with the columns path and label, or a folder with a
    subfolder for each class. Labels are class names or, as in mmaction2's lists, numbers from 0. A video that cannot
    be labelled counts as wrong.
    """
    from rich.console import Console

    from sqt_fast.console import ProgressConsole
    from sqt_fast.evaluate.evaluation import EvaluateConfig
    from sqt_fast.evaluate.evaluation import evaluate as run
    from sqt_fast.evaluate.reports import Outputs, print_evaluation

    outputs = Outputs(confusion, per_class, dump)
    config = EvaluateConfig(**decided(options))
    prepare_process()
    with ProgressConsole(quiet=as_json) as progress:
        evaluation = run(config, progress)
    if as_json:
        click.echo(json.dumps(evaluation.as_dict()))
    else:
        print_evaluation(evaluation, Console(file=sys.stdout, highlight=False, soft_wrap=True))
    outputs.write(evaluation)  # last: should a disk be full, the numbers have been seen
