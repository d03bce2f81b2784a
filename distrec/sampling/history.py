"""Histories: of each user at most H training items, which represent the user to a model.

They are the items with the lowest hash of (seed, user, item). Every item of a user is equally likely to be among them,
and they are the same throughout a run, in any process and at any number of workers.
"""

import numpy as np

from distrec.core.randomness import hash_words


def histories(seed: int, user_ids: np.ndarray, indptr: np.ndarray, indices: np.ndarray, h: int) -> np.ndarray:
    """Return the history of each user, item codes (users, H) int32, by ascending hash, padded with -1.

    Two items of a user never have the same hash, as user and item fit one word.

    Args:
        seed: any integer; its low 64 bits are used.
        user_ids: global code of each user.
        indptr, indices: training items of these users in CSR form, global codes without duplicates.
        h: length of a history, H.
    """
    degrees = np.diff(indptr)
    row = np.repeat(np.arange(len(user_ids)), degrees)
    words = user_ids.astype(np.uint64)[row] << np.uint64(32) | indices.astype(np.uint64)
    hashes = hash_words(hash_words(words) ^ hash_words(np.array([seed & (2**64 - 1)], np.uint64)))
    order = np.lexsort((hashes, row))
    rank = np.arange(len(row)) - np.repeat(indptr[:-1], degrees)  # rows keep their extent when sorted
    kept = rank < h
    history_VH = np.full((len(user_ids), h), -1, np.int32)
    history_VH[row[kept], rank[kept]] = indices[order[kept]]
    return history_VH
