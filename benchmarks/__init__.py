"""Benchmarks: one grid, every peer, exact-area FLOPs, results with provenance (docs/benchmarks.md).

`pytest benchmarks/ --benchmark-only` prints the comparison, `python -m benchmarks.report` writes docs/results.
"""
