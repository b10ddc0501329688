"""Options that several commands share."""

import signal
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sqt_fast.commands.options import decided, prepare_process, running_options

pytestmark = pytest.mark.usefixtures("kept_signals")


@click.command()
@running_options
def command(**options: Any) -> None:
    """Say what was asked for."""
    click.echo(sorted(decided(options).items()))


def test_auto_is_to_be_decided() -> None:
    names = ("backend", "batch_size", "decoder", "device", "memory_bytes", "precision")
    assert CliRunner().invoke(command, []).output == f"{[(name, None) for name in names]}\n"
    arguments = ["--backend", "eager", "--batch-size", "4", "--decoder", "cpu", "--device", "cuda:1", "--memory", "1G"]
    given = CliRunner().invoke(command, [*arguments, "--precision", "bf16"]).output
    assert given == f"{list(zip(names, ('eager', 4, 'cpu', 'cuda:1', 1 << 30, 'bf16'), strict=True))}\n"


@pytest.mark.parametrize("arguments", [["--batch-size", "0"], ["--backend", "magic"], ["--decoder", "gpu"]], ids=str)
def test_what_cannot_be(arguments: list[str]) -> None:
    assert CliRunner().invoke(command, arguments).exit_code == 2


@pytest.mark.parametrize("ignored", [False, True], ids=["usual", "nohup"])
def test_a_schedulers_stop_is_an_interrupt(ignored: bool) -> None:
    """Where Ctrl-C is ignored, as in the background of a shell script, it stays so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    seen: list[int] = []
    with click.Context(command, obj=lambda number, frame: seen.append(number)):
        prepare_process()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGINT]
