"""Reader of the LightGCN text format: one `user item item ...` a line, integer ids.

Array operations read the usual file. A file with a sign, a byte that is neither digit nor blank, or an id of more than
18 digits is read again line by line, with the same result for valid files and the number of a malformed line.
"""

import re

import numpy as np
import pyarrow as pa

from distrec.data.readers.bad_lines import BadLines

_INTEGER = re.compile(rb"[+-]?[0-9]+")
_SAFE_DIGITS = 18  # every integer of 18 digits fits into int64
_BLANKS = b" \t\r\n"
_LONGEST = 20  # characters of the smallest int64, sign included; also keeps int() from parsing absurdly long tokens


def read(data: bytes, bad: BadLines) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Read the (user, item) pairs of a text as two int64 columns, in the order of the text.

    Blank lines and users without items give no pair.

    Raises:
        UserError: a token that is not a 64-bit integer, under the policy `error`.
    """
    pairs = _read_fast(data)
    users, items = pairs if pairs is not None else _read_lines(data, bad)
    return pa.chunked_array([users]), pa.chunked_array([items])


def _read_fast(data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the pairs, or None if the file must be read line by line."""
    if data.translate(None, b"0123456789" + _BLANKS):
        return None
    text = np.frombuffer(data, np.uint8)
    digit = text >= ord("0")  # all other bytes here are blanks, which are below "0"
    edges = np.flatnonzero(np.diff(digit, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if (ends - starts).max() > _SAFE_DIGITS:
        return None
    ids = np.fromstring(data, np.int64, sep=" ")
    assert len(ids) == len(starts)
    lines = np.searchsorted(np.flatnonzero(text == ord("\n")), starts)
    first = np.diff(lines, prepend=-1) > 0  # the first id of a line is the user
    users = ids[first][np.cumsum(first) - 1]
    return users[~first], ids[~first]


def _read_lines(data: bytes, bad: BadLines) -> tuple[np.ndarray, np.ndarray]:
    users = [np.empty(0, np.int64)]
    items = [np.empty(0, np.int64)]
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            ids = [_integer(token) for token in line.split()]
        except ValueError as error:
            bad.report(number, str(error), line.decode("utf-8", "surrogateescape"))
            continue
        if ids:
            users.append(np.full(len(ids) - 1, ids[0], np.int64))
            items.append(np.array(ids[1:], np.int64))
    return np.concatenate(users), np.concatenate(items)


def is_list(line: bytes) -> bool:
    """Return True for a line of ids, none of them malformed."""
    return all(len(token) <= _SAFE_DIGITS and token.isdigit() or _valid(token) for token in line.split())


def _valid(token: bytes) -> bool:
    try:
        _integer(token)
    except ValueError:
        return False
    return True


def _integer(token: bytes) -> int:
    if not _INTEGER.fullmatch(token):
        raise ValueError(f"{token[:40].decode('utf-8', 'backslashreplace')!r} is not an integer id")
    if len(token) > _LONGEST or not -(2**63) <= int(token) < 2**63:
        raise ValueError(f"the id {token[:40].decode()} does not fit 64 bits")
    return int(token)
