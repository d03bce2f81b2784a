"""Compile the Triton programs that draw for an absent GPU: `python -m tests.kernels.compile_draws 90` for capability 9.0."""

import sys

import numpy as np
import torch

from distrec.kernels.triton.draws import DeviceDraws
from distrec.sampling.negatives import NegativeSampler
from tests.kernels.absent_gpu import compile_for

NAMES = {"gather_pairs", "draw_for_pairs", "draw_each", "draw_shared", "draw_positives", "mark_known", "touch"}


def call_all(masses_V: np.ndarray, rejects: bool) -> None:
    """Launch every program. Programs are compiled, not run."""
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
            call_all(masses_V, rejects)
    assert all(kernel.asm["cubin"] for kernel in made)
    found = {kernel.metadata.name for kernel in made}
    assert found == NAMES, found ^ NAMES
    print(len(made), "launches;", ", ".join(sorted(found)))
