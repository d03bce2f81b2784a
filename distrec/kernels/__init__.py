"""How loops are compiled and run, by numba on the CPU and by Triton on GPUs.

Imported late, but for `installed.py`: loading either compiler takes a good part of a second.
"""
