"""Kernels: one family a file, beside its plain PyTorch reference. This folder is the package ``sqt_fast.kernels``."""

if __name__ == "kernels":
    raise ImportError("kernels/ is the package sqt_fast.kernels: import it by that name")
