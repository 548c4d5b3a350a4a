"""A latency model of the Hopper kernels' main loops, over their machine code (docs/kernels/latency.md)."""
