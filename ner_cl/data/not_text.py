"""Says what a file is that should be UTF-8 text and is not."""

from ner_cl.errors import DataError

__all__ = ["not_utf8", "refuse_other_kinds"]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_TABLES = (b"PAR1", b"ARROW1")


def refuse_other_kinds(start: bytes, where: str, file: str = "") -> None:
    """Raise DataError if the first bytes are not those of UTF-8 text.

    Args:
        start: the first bytes, at least 6 of them if there are as many.
        where: what the message begins with.
        file: name of the file, for the command that converts it.
    """
    if start.startswith(_UTF16):
        raise DataError(f"{where}: is UTF-16, not UTF-8; convert it with: iconv -f UTF-16 -t UTF-8{_into(file)}")
    if start.startswith(_COMPRESSED):
        raise DataError(f"{where}: is a compressed file; unpack it first")
    if start.startswith(_TABLES):
        raise DataError(
            f"{where}: is a parquet or arrow file; where text or columns are read, write its texts to a file, one a "
            "line; annotated sentences in it are read in the format hub"
        )


def not_utf8(data: bytes, where: str, file: str = "") -> DataError:
    """Return the error for bytes that are not UTF-8; Latin-1 is a guess that holds no null characters."""
    if b"\0" in data:
        return DataError(f"{where}: is neither UTF-8 nor text in another encoding; name a file of text")
    return DataError(
        f"{where}: is not UTF-8; if it is Latin-1, convert it with: iconv -f ISO-8859-1 -t UTF-8{_into(file)}"
    )


def _into(file: str) -> str:
    return f" {file} > utf8.txt" if file else ""
