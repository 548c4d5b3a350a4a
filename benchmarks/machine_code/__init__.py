"""The resource report of the Triton kernels (``python -m benchmarks.machine_code``); it needs no GPU."""
