"""Bytes of a file of text: decompressed, without a byte order mark; other content is refused by its name."""

from pathlib import Path

import pyarrow as pa

from distrec.core.errors import UserError

COMPRESSED = (".gz", ".zst", ".bz2")
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_UTF8_BOM = b"\xef\xbb\xbf"
# First bytes of what cannot be read as text. The mark of UTF-32 begins with that of UTF-16.
_REFUSED = {
    b"PK\x03\x04": "a zip archive or an Excel sheet: unpack it, or save it as CSV",
    b"\xfd7zXZ": "compressed with xz: unpack it, or compress it with gzip or zstd",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"PAR1": "a Parquet file: set data.format=parquet or auto, and unpack it if it is compressed as a whole",
    b"[{": "JSON: convert it to CSV or Parquet",
    b'{"': "JSON: convert it to CSV or Parquet",
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_HEAD = 4096  # bytes in which a NUL byte is looked for


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """Return the text of a file, or its first `limit` bytes.

    Raises:
        OSError: the file cannot be read or decompressed.
        UserError: the content is not text in UTF-8 or a superset of ASCII: UTF-16, an archive, binary data.
    """
    with path.open("rb") as file:  # not by pyarrow, which cannot open names that are not UTF-8
        magic = file.read(4)
        file.seek(0)
        codec = next((name for start, name in _CODECS.items() if magic.startswith(start)), None)
        stream = file if codec is None else pa.input_stream(file, compression=codec)
        data = bytes(stream.read() if limit is None else stream.read(limit))
    if refused := next((text for start, text in _REFUSED.items() if data.startswith(start)), _unmarked(data[:_HEAD])):
        if refused.startswith("UTF"):
            refused += f" text: convert it to UTF-8, for example with iconv -f {refused} -t UTF-8"
        raise UserError(f"{path} is {refused}")
    return data.removeprefix(_UTF8_BOM)


def plain_name(path: Path) -> Path:
    """Return the path without the suffix of a compression: `a.csv` of `a.csv.gz`."""
    return path.with_suffix("") if path.suffix.lower() in COMPRESSED else path


def _unmarked(head: bytes) -> str:
    """Return what text without a byte order mark is if it has NUL bytes, else an empty string."""
    nuls = head.count(0)
    if not nuls:
        return ""
    even = head[::2].count(0)
    # ASCII characters in UTF-16 have a NUL in every second byte.
    if nuls > len(head) // 4 and (even == 0 or even == nuls):
        return "UTF-16BE" if even else "UTF-16LE"
    return "binary data, not text: it contains NUL bytes"
