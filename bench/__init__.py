"""Benches: ``python -m bench.bench_x``. Each measures a baseline in the same run and keeps its circumstances."""

import os

from sqt_fast.engine.process import thread_settings

os.environ.update(thread_settings())  # as the program's workers have; read when torch is imported, so before any bench
