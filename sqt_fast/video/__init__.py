"""One video file: what is in it, which packets its clips need, its pixels on the CPU. Nothing here imports torch."""
