"""Triton backend: `backend` is the contract, `launch` the host side, `forward`, `backward`, `combine` the kernels."""
