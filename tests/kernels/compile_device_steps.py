"""Compile the Triton programs of draws, of whole rows and of the softmax of pairs for an absent GPU.

A script, as it replaces Triton's driver: `python -m tests.kernels.compile_device_steps 90` for compute capability 9.0.
"""

import sys

import numpy as np
import torch

from distrec.kernels.triton.pair_softmax import PairSoftmax
from distrec.kernels.triton.rows import L2Normalize, LogSumExp
from distrec.sampling.device_draws import DeviceDraws
from distrec.sampling.negatives import NegativeSampler
from tests.kernels.absent_gpu import arithmetic_is_exact, compile_for

DRAWS = {"gather_pairs", "draw_for_pairs", "draw_each", "draw_shared", "draw_positives", "mark_known", "touch"}
SOFTMAX = {"forward", "backward"}
ROWS = {"normalize", "normalize_backward", "log_sum_exp", "log_sum_exp_backward"}


def call_rows(dtype: torch.dtype) -> None:
    """Launch every program of whole rows."""
    values = torch.ones(5, 9, dtype=dtype, requires_grad=True)
    L2Normalize.apply(values, 1e-12).sum().backward()
    LogSumExp.apply(values[:, 1:], 0.1).sum().backward()
    index = torch.zeros(4, dtype=torch.int32)
    sum(PairSoftmax.apply(values, values, index, index, torch.zeros(4, 50, dtype=torch.int32), 0.1)).sum().backward()


def call_draws(masses_V: np.ndarray, rejects: bool) -> None:
    """Launch every program that draws. Programs are compiled, not run."""
    positives = np.array([0, 2, 3]), np.array([1, 4, 2], np.int32)
    draws = DeviceDraws(NegativeSampler(masses_V, positives if rejects else None), positives, 1, torch.device("cpu"))
    ids, ordinals = torch.zeros(20, dtype=torch.int32), torch.zeros(20, dtype=torch.int64)
    user_B, _, ordinal_B = draws.pairs([ids, ids, ordinals], torch.zeros(4, dtype=torch.int64), 5)
    for n in (1, 30):
        draws.negatives(user_B, ordinal_B, n)
    draws.extra_positives(user_B, ordinal_B, 3)
    draws.touched([draws.shared_negatives(9)], len(masses_V))
    draws.known(user_B, torch.zeros(9, dtype=torch.int32))


if __name__ == "__main__":
    made = compile_for(int(sys.argv[1]))
    for masses_V in (np.ones(50, np.int64), np.ones(2**18 + 1, np.int64), np.arange(50)):
        for rejects in (False, True):
            call_draws(masses_V, rejects)
    for dtype in (torch.float32, torch.float64):
        call_rows(dtype)
    for kernel in made:
        assert kernel.asm["cubin"], kernel.metadata.name
        if kernel.metadata.name.startswith("normalize"):
            arithmetic_is_exact(kernel.metadata.name, kernel.asm["ptx"])
    found = {kernel.metadata.name for kernel in made}
    assert found == DRAWS | ROWS | SOFTMAX, found
    print(len(made), "launches;", ", ".join(sorted(found)))
