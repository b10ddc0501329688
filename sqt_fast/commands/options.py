"""What several commands share: options of whatever runs the network, and how a long run takes a signal to stop."""

import logging
import signal
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sqt_fast.engine.routes import DECODERS
from sqt_fast.network.registry import BACKENDS, PRECISIONS, QUANTISED

Command = TypeVar("Command", bound=Callable[..., Any])

WEIGHTS_HELP = "A name (k400, k600, hmdb51; motions for sample-videos; random), or the path of a checkpoint."


def _auto_or_count(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return ``auto`` as it is, else a whole number of at least 1."""
    return value if value == "auto" else click.IntRange(min=1).convert(value, param, ctx)


def _auto_or_memory(ctx: click.Context, param: click.Parameter, value: str) -> Any:
    """Return ``auto`` as it is, else bytes."""
    del ctx, param
    if value == "auto":
        return value
    from sqt_fast.engine.memory import parse_memory

    return parse_memory(value)


_RUNNING = (
    click.option("--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", help="What runs the network."),
    click.option("--device", default="auto", metavar="auto|cpu|cuda[:N]", help="Where it runs."),
    click.option(
        "--precision",
        type=click.Choice(["auto", *PRECISIONS, *QUANTISED]),
        default="auto",
        help="Of the network; int8 and fp8 are those of engines.",
    ),
    click.option("--batch-size", metavar="auto|N", default="auto", callback=_auto_or_count, help="Clips at once."),
    click.option(
        "--decoder",
        type=click.Choice(["auto", *DECODERS]),
        default="auto",
        help="nvdec: the GPU's, through DALI, for the videos that it decodes rightly. cpu: FFmpeg for all.",
    ),
    click.option(
        "--memory",
        "memory_bytes",
        metavar="auto|SIZE",
        default="auto",
        callback=_auto_or_memory,
        help="For decoding, as 8G; auto: half of what is free.",
    ),
)


def running_options(command: Command) -> Command:
    """Add the options that say where and how the network and the decoders run."""
    for option in reversed(_RUNNING):
        command = option(command)
    return command


def decided(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with None for "auto": to be decided."""
    return {name: None if value == "auto" else value for name, value in options.items()}


def prepare_process(*, verbose: bool = False) -> None:
    """Get ready for a long run: what libraries log, and a scheduler's stop, which is a Ctrl-C."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(name)s: %(message)s")
    for name in ("torch", "nvidia", "asyncio", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)
    interrupt = click.get_current_context().obj
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupt)
