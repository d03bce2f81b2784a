"""Encode the raw parts of a data set: integer codes, duplicates merged, no pair in two parts; filter and split them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from distrec.core.errors import UserError
from distrec.core.randomness import Purpose
from distrec.core.status import stage
from distrec.data.dataset import Part
from distrec.data.id_checks import id_notes
from distrec.data.readers.formats import RawPairs
from distrec.data.split import Split, hash_ids, hold_out
from distrec.data.vocabulary import to_codes, unify, vocabulary


@dataclass(frozen=True)
class EncodedParts:
    """Interactions of all parts as integer codes.

    Attributes:
        user_ids, item_ids: raw ids in the order of the codes.
        keys: pairs of each part as sorted int64 keys `user * items + item`; no key occurs twice, in one part or in two.
        duplicates: repeated pairs merged, by part of the source.
        overlap: pairs dropped from one part because another part has them.
        times: time of each training pair, if the source has times; the earliest of a repeated pair.
        id_notes: warnings about ids that do not meet.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    keys: Mapping[Part, np.ndarray]
    duplicates: Mapping[Part, int]
    overlap: int
    times: np.ndarray | None = None
    id_notes: tuple[str, ...] = ()

    def pairs(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        """Return (users, items) of a part, int32, sorted by user, then item."""
        users, items = np.divmod(self.keys[part], max(1, len(self.item_ids)))
        return users.astype(np.int32), items.astype(np.int32)


def encode_parts(parts: Mapping[Part, RawPairs], names: Mapping[Part, str]) -> EncodedParts:
    """Encode the parts that the source has, training first; the others are empty.

    A test pair that is also in training is dropped. A validation pair that is also in training or in the test part is
    dropped, so that model selection never sees test data. `names` are the files of the parts, for warnings.
    """
    user_columns = unify([raw.users for raw in parts.values()])
    item_columns = unify([raw.items for raw in parts.values()])
    user_ids, item_ids = vocabulary(user_columns), vocabulary(item_columns)
    assert len(user_ids) * len(item_ids) < 2**63, "a pair's key must fit into int64"
    users = {part: to_codes(column, user_ids) for part, column in zip(parts, user_columns, strict=True)}
    items = {part: to_codes(column, item_ids) for part, column in zip(parts, item_columns, strict=True)}
    notes = (*id_notes("users", user_ids, users, names), *id_notes("items", item_ids, items, names))
    unique, duplicates, times = dict.fromkeys(Part, np.empty(0, np.int64)), dict.fromkeys(Part, 0), None
    for part, raw in parts.items():
        keys = users[part].astype(np.int64) * len(item_ids) + items[part]
        if part == Part.TRAIN and raw.times is not None:
            unique[part], times = _earliest(keys, raw.times.to_numpy())
        else:
            unique[part] = np.unique(keys)
        duplicates[part] = len(keys) - len(unique[part])
    train, test = unique[Part.TRAIN], _difference(unique[Part.TEST], unique[Part.TRAIN])
    valid = _difference(_difference(unique[Part.VALID], train), test)
    disjoint = {Part.TRAIN: train, Part.VALID: valid, Part.TEST: test}
    overlap = sum(len(unique[part]) - len(disjoint[part]) for part in Part)
    return EncodedParts(user_ids, item_ids, disjoint, duplicates, overlap, times, notes)


def k_core(parts: EncodedParts, min_user: int, min_item: int) -> EncodedParts:
    """Leave out users and items with fewer interactions, in all parts together, repeatedly until there are none.

    The result is the largest set of interactions of which every user has `min_user` and every item `min_item`.

    Raises:
        UserError: no training interaction is left.
    """
    keys = np.concatenate([parts.keys[part] for part in Part])
    kept = keys
    while True:
        users, items = np.divmod(kept, len(parts.item_ids))
        user_degrees = np.bincount(users, minlength=len(parts.user_ids))
        item_degrees = np.bincount(items, minlength=len(parts.item_ids))
        good = (user_degrees[users] >= min_user) & (item_degrees[items] >= min_item)
        if good.all():
            break
        kept = kept[good]
    if len(kept) == len(keys):
        return parts
    user_codes, item_codes = np.cumsum(user_degrees > 0) - 1, np.cumsum(item_degrees > 0) - 1
    remaining = {part: np.isin(parts.keys[part], kept, assume_unique=True) for part in Part}
    if not remaining[Part.TRAIN].any():
        raise UserError(f"data.min_user={min_user}, data.min_item={min_item}: no training interaction is left")
    recoded = {}
    for part in Part:
        users, items = np.divmod(parts.keys[part][remaining[part]], len(parts.item_ids))
        recoded[part] = user_codes[users] * int((item_degrees > 0).sum()) + item_codes[items]
    return replace(
        parts,
        user_ids=parts.user_ids.filter(pa.array(user_degrees > 0)),
        item_ids=parts.item_ids.filter(pa.array(item_degrees > 0)),
        keys=recoded,
        times=None if parts.times is None else parts.times[remaining[Part.TRAIN]],
    )


def hold_out_parts(parts: EncodedParts, shares: Mapping[Part, float], method: str, seed: int) -> EncodedParts:
    """Move training interactions to empty parts, in turn; `shares` of what is left (see `Split`)."""
    if not shares:
        return parts
    hashes = hash_ids(parts.user_ids), hash_ids(parts.item_ids)
    for part, share in shares.items():
        stage(f"data: holding out the {part.name.lower()} part of {len(parts.keys[Part.TRAIN]):,} interactions")
        parts = _hold_out_part(parts, part, hashes, method, share, seed)
    return parts


def _hold_out_part(
    parts: EncodedParts, part: Part, hashes: tuple[np.ndarray, np.ndarray], method: str, fraction: float, seed: int
) -> EncodedParts:
    assert part in (Part.VALID, Part.TEST) and not len(parts.keys[part]), part
    purpose = Purpose.TEST_SPLIT if part == Part.TEST else Purpose.VALID_SPLIT
    held = hold_out(*parts.pairs(Part.TRAIN), *hashes, Split(method, fraction, seed, purpose), parts.times)
    train, times = parts.keys[Part.TRAIN], parts.times
    return replace(
        parts,
        keys={**parts.keys, part: train[held], Part.TRAIN: train[~held]},
        times=None if times is None else times[~held],
    )


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


def _earliest(keys: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct keys, sorted, and the earliest time of each."""
    order = np.argsort(times, kind="stable")
    unique, first = np.unique(keys[order], return_index=True)
    return unique, times[order[first]]


def _difference(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the sorted keys that are not among `others`, sorted."""
    return np.setdiff1d(keys, others, assume_unique=True)
