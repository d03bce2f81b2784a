"""Sums of the gradients that several workers have for the same rows. A: rows received from all workers."""

import numpy as np
from numba import prange
from torch import Tensor

from distrec.core.buffer_pool import empty
from distrec.kernels.numba.launch import loop, run


def add_parts(received_AD: Tensor, gradient_index_WR: np.ndarray) -> Tensor:
    """Return the sum of gradients for each row, (R, D), added in rank order in one pass.

    Args:
        received_AD: gradients received from the workers.
        gradient_index_WR: index of each worker's gradient for each row among these, int32; -1 where a worker has none.
            Every row has a gradient from at least one worker.
    """
    sums_RD = empty([gradient_index_WR.shape[1], received_AD.shape[1]], received_AD)
    run(ADD_PARTS, received_AD.numpy(), gradient_index_WR, sums_RD.numpy())
    return sums_RD


def _add_parts(received_AD, gradient_index_WR, sums_RD):
    for r in prange(len(sums_RD)):
        sums_D, started = sums_RD[r], False
        for w in range(len(gradient_index_WR)):
            if gradient_index_WR[w, r] < 0:
                continue
            part_D = received_AD[gradient_index_WR[w, r]]
            for d in range(len(sums_D)):
                sums_D[d] = sums_D[d] + part_D[d] if started else part_D[d]
            started = True


ADD_PARTS = loop(_add_parts)
