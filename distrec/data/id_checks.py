"""Warnings about ids that do not meet: a part of which training knows few ids, one number in two spellings.

An id in a text file is its text without surrounding blanks, so `1`, `1.0` and `01` are three ids. Programs that convert
between numbers and text produce such files without notice.
"""

import unicodedata
from collections.abc import Mapping
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distrec.data.dataset import Part

_FEW = 0.5  # share of a part's ids known from training below which files probably write ids differently
_NUMBER = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?$"


def id_notes(noun: str, ids: pa.Array, codes: Mapping[Part, np.ndarray], names: Mapping[Part, str]) -> list[str]:
    """Return a line for each warning about the ids of one kind.

    Args:
        noun: `users` or `items`.
        ids: distinct ids, in the order of the codes.
        codes: codes of the ids of each part, in any order; training first.
        names: the file of each part.
    """
    present = {part: np.unique(part_codes) for part, part_codes in codes.items()}
    values = _number_values(ids)
    notes = [_unknown(noun, ids, values, present, names, part) for part in present if part != Part.TRAIN]
    notes.append(_two_spellings(noun, "number", "ways", ids, values, present, names))
    notes.append(_two_spellings(noun, "id", "Unicode forms", ids, _normal_forms(ids), present, names))
    return [note for note in notes if note]


def _unknown(
    noun: str,
    ids: pa.Array,
    values: pa.Array,
    present: Mapping[Part, np.ndarray],
    names: Mapping[Part, str],
    part: Part,
) -> str:
    """Return a line if few ids of a part are known from training, else an empty string."""
    train, own = present[Part.TRAIN], present[part]
    unknown = np.setdiff1d(own, train, assume_unique=True)
    known = len(own) - len(unknown)
    if not len(own) or known >= _FEW * len(own):
        return ""
    # The same number, if training has it, is a better example than any id of training.
    twins = pc.index_in(values.take(unknown), value_set=values.take(train), skip_nulls=True)
    first = pc.indices_nonzero(pc.is_valid(twins)).to_pylist()[:1]
    strange, usual = (unknown[first[0]], train[twins[first[0]].as_py()]) if first else (unknown[0], train[0])
    return (
        f"{'none' if not known else f'only {known:,}'} of the {len(own):,} {noun} of {names[part]} "
        f"{'is' if not known else 'are'} known from {names[Part.TRAIN]}: the former has ids such as "
        f"{_shown(ids, strange)}, the latter {_shown(ids, usual)}; are they written in the same way?"
    )


def _two_spellings(
    noun: str,
    what: str,
    ways: str,
    ids: pa.Array,
    values: pa.Array,
    present: Mapping[Part, np.ndarray],
    names: Mapping[Part, str],
) -> str:
    """Return a line if one value, a number or an id in a normal form, has two ids, else an empty string."""
    counts = pc.value_counts(values.drop_null())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(repeated):
        return ""
    pair = pc.indices_nonzero(pc.equal(values, repeated[0])).to_pylist()[:2]
    files = [next(names[part] for part, codes in present.items() if code in codes) for code in pair]
    one, two = (f"{_shown(ids, code)} ({file})" for code, file in zip(pair, files, strict=True))
    count = f"{len(repeated):,} {what}{'s are' if len(repeated) > 1 else ' is'}"
    return f"{count} written in two {ways} among the {noun}, such as {one} and {two}: different {noun}, as ids are text"


def _number_values(ids: pa.Array) -> pa.Array:
    """Return each text that is a number in one spelling, null for other ids."""
    if not pa.types.is_large_string(ids.type):
        return pa.nulls(len(ids), pa.large_string())
    text = pc.if_else(pc.match_substring_regex(ids, _NUMBER), ids, None)
    powers = pc.indices_nonzero(pc.match_substring_regex(text, "[eE]")).to_numpy()
    if len(powers):
        words = text.to_pylist()
        for row in powers:
            words[row] = format(Decimal(words[row]), "f")
        text = pa.array(words, pa.large_string())
    text = pc.replace_substring_regex(text, r"^\+", "")
    text = pc.replace_substring_regex(text, r"^(-?)0+([0-9])", r"\1\2")
    text = pc.replace_substring_regex(text, r"\.0*$", "")
    return pc.replace_substring_regex(text, r"(\.[0-9]*[1-9])0+$", r"\1")


def _normal_forms(ids: pa.Array) -> pa.Array:
    """Return each id in Unicode's normal form C, null for those of ASCII: accents may be letters of their own."""
    if not pa.types.is_large_string(ids.type):
        return pa.nulls(len(ids), pa.large_string())
    return pc.utf8_normalize(pc.if_else(pc.string_is_ascii(ids), None, ids), form="NFC")


def _shown(ids: pa.Array, code: int) -> str:
    text = str(ids[code].as_py())
    return repr(text) if unicodedata.is_normalized("NFC", text) else ascii(text)
