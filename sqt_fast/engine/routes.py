"""The decoders, a record each: a new one is one file and one line here. Nothing is imported before it is used."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqt_fast.engine.events import Note, Report
from sqt_fast.errors import BackendError
from sqt_fast.network.registry import load_function

if TYPE_CHECKING:
    from sqt_fast.engine.gpu_route import GpuRoute


@dataclass(frozen=True)
class DecoderRecord:
    """What there is to know of a decoder without importing it.

    load: ``module:function`` of (device, short_side, report) that opens a route for the videos which it decodes
    rightly, or returns None if there are none; None for FFmpeg's, which takes every video that no route takes.
    objection: ``module:function`` that returns why it cannot run on this machine. devices: the kinds of device of the
    network beside which ``auto`` tries it.
    """

    load: str | None = None
    objection: str | None = None
    devices: tuple[str, ...] = ()


# The first that suits is taken.
DECODERS = {
    "nvdec": DecoderRecord(
        "sqt_fast.engine.gpu_route:open_route", "sqt_fast.pipelines.routing:why_no_gpu_decoder", devices=("cuda",)
    ),
    "cpu": DecoderRecord(),
}


def open_route(asked: str | None, device: str, short_side: int, report: Report) -> "GpuRoute | None":
    """Open the decoder ``asked`` for, or the one that suits ``device``; None is FFmpeg alone.

    short_side: pixels to resize to. Raises BackendError where one that was asked for cannot run; where ``auto`` would
    have liked one that cannot, ``report`` is told why.
    """
    for name, record in DECODERS.items():
        if record.load is None or (asked != name if asked else device.partition(":")[0] not in record.devices):
            continue
        reason: str | None = load_function(record.objection)() if record.objection else None
        if reason is None:
            route: GpuRoute | None = load_function(record.load)(device, short_side, report)
            if route is not None:
                return route
            reason = "no codec passed its test"
        if asked:
            raise BackendError(f"--decoder {name}: {reason}; use --decoder cpu")
        report(Note(f"videos are decoded on the CPU: {reason}"))
    return None
