"""``python -m bench.network``: see bench_network."""

from bench.bench_network import main

if __name__ == "__main__":
    main()
