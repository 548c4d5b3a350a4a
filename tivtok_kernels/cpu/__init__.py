"""CPU backend: the C++ kernels of csrc/cpu (docs/kernels/cpu.md)."""
