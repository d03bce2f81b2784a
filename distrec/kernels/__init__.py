"""Compiled code, for CPUs by numba and for GPUs by Triton, and the choice between them.

Modules at this level load neither compiler, which would take most of a second; those in `numba` and `triton` are
imported where they are called.
"""
