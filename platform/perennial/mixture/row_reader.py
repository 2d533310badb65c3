"""Reading rows of tokenised corpora by their number, with little more than the bytes asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.fs
import pyarrow.parquet as pq
import tenacity

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.store import Store

_OPEN_SHARDS = 128
_HOLE_BYTES = 1 << 20
"""Rows this close are read in one request, with the bytes between them: another request takes
longer."""
_REQUESTS_AT_ONCE = 4
_ATTEMPTS = 6
_LONGEST_PAGE_HEADER = 32
"""A page's header takes 17 to 29 bytes, so two pages never look like one."""


@dataclass(frozen=True)
class CorpusLayout:
    """The shards of a corpus: their keys, the number of rows in each, and their digests.

    digests: sha256 of each shard, from the corpus's manifest; () where none was promised.
    row_bytes: bytes of a stored row; None for those that the reader is asked for. Token ids of
        fewer bytes are widened: a corpus keeps 16 bits when a tokenizer grows past 65,536 entries.
    erased: of a corpus that was erased, the token that all of its rows hold, as hexadecimal; "" of
        any other. Its key is that of the corpus, and nothing is read.
    """

    keys: tuple[str, ...]
    shard_rows: tuple[int, ...]
    digests: tuple[str, ...] = ()
    row_bytes: int | None = None
    erased: str = ""

    @property
    def rows(self) -> int:
        """Return the number of training sequences of the corpus."""
        return int(self._ends[-1]) if self.keys else 0

    @cached_property
    def _ends(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.shard_rows, dtype=np.int64)

    def locate(
        self, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the shard number and the row inside the shard of each row of the corpus.

        Raises:
            IndexError: the corpus does not have one of the rows.
        """
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows {rows.min()} .. {rows.max()} of a corpus of {self.rows}")
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = self._ends - np.asarray(self.shard_rows)
        return shards, rows - starts[shards]


class RowReader:
    """A reader of rows of several corpora; local shards are mapped, remote ones read in ranges.

    Args:
        store: where the shards are.
        layouts: shards of each corpus, by name.
        row_bytes: bytes of one row.
    """

    def __init__(self, store: Store, layouts: dict[str, CorpusLayout], row_bytes: int) -> None:
        self._store = store
        self._places = lru_cache(maxsize=None)(_open_place)
        self._layouts = layouts
        self._row_bytes = row_bytes
        self._shard = lru_cache(_OPEN_SHARDS)(self._open)
        self._threads = None if store.is_local else ThreadPoolExecutor(_REQUESTS_AT_ONCE)

    def read(self, wanted: Sequence[tuple[str, npt.NDArray[np.int64]]]) -> npt.NDArray[np.uint8]:
        """Return the bytes `(rows, row_bytes)` of rows, in the order in which they are wanted.

        Args:
            wanted: pairs of a corpus and at least one of its rows.

        Raises:
            ValueError: a shard does not hold as many rows as its layout states.
        """
        out = np.empty((sum(len(rows) for _, rows in wanted), self._row_bytes), dtype=np.uint8)
        places = np.cumsum([0, *(len(rows) for _, rows in wanted)]).tolist()
        targets = [
            self._target(corpus, out[first:last])
            for (corpus, _), (first, last) in zip(wanted, pairwise(places), strict=True)
        ]
        if self._threads is None:
            for piece in self._pieces(wanted, targets):
                self._fill(piece)
        else:
            for _ in self._threads.map(_with_retries(self._fill), self._pieces(wanted, targets)):
                pass  # raises what a thread raised
        for target, (first, last) in zip(targets, pairwise(places), strict=True):
            if target.shape[1] < self._row_bytes:
                out[first:last] = _widen(target, self._row_bytes)
        return out

    def _target(self, corpus: str, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return where the rows of a corpus are read to: their place, or a narrower array."""
        row_bytes = self._layouts[corpus].row_bytes or self._row_bytes
        if row_bytes == self._row_bytes:
            return out
        return np.empty((len(out), row_bytes), dtype=np.uint8)

    def _pieces(
        self,
        wanted: Sequence[tuple[str, npt.NDArray[np.int64]]],
        targets: Sequence[npt.NDArray[np.uint8]],
    ) -> Iterator[_RowRun]:
        """Yield runs of rows, cut at shards' borders, at large holes, and where the order wraps."""
        for (corpus, rows), out in zip(wanted, targets, strict=True):
            layout = self._layouts[corpus]
            if layout.erased:
                layout.locate(rows)
                token = np.frombuffer(bytes.fromhex(layout.erased), dtype=np.uint8)
                out[:] = np.tile(token, out.shape[1] // len(token))
                continue
            shards, inside = layout.locate(rows)
            step = np.diff(inside)
            far = (step < 0) | (step * self._row_bytes > _HOLE_BYTES) | (np.diff(shards) != 0)
            cuts = [0, *(np.flatnonzero(far) + 1).tolist(), len(rows)]
            for first, last in pairwise(cuts):
                shard = int(shards[first])
                yield _RowRun(
                    layout.keys[shard],
                    layout.shard_rows[shard],
                    inside[first:last],
                    out[first:last],
                )

    def _fill(self, piece: _RowRun) -> None:
        shard = self._shard(piece.key, piece.shard_rows, piece.out.shape[1])
        groups = np.searchsorted(shard.ends, piece.rows, side="right")
        for group in np.unique(groups):
            chosen = slice(*np.searchsorted(groups, [group, group + 1]))
            rows = piece.rows[chosen]
            span = shard.read_span(int(group), int(rows[0]), int(rows[-1]) + 1)
            np.take(span, rows - rows[0], axis=0, out=piece.out[chosen], mode="clip")

    def _open(self, key: str, shard_rows: int, row_bytes: int) -> _Shard:
        filesystem, base = self._places(self._store.holder(key))
        path = f"{base}/{key}"
        shard = _Shard(filesystem.open_input_file(path), row_bytes)
        if shard.rows != shard_rows:
            raise ValueError(
                f"{path} holds {shard.rows} rows of {row_bytes} bytes, "
                f"its manifest states {shard_rows}"
            )
        return shard


def _open_place(store: Store) -> tuple[pyarrow.fs.FileSystem, str]:
    """Return the filesystem of a store and its path there; local files are mapped."""
    filesystem, base = store.arrow()
    return pyarrow.fs.LocalFileSystem(use_mmap=True) if store.is_local else filesystem, base


def _widen(rows: npt.NDArray[np.uint8], row_bytes: int) -> npt.NDArray[np.uint8]:
    """Return rows of 16-bit ids `(rows, bytes)` as rows of 32-bit ids of so many bytes."""
    return rows.view("<u2").astype(f"<u{2 * row_bytes // rows.shape[1]}").view(np.uint8)


def _with_retries(read: Callable[[_RowRun], None]) -> Callable[[_RowRun], None]:
    """Return `read` with retries after a network error, which pyarrow does not always do itself."""
    again = tenacity.retry(
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, OSError) and "AWS" in str(e)),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    return again(read)


class _RowRun(NamedTuple):
    """Ascending rows of one shard, and the array that their bytes go into."""

    key: str
    shard_rows: int
    rows: npt.NDArray[np.int64]
    out: npt.NDArray[np.uint8]


class _Shard:
    """An open shard: in a page of plain fixed-size values, every row has an address."""

    def __init__(self, file: Any, row_bytes: int) -> None:
        self._file = file
        self._row_bytes = row_bytes
        self._metadata = metadata = pq.read_metadata(file)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        self.ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._starts = [0, *self.ends.tolist()]
        fits = metadata.schema.column(0).length == row_bytes
        self.rows = metadata.num_rows if fits else 0
        self._addresses = [_address(group, row_bytes) for group in groups]

    def read_span(self, group: int, first: int, last: int) -> npt.NDArray[np.uint8]:
        """Return the bytes `(last - first, row_bytes)` of successive rows of one row group."""
        first -= self._starts[group]
        last -= self._starts[group]
        address = self._addresses[group]
        if address is None:
            # Readers are not shared between threads; one is cheap when the footer is known.
            reader = pq.ParquetFile(self._file, metadata=self._metadata)
            values = reader.read_row_group(group)[0].combine_chunks().buffers()[1]
            data = values.slice(first * self._row_bytes, (last - first) * self._row_bytes)
        else:
            size = (last - first) * self._row_bytes
            data = self._file.read_at(size, address + first * self._row_bytes)
        return np.frombuffer(data, dtype=np.uint8).reshape(last - first, self._row_bytes)


def _address(group: Any, row_bytes: int) -> int | None:
    """Return the offset of a row group's values; None unless they are one plain page."""
    column = group.column(0)
    header_bytes: int = column.total_compressed_size - group.num_rows * row_bytes
    plain = column.compression == "UNCOMPRESSED" and not column.has_dictionary_page
    if not plain or not 0 < header_bytes <= _LONGEST_PAGE_HEADER:
        return None
    return int(column.data_page_offset) + header_bytes
