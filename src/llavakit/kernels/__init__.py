"""Compiled kernels for a processor, and the same work in torch where they are missing.

Knows tensors and nothing of models or requests. ``cpu.cpp`` is compiled when the package is
installed, if a compiler is there; wheels bring it along. Importing this package imports no torch.
"""
