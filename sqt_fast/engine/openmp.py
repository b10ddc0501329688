"""Keep PyTorch's waiting threads from burning the cores that others need.

At a barrier, GNU OpenMP spins 300 000 times before it sleeps. When a decoder, or another program, holds the core of the
thread that is waited for, that is a time slice lost at every layer. See docs/experiments.md for the numbers.
"""

import os

SPINS = "20000"


def spin_briefly() -> None:
    """Set how long OpenMP spins, unless the user has. Call it before torch is imported: OpenMP reads it once."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
