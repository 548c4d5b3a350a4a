"""The hand-written CUDA kernels of csrc/: argument packing for the ``extension`` (docs/cuda.md)."""
