"""Benches: ``python -m bench.bench_x``. Each measures a baseline in the same run and keeps its circumstances."""

from sqt_fast.openmp import sleep_when_idle

sleep_when_idle()  # as the program does; OpenMP reads it when torch is imported, so before any bench is
