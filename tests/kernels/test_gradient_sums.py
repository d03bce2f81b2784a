"""Sums of the workers' gradients against indexing, on one thread and on two."""

import numpy as np
import torch

from distrec.kernels.numba.gradient_sums import add_parts


def test_sums_in_rank_order_on_any_number_of_threads():
    draws, threads, found = np.random.default_rng(0), torch.get_num_threads(), []
    received_AD = torch.randn(900, 5)
    index_WR = draws.permutation(900).astype(np.int32).reshape(3, 300)
    index_WR[0, ::3] = index_WR[1, 1::3] = -1
    expected_RD = torch.zeros(300, 5)
    for index_R in torch.from_numpy(index_WR):
        expected_RD[index_R >= 0] += received_AD[index_R[index_R >= 0].long()]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(add_parts(received_AD, index_WR))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], expected_RD) and torch.equal(found[1], expected_RD)
