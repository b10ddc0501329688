"""``python -m bench.kernels``: see bench_kernels."""

from bench.bench_kernels import main

if __name__ == "__main__":
    main()
