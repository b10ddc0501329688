"""``sqt-fast export-onnx``, ``build-engine`` and ``engines``."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from sqt_fast.commands.options import WEIGHTS_HELP, prepare_process
from sqt_fast.errors import BackendError, ConfigError, SqtError
from sqt_fast.network.registry import PRECISIONS, QUANTISED

FLAVOUR_NAMES = ("tensorrt", "rtx")
INPUT_KINDS = ("normalised", "uint8")
FRONTEND_NAMES = ("onnx", "torch")
PLUGIN_NAMES = ("none", "ctl")
HARDWARE_KINDS = ("none", "same-capability", "ampere-plus")
_FILE = click.Path(path_type=Path, dir_okay=False)

_weights = click.option("--weights", default="k400", help=WEIGHTS_HELP)
_size = click.option(
    "--size",
    type=click.IntRange(min=32),
    help="Pixels of the square that the network sees.  [default: as index would show it with these weights]",
    show_default=False,
)
_input = click.option(
    "--input",
    "kind",
    type=click.Choice(INPUT_KINDS),
    default="normalised",
    help="What it takes: clips that are normalised, as index gives, or bytes, which it normalises itself.",
)


_videos = click.option(
    "--videos",
    multiple=True,
    metavar="VIDEOS",
    help="Validate with clips of these, a file or a folder, not with drawn ones. Repeat it.",
)


def _export_config(weights: str, size: int | None, precision: str, kind: str) -> Any:
    """Return how the network is to be exported; its usual size is that of the ``fast`` protocol."""
    from sqt_fast.network.onnx_export import ExportConfig
    from sqt_fast.network.weights import check_name

    check_name(weights)
    return ExportConfig(_protocol(weights, size).crop_size, precision, kind)


def _protocol(weights: str, size: int | None) -> Any:
    """Return how the ``fast`` protocol shows videos to these weights, at another size if it is given."""
    from sqt_fast.network.protocols import find_protocol

    protocol = find_protocol("fast", weights)
    if size is None:
        return protocol
    return replace(protocol, crop_size=size, short_side=round(protocol.short_side * size / protocol.crop_size))


@click.command("export-onnx")
@click.argument("target", type=_FILE)
@_weights
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", help="Of the network.")
@_size
@_input
@click.option("--max-batch", type=click.IntRange(min=1), default=64, help="The most clips at once.")
def export_onnx(target: Path, weights: str, precision: str, size: int | None, kind: str, max_batch: int) -> None:
    """Write the network to TARGET as ONNX: batch norm folded, position embeddings in place, any number of clips.

    Its outputs are logits and embeddings, float32; its metadata say what clips must be and what classes are called. It
    is run by ONNX Runtime and held against PyTorch, unless it is bf16.
    """
    from sqt_fast.tensorrt.exports import Exports

    prepare_process()
    export = Exports(weights, _export_config(weights, size, precision, kind), max_batch)
    click.echo(export.write(target, _say))


@click.command("build-engine")
@_weights
@click.option("--flavour", type=click.Choice(FLAVOUR_NAMES), default="tensorrt", help="rtx: TensorRT-RTX.")
@click.option(
    "--precision",
    type=click.Choice([*PRECISIONS, *QUANTISED]),
    default="bf16",
    help="Of the network; int8 and fp8 want --calibrate.",
)
@click.option("--batch", default="1:64:64", metavar="MIN:OPT:MAX", help="Clips at once; it is fastest at OPT.")
@_size
@_input
@click.option("-o", "--out", "output", type=_FILE, help="The engine.  [default: the user's cache, where index looks]")
@click.option("--onnx", "keep_onnx", type=_FILE, help="Keep the exported network too.")
@click.option("--level", type=click.IntRange(0, 5), default=3, help="How long to look for faster kernels.")
@click.option("--workspace", "workspace_mib", type=click.IntRange(min=1), metavar="MIB", help="Memory for kernels.")
@click.option("--no-tf32", "tf32", flag_value=False, default=True, help="Multiply float32 as float32.")
@click.option(
    "--hardware",
    type=click.Choice(HARDWARE_KINDS),
    default="none",
    help="Other GPUs that it is to run on: none, those of the same compute capability, or Ampere and newer.",
)
@click.option("--version-compatible", is_flag=True, help="Newer TensorRTs are to run it too.")
@click.option(
    "--capability", "capabilities", multiple=True, metavar="X.Y", help="rtx: build for these GPUs alone. Repeat it."
)
@click.option("--frontend", type=click.Choice(FRONTEND_NAMES), default="onnx", help="torch: through Torch-TensorRT.")
@click.option("--plugin", type=click.Choice(PLUGIN_NAMES), default="none", help="ctl: our kernel ends every CTL.")
@click.option("--timing-cache/--no-timing-cache", default=True, help="Use what was timed before.")
@click.option("--validate", "clips", type=click.IntRange(min=0), default=32, metavar="CLIPS", help="0: do not.")
@_videos
@click.option(
    "--calibrate",
    "calibration_videos",
    multiple=True,
    metavar="VIDEOS",
    help="int8, fp8: some of your own videos, a file or a folder, to measure ranges of values on. Repeat it.",
)
@click.option("--calibration-clips", type=click.IntRange(min=1), default=64, help="Of those videos.")
@click.option("--min-cosine", type=float, help="int8, fp8: of the logits of each clip.  [default: 0.98]")
@click.option("--min-top1", type=float, help="int8, fp8: part of clips with the same best class.  [default: 0.95]")
@click.option("--force", is_flag=True, help="Build it though it is there.")
@click.option("--dry-run", is_flag=True, help="Say what would be built or used again, and why; no GPU is needed.")
@click.option("--json", "as_json", is_flag=True, help="Print what came of it as one JSON object on stdout.")
@click.option("-v", "--verbose", is_flag=True, help="Show what the library says.")
def build_engine(as_json: bool, dry_run: bool, verbose: bool, **options: Any) -> None:
    """Build a TensorRT engine of the network, hold it against PyTorch, and install it for index --backend tensorrt.

    An engine that gives other results than the network is not installed (exit code 3). One of int8 or fp8 gives others
    to a degree: its limits are --min-cosine and --min-top1, on clips of your videos that it was not calibrated with.

    TensorRT builds on the GPU that the engine is for; TensorRT-RTX (--flavour rtx) builds anywhere, and sqt-fast
    engines check validates what it built where there is a GPU.
    """
    from sqt_fast.console import BuildBar
    from sqt_fast.tensorrt.engines import build_engine as run

    prepare_process(verbose=verbose)
    request = _request(**options)
    with BuildBar(quiet=as_json) as bar:
        outcome = run(request, _say, bar.update, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(outcome.as_dict()))
        return
    for line in outcome.lines():
        click.echo(line)


def _request(
    weights: str,
    precision: str,
    size: int | None,
    kind: str,
    batch: str,
    output: Path | None,
    keep_onnx: Path | None,
    clips: int,
    force: bool,
    timing_cache: bool,
    videos: tuple[str, ...],
    calibration_videos: tuple[str, ...],
    calibration_clips: int,
    min_cosine: float | None,
    min_top1: float | None,
    **options: Any,
) -> Any:
    """Return what is to be built. Raises ConfigError."""
    from sqt_fast.tensorrt.engine_config import Batches, EngineConfig
    from sqt_fast.tensorrt.engines import Request

    exported = _export_config(weights, size, precision, kind)
    config = EngineConfig(export=exported, batches=Batches.parse(batch), **options)
    limits = {"min_cosine": min_cosine, "min_top1": min_top1}
    calibration = _calibration(calibration_videos, _protocol(weights, size), calibration_clips, limits)
    more = {"clips": clips, "force": force, "timing_cache": timing_cache, "calibration": calibration}
    if videos:
        more["record"] = lambda count, size: _clips(videos, _protocol(weights, size), count)
    return Request(config, weights, output, keep_onnx, **more)


def _calibration(videos: tuple[str, ...], protocol: Any, num_clips: int, limits: dict[str, float | None]) -> Any:
    """Return what a network is quantised by, None if no videos are given. limits: None where they are the usual ones.

    Raises ConfigError.
    """
    from sqt_fast.network.parity import QUANTISED_LIMITS
    from sqt_fast.tensorrt.quantize import Calibration

    given = {name: limit for name, limit in limits.items() if limit is not None}
    if not videos:
        if given:
            raise ConfigError("--min-cosine and --min-top1 are for --precision int8 and fp8, with --calibrate")
        return None
    return Calibration(videos, partial(_clips, videos, protocol), num_clips, replace(QUANTISED_LIMITS, **given))


def _clips(videos: Sequence[str], protocol: Any, count: int) -> Any:
    """Return up to ``count`` clips of videos as ``protocol`` shows them."""
    from sqt_fast.engine.calibration import clips_of_videos

    return clips_of_videos(videos, protocol, count, _say)


def _clips_for(path: Path, videos: Sequence[str], count: int, size: int) -> Any:
    """Return up to ``count`` clips of videos as the network of an engine is shown them."""
    from sqt_fast.tensorrt.engine_cache import read_engine

    return _clips(videos, _protocol(read_engine(path).about["weights"], size), count)


def _say(line: str) -> None:
    click.echo(line, err=True)


@click.group()
def engines() -> None:
    """List, check and remove the engines that were built."""


@engines.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON, an object a line.")
def list_engines(as_json: bool) -> None:
    """List the engines in the user's cache."""
    from sqt_fast.tensorrt.engine_cache import engines_folder, engines_in

    for engine in engines_in(engines_folder()):
        if isinstance(engine, BackendError):
            _say(str(engine))
        elif as_json:
            click.echo(json.dumps({"path": str(engine.path), **engine.about}))
        else:
            click.echo(f"{engine.path}: {engine.in_words}, {engine.state}")


