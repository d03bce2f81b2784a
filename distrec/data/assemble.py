"""Raw parts to coded parts: one vocabulary, no pair twice, nothing held out that training has."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from distrec.core.randomness import Purpose
from distrec.data.dataset import Part
from distrec.data.readers.formats import Raw
from distrec.data.split import hold_out
from distrec.data.vocabulary import encode, unify, vocabulary

_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Coded:
    """The interactions of all parts.

    Attributes:
        user_ids, item_ids: raw ids in the order of the codes.
        pairs: of each part the sorted numbers `user * items + item`, int64, none twice, none in two parts.
        duplicates: repeated pairs merged, by the part that brought them.
        overlap: pairs left out of one part because another has them.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    pairs: Mapping[Part, np.ndarray]
    duplicates: Mapping[Part, int]
    overlap: int

    def part(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """(users, items) of a part, int32, by user, then item."""
        users, items = np.divmod(self.pairs[part], max(1, len(self.item_ids)))
        return users.astype(np.int32), items.astype(np.int32)


def code(parts: Mapping[Part, Raw]) -> Coded:
    """Codes the parts that the source brings; the others are empty.

    A test pair that is also in training is left out of the test part. A validation pair that is also in training or in
    the test part is left out of the validation part, so that nothing is chosen by looking at test data.
    """
    user_columns = unify([raw.users for raw in parts.values()])
    item_columns = unify([raw.items for raw in parts.values()])
    user_ids, item_ids = vocabulary(user_columns), vocabulary(item_columns)
    assert len(user_ids) * len(item_ids) < 2**63, "a pair must fit one number"
    pairs = dict.fromkeys(Part, _NONE)
    duplicates = dict.fromkeys(Part, 0)
    for part, users, items in zip(parts, user_columns, item_columns, strict=True):
        numbers = encode(users, user_ids).astype(np.int64) * len(item_ids) + encode(items, item_ids)
        pairs[part] = np.unique(numbers)
        duplicates[part] = len(numbers) - len(pairs[part])
    given = sum(map(len, pairs.values()))
    pairs[Part.TEST] = _without(pairs[Part.TEST], pairs[Part.TRAIN])
    pairs[Part.VALID] = _without(_without(pairs[Part.VALID], pairs[Part.TRAIN]), pairs[Part.TEST])
    return Coded(user_ids, item_ids, pairs, duplicates, given - sum(map(len, pairs.values())))


def carve(coded: Coded, part: Part, fraction: float, seed: int) -> Coded:
    """Moves a share of each user's training interactions to an empty part (see `split.hold_out`)."""
    assert part in (Part.VALID, Part.TEST) and not len(coded.pairs[part]), part
    purpose = Purpose.TEST_SPLIT if part == Part.TEST else Purpose.VALID_SPLIT
    held = hold_out(*coded.part(Part.TRAIN), fraction, seed, purpose)
    train = coded.pairs[Part.TRAIN]
    return replace(coded, pairs={**coded.pairs, part: train[held], Part.TRAIN: train[~held]})


def fingerprint(coded: Coded, buckets: int) -> str:
    """Hash of the logical content, in hexadecimal: vocabularies, interactions, parts, number of buckets."""
    digest = blake2b(digest_size=32)
    for ids in (coded.user_ids, coded.item_ids):
        digest.update(f"{ids.type} {len(ids)};".encode())
        if pa.types.is_integer(ids.type):
            digest.update(ids.to_numpy().astype("<i8"))
        else:
            words = [word.encode() for word in ids.to_pylist()]
            digest.update(np.array([len(word) for word in words], "<i8"))  # so that "ab", "c" is not "a", "bc"
            digest.update(b"".join(words))
    for part in Part:
        digest.update(f"part {int(part)} {len(coded.pairs[part])};".encode())
        digest.update(coded.pairs[part].astype("<i8"))
    digest.update(f"buckets {buckets};".encode())
    return digest.hexdigest()


def _without(pairs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The sorted numbers of the first that are not in the second, sorted too."""
    if not len(pairs) or not len(others):
        return pairs
    place = np.minimum(np.searchsorted(others, pairs), len(others) - 1)
    return pairs[others[place] != pairs]
