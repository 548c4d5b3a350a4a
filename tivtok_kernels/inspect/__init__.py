"""The resource report of the Triton kernels (``python -m tivtok_kernels.inspect``); it needs no GPU."""