@engines.command()
@click.argument("paths", nargs=-1, type=_FILE)
@click.option("--validate", "clips", type=click.IntRange(min=0), default=32, metavar="CLIPS", help="0: do not.")
@_videos
def check(paths: tuple[Path, ...], clips: int, videos: tuple[str, ...]) -> None:
    """Say of engines (all in the cache, if none are named) whether they may run here, and if not, every reason.

    Where there is a GPU they are run beside PyTorch, and what comes of it is kept.
    """
    from sqt_fast.network.parity import drawn_clips
    from sqt_fast.tensorrt.engine_cache import engine_paths, engines_folder
    from sqt_fast.tensorrt.engines import check_engine

    prepare_process()
    failures = []
    for path in paths or engine_paths(engines_folder()):
        try:
            record = partial(_clips_for, path, videos) if videos else drawn_clips
            engine, validation = check_engine(path, clips=clips, record=record)
            click.echo(f"{path}: nothing against it; {engine.state if validation is None else validation.in_words}")
        except SqtError as error:  # its weights may be gone: the others are looked at all the same
            click.echo(str(error) if str(path) in str(error) else f"engine {path}: {error}")
            failures.append(error)
    if failures:
        raise SystemExit(max(error.exit_code if isinstance(error, BackendError) else 1 for error in failures))


@engines.command()
@click.option("--all", "everything", is_flag=True, help="Remove those too that may run here.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
def prune(everything: bool, dry_run: bool) -> None:
    """Remove the engines from the user's cache that cannot run here (another GPU, another version, damaged)."""
    from sqt_fast.tensorrt.engines import useless

    for path, reason in useless(everything=everything):
        if not dry_run:
            from sqt_fast.tensorrt.engine_cache import remove

            remove(path)
        click.echo(f"{path}: {reason}")
