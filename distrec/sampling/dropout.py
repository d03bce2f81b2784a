"""Dropout of the representations of a pair's user: the same for an interaction at any number of workers.

The D values of the interaction with an ordinal are 32-bit draws of the epoch, in words ordinal * ceil(D / 2) and on.
"""

import numpy as np

from distrec.core.randomness import Purpose


def dropout_mask(seed: int, epoch: int, ordinal_B: np.ndarray, share: float, width: int) -> np.ndarray:
    """Return the factors of the values of each pair's user, (B, D) float32: 0 with probability `share`, else 1 / (1 -
    share).

    Args:
        seed: seed of the run.
        epoch: epoch of the pairs.
        ordinal_B: ordinal of each pair's interaction in the epoch.
        share: share of the values that become 0, in [0, 1), to within 2^-32.
        width: values of a pair, D.
    """
    from distrec.kernels.numba import draws  # here: importing numba takes 0.3 s

    mask_BD = np.empty((len(ordinal_B), width), np.float32)
    stream = draws.Stream(*map(np.uint64, (seed & (2**64 - 1), Purpose.DROPOUT, epoch, 0)))
    draws.draw_mask(stream, ordinal_B, np.uint32(share * 2**32), np.float32(1 / (1 - share)), mask_BD)
    return mask_BD
