"""Benches: ``python -m bench.bench_x``. Each measures a baseline in the same run and keeps its circumstances."""

from sqt_fast.engine.openmp import spin_briefly

spin_briefly()  # as the program does; OpenMP reads it when torch is imported, so before any bench is
