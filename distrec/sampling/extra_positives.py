"""Extra positives: further training items of a pair's user, drawn uniformly and with replacement.

Draws ordinal * M .. ordinal * M + M - 1 of an epoch belong to the interaction with this ordinal: the same at any number
of workers. A draw has 53 bits, so that the chances of a user's d items differ by less than d * 2^-53. The pair's own
positive is one of them.
"""

import numpy as np

from distrec.core.randomness import Purpose


def extra_positives(
    seed: int, epoch: int, ordinal_B: np.ndarray, user_B: np.ndarray, positives: tuple[np.ndarray, np.ndarray], m: int
) -> np.ndarray:
    """Return extra positives of pairs, items (B, M), int32.

    Args:
        seed: seed of the run.
        epoch: epoch of the pairs.
        ordinal_B: ordinal of each pair's interaction in the epoch.
        user_B: index of each pair's user in `positives`.
        positives: (indptr, indices) in CSR form, the training items of each user.
        m: extra positives of a pair, M.
    """
    from distrec.kernels.numba import draws  # here: importing numba takes 0.3 s

    item_BM = np.empty((len(ordinal_B), m), np.int32)
    stream = draws.Stream(*map(np.uint64, (seed & (2**64 - 1), Purpose.EXTRA_POSITIVES, epoch, 0)))
    draws.draw_positives(stream, ordinal_B, user_B, *positives, item_BM)
    return item_BM
