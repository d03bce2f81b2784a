"""Reader of the LightGCN text format: `user item item ...` a line, integer ids.

The usual file is read by array operations. A file with anything unusual in it (a sign, a byte that is no digit, a
number of more than 18 digits) is read again line by line: the same pairs where both apply, and the number of a bad
line.
"""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa

from distrec.data.readers.bad_lines import BadLines

_INTEGER = re.compile(rb"[+-]?[0-9]+")
_SAFE_DIGITS = 18  # every number of so many digits fits 64 bits
_BOM = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n"
_LONGEST = 20  # characters of the smallest 64-bit number, sign included; also keeps int() off absurdly long tokens


def read(path: Path, bad: BadLines) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The (user, item) pairs of a file as two int64 columns, in the order of the file.

    A blank line, and a user without items, give no pair.

    Raises:
        UserError: a token that is not a 64-bit integer, where bad lines are errors.
    """
    data = path.read_bytes().removeprefix(_BOM)
    pairs = _read_fast(data)
    users, items = pairs if pairs is not None else _read_lines(data, bad)
    return pa.chunked_array([users]), pa.chunked_array([items])


def _read_fast(data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """The pairs, or None where the file needs the careful reader."""
    if data.translate(None, b"0123456789" + _BLANKS):
        return None
    text = np.frombuffer(data, np.uint8)
    digit = text >= ord("0")  # the other bytes left are blanks, all of them below "0"
    edges = np.flatnonzero(np.diff(digit, prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if (ends - starts).max() > _SAFE_DIGITS:
        return None
    numbers = np.fromstring(data, np.int64, sep=" ")
    assert len(numbers) == len(starts)
    lines = np.searchsorted(np.flatnonzero(text == ord("\n")), starts)
    first = np.diff(lines, prepend=-1) > 0  # the first number of a line is the user
    users = numbers[first][np.cumsum(first) - 1]
    return users[~first], numbers[~first]


def _read_lines(data: bytes, bad: BadLines) -> tuple[np.ndarray, np.ndarray]:
    users = [np.empty(0, np.int64)]
    items = [np.empty(0, np.int64)]
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            values = [_integer(token) for token in line.split()]
        except ValueError as error:
            bad.report(number, str(error), line.decode("utf-8", "surrogateescape"))
            continue
        if values:
            users.append(np.full(len(values) - 1, values[0], np.int64))
            items.append(np.array(values[1:], np.int64))
    return np.concatenate(users), np.concatenate(items)


def _integer(token: bytes) -> int:
    if not _INTEGER.fullmatch(token):
        raise ValueError(f"{token[:40].decode('utf-8', 'backslashreplace')!r} is not an integer id")
    if len(token) > _LONGEST or not -(2**63) <= int(token) < 2**63:
        raise ValueError(f"the id {token[:40].decode()} does not fit 64 bits")
    return int(token)
