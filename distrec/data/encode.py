"""Encode the raw parts of a data set: integer codes, duplicates merged, no pair in two parts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from distrec.core.randomness import Purpose
from distrec.data.dataset import Part
from distrec.data.readers.formats import RawPairs
from distrec.data.split import hold_out
from distrec.data.vocabulary import to_codes, unify, vocabulary


@dataclass(frozen=True)
class EncodedParts:
    """Interactions of all parts as integer codes.

    Attributes:
        user_ids, item_ids: raw ids in the order of the codes.
        keys: pairs of each part as sorted int64 keys `user * items + item`; no key occurs twice, in one part or in two.
        duplicates: repeated pairs merged, by part of the source.
        overlap: pairs dropped from one part because another part has them.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    keys: Mapping[Part, np.ndarray]
    duplicates: Mapping[Part, int]
    overlap: int

    def pairs(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Return (users, items) of a part, int32, sorted by user, then item."""
        users, items = np.divmod(self.keys[part], max(1, len(self.item_ids)))
        return users.astype(np.int32), items.astype(np.int32)


def encode_parts(parts: Mapping[Part, RawPairs]) -> EncodedParts:
    """Encode the parts that the source has; the others are empty.

    A test pair that is also in training is dropped. A validation pair that is also in training or in the test part is
    dropped, so that model selection never sees test data.
    """
    user_columns = unify([raw.users for raw in parts.values()])
    item_columns = unify([raw.items for raw in parts.values()])
    user_ids, item_ids = vocabulary(user_columns), vocabulary(item_columns)
    assert len(user_ids) * len(item_ids) < 2**63, "a pair's key must fit into int64"
    unique = dict.fromkeys(Part, np.empty(0, np.int64))
    duplicates = dict.fromkeys(Part, 0)
    for part, users, items in zip(parts, user_columns, item_columns, strict=True):
        keys = to_codes(users, user_ids).astype(np.int64) * len(item_ids) + to_codes(items, item_ids)
        unique[part] = np.unique(keys)
        duplicates[part] = len(keys) - len(unique[part])
    train, test = unique[Part.TRAIN], _difference(unique[Part.TEST], unique[Part.TRAIN])
    valid = _difference(_difference(unique[Part.VALID], train), test)
    disjoint = {Part.TRAIN: train, Part.VALID: valid, Part.TEST: test}
    overlap = sum(len(unique[part]) - len(disjoint[part]) for part in Part)
    return EncodedParts(user_ids, item_ids, disjoint, duplicates, overlap)


def hold_out_part(parts: EncodedParts, part: Part, fraction: float, seed: int) -> EncodedParts:
    """Move a share of each user's training interactions to an empty part (see `split.hold_out`)."""
    assert part in (Part.VALID, Part.TEST) and not len(parts.keys[part]), part
    purpose = Purpose.TEST_SPLIT if part == Part.TEST else Purpose.VALID_SPLIT
    held = hold_out(*parts.pairs(Part.TRAIN), fraction, seed, purpose)
    train = parts.keys[Part.TRAIN]
    return replace(parts, keys={**parts.keys, part: train[held], Part.TRAIN: train[~held]})


def fingerprint(parts: EncodedParts, buckets: int) -> str:
    """Return a hash of the logical content in hexadecimal: vocabularies, interactions, parts, number of buckets."""
    digest = blake2b(digest_size=32)
    for ids in (parts.user_ids, parts.item_ids):
        digest.update(f"{ids.type} {len(ids)};".encode())
        if pa.types.is_integer(ids.type):
            digest.update(ids.to_numpy().astype("<i8"))
        else:
            words = [word.encode() for word in ids.to_pylist()]
            digest.update(np.array([len(word) for word in words], "<i8").data)  # separates "ab", "c" from "a", "bc"
            digest.update(b"".join(words))
    for part in Part:
        digest.update(f"part {int(part)} {len(parts.keys[part])};".encode())
        digest.update(parts.keys[part].astype("<i8").data)
    digest.update(f"buckets {buckets};".encode())
    return digest.hexdigest()


def _difference(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the sorted keys that are not among `others`, sorted."""
    return np.setdiff1d(keys, others, assume_unique=True)
