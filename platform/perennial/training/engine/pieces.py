"""Pieces of a parameter's optimizer state: their keys in files, and where two of them overlap.

A piece is a span of elements. Those of a parameter that is whole, or of which a worker has some of
the rows, are counted through the parameter; those of a matrix of which a worker has some of the
columns, through these columns. So any layout of workers finds what any other wrote. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Columns(NamedTuple):
    """The columns from `first` to before `last` of a matrix that has `width` of them."""

    first: int
    last: int
    width: int


@dataclass(frozen=True)
class Elements:
    """A span of a parameter's elements, row by row.

    start, length: elements, counted through the columns.
    columns: that are counted; None counts all.
    """

    start: int
    length: int
    columns: Columns | None = None

    @property
    def end(self) -> int:
        """Return the element after the last one."""
        return self.start + self.length


class Block(NamedTuple):
    """Elements of a span: some columns of some rows.

    offset: of the first of them in the span.
    rows, columns: their numbers; stride: from one row to the next.
    """

    offset: int
    rows: int
    columns: int
    stride: int

    @property
    def end(self) -> int:
        """Return the offset after the last element."""
        return self.offset + (self.rows - 1) * self.stride + self.columns

    def moved(self, elements: int) -> Block:
        """Return the block in a span that begins `elements` later."""
        return self._replace(offset=self.offset - elements)

    def view(self, span: torch.Tensor) -> torch.Tensor:
        """Return the block `(rows, columns)` of a span's elements `(length,)`."""
        offset = span.storage_offset() + self.offset
        return span.as_strided((self.rows, self.columns), (self.stride, 1), offset)


def piece_key(parameter: str, start: int, columns: Columns | None, kind: str) -> str:
    """Return the key of a piece in a file: `PARAMETER|START|KIND`, or with columns before START."""
    middle = f"{start}" if columns is None else f"{'-'.join(map(str, columns))}|{start}"
    return f"{parameter}|{middle}|{kind}"


def parse_key(key: str) -> tuple[str, str, int, Columns | None]:
    """Return parameter, kind, start and columns of a key that `piece_key` made."""
    parameter, *columns, start, kind = key.split("|")
    if not columns:
        return parameter, kind, int(start), None
    first, last, width = map(int, columns[0].split("-"))
    return parameter, kind, int(start), Columns(first, last, width)


def overlaps(one: Elements, other: Elements) -> Iterator[tuple[Block, Block]]:
    """Yield what two spans of a parameter share, as equal blocks of the one and of the other."""
    if one.columns == other.columns:
        first, last = max(one.start, other.start), min(one.end, other.end)
        if first < last:
            size = last - first
            yield (
                Block(first - one.start, 1, size, size),
                Block(first - other.start, 1, size, size),
            )
        return
    known = one.columns or other.columns
    assert known is not None
    whole = Columns(0, known.width, known.width)
    for top, bottom, left, right in _rectangles(one, whole):
        for up, down, begin, end in _rectangles(other, whole):
            rows = max(top, up), min(bottom, down)
            columns = max(left, begin), min(right, end)
            if rows[0] < rows[1] and columns[0] < columns[1]:
                yield _block(one, whole, rows, columns), _block(other, whole, rows, columns)


def _rectangles(span: Elements, whole: Columns) -> Iterator[tuple[int, int, int, int]]:
    """Yield a span as rows `(first, last)` and columns `(first, last)` of its matrix."""
    first, last, _ = span.columns or whole
    width = last - first
    row, left = divmod(span.start, width)
    last_row, right = divmod(span.end, width)
    if row == last_row:
        yield row, row + 1, first + left, first + right
        return
    if left:
        yield row, row + 1, first + left, last
        row += 1
    if row < last_row:
        yield row, last_row, first, last
    if right:
        yield last_row, last_row + 1, first, first + right


def _block(
    span: Elements, whole: Columns, rows: tuple[int, int], columns: tuple[int, int]
) -> Block:
    first, last, _ = span.columns or whole
    width = last - first
    offset = rows[0] * width + columns[0] - first - span.start
    return Block(offset, rows[1] - rows[0], columns[1] - columns[0], width)
