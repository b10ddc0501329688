"""Benches: ``python -m bench.bench_x``. Each measures a baseline in the same run and keeps its circumstances."""

import os

from sqt_fast.engine.process import thread_settings
from sqt_fast.errors import first_line

os.environ.update(thread_settings())  # as the program's workers have; read when torch is imported, so before any bench


def reason(error: BaseException) -> str:
    """Return the first line of ``error``, and of what it came from where that says more, as one short line."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    said = dict.fromkeys(first_line(e) for e in (error, root))
    return ": ".join([type(error).__name__, *said])[:200]
