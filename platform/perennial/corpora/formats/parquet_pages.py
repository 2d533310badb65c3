"""Sizes of the pages of a Parquet file, read before pyarrow decodes any of them.

pyarrow decodes a page as a whole, and a footer has no sizes of pages: they are in the headers in
front of them (parquet-format, `PageHeader`), in Thrift's compact protocol, of which no more is read
here than their beginning and their end.
"""

from __future__ import annotations

from typing import Any, BinaryIO

_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 0, 1, 2, 3, 7, 8, 12
_WHOLE_NUMBERS = (4, 5, 6)
_UNCOMPRESSED, _COMPRESSED = 2, 3
"""numbers of a header's fields"""
_DEEPEST = 8


def find_large_page(stream: BinaryIO, column: Any, limit_bytes: int) -> int:
    """Return the bytes of the first page of a column above a limit; 0 for none.

    A header that makes no sense ends the search: what is damaged, pyarrow finds.

    Args:
        stream: the file, which can seek.
        column: metadata of a row group's column. One that is smaller than the limit as a whole is
            not looked at; of a larger one every header is read.
        limit_bytes: uncompressed bytes that a page may have.
    """
    if column.total_uncompressed_size <= limit_bytes:
        return 0
    place = column.dictionary_page_offset or column.data_page_offset
    end = place + column.total_compressed_size
    while 0 <= place < end:
        stream.seek(place)
        try:
            sizes = _read_struct(stream)
            size, stored = sizes[_UNCOMPRESSED], sizes[_COMPRESSED]
        except (KeyError, ValueError):
            return 0
        if size > limit_bytes:
            return size
        if stored < 0:
            return 0
        place = stream.tell() + stored
    return 0


def _read_struct(stream: BinaryIO, depth: int = 0) -> dict[int, int]:
    """Return the whole numbers of a struct by their fields, and go behind it."""
    numbers: dict[int, int] = {}
    field = 0
    while (head := _read_byte(stream)) != _STOP:
        field = field + (head >> 4) if head >> 4 else _read_signed(stream)
        kind = head & 15
        if kind in _WHOLE_NUMBERS:
            numbers[field] = _read_signed(stream)
        elif kind not in (_TRUE, _FALSE):
            _skip(stream, kind, depth + 1)
    return numbers


def _skip(stream: BinaryIO, kind: int, depth: int) -> None:
    """Go behind a value that is neither a flag of a field nor a whole number of one."""
    if depth > _DEEPEST:
        raise ValueError("structs in structs")
    if kind in (_TRUE, _FALSE, _BYTE):
        _read_byte(stream)
    elif kind in _WHOLE_NUMBERS:
        _read_unsigned(stream)
    elif kind == _DOUBLE:
        stream.seek(8, 1)
    elif kind == _BINARY:
        stream.seek(_read_unsigned(stream), 1)
    elif kind == _STRUCT:
        _read_struct(stream, depth)
    else:
        raise ValueError(f"a page header has no values of type {kind}")


def _read_signed(stream: BinaryIO) -> int:
    value = _read_unsigned(stream)
    return (value >> 1) ^ -(value & 1)


def _read_unsigned(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _read_byte(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a number without an end")


def _read_byte(stream: BinaryIO) -> int:
    data = stream.read(1)
    if not data:
        raise ValueError("the file ends in a page header")
    return data[0]
