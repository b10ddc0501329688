"""Find the fastest tiles of the kernels and the fastest backend on the GPU at hand."""
