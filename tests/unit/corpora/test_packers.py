"""Packing of documents into rows: nothing lost, nothing cut that fits, padding that can be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from perennial.corpora import IngestSettings
from perennial.corpora.packers import Packer, assign_rows, make_packer

END = 7
DTYPE = np.dtype("<u2")


def packer_of(
    packing: str, length: int, seed: int = 0, shard: str = "shard-00000.parquet"
) -> Packer:
    settings = IngestSettings.model_validate(
        {"sequence_length": length, "seed": seed, "packing": packing}
    )
    return make_packer(settings, shard, DTYPE, END)


def pack(packer: Packer, batches: list[list[list[int]]]) -> np.ndarray:
    """Rows of documents, which come in batches without their ends."""
    groups = []
    for batch in batches:
        ids = [np.array([*document, END], DTYPE) for document in batch]
        added = np.concatenate([np.empty(0, DTYPE), *ids])
        groups += [group.copy() for group in packer.add(added)]
    groups += [group.copy() for group in packer.finish()]
    return np.concatenate(groups) if groups else np.empty((0, 2), DTYPE)


def documents_in(rows: np.ndarray) -> list[tuple[int, ...]]:
    """Pieces of documents in rows, with their ends, without what an end after an end says."""
    pieces = []
    for row in rows.tolist():
        piece: list[int] = []
        for place, token in enumerate(row):
            if token == END and place and row[place - 1] == END:
                continue
            piece.append(token)
            if token == END:
                pieces.append(tuple(piece))
                piece = []
        pieces += [tuple(piece)] if piece else []
    return pieces


def check_spans(packer: Packer, rows: np.ndarray, documents: list[tuple[int, ...]]) -> None:
    """Check that every span holds what it says, and that spans hold all that is no padding."""
    spans = packer.list_spans()
    places = [(int(row), int(start)) for row, start in zip(spans.row, spans.start, strict=True)]
    assert places == sorted(places)
    for span in zip(*(column.tolist() for column in spans), strict=True):
        document, before, row, start, tokens = span
        held = rows[row, start : start + tokens].tolist()
        assert held == list(documents[document][before : before + tokens])
    assert int(spans.tokens.sum()) == rows.size - packer.padding


texts = st.lists(st.lists(st.lists(st.integers(10, 99), max_size=25), max_size=8), max_size=6)


@given(batches=texts, length=st.integers(2, 12))
@example(batches=[[[10, 11, 12, 13]]], length=4)  # its end alone is left over
@example(batches=[[[]], [[10], []]], length=4)
def test_I5_best_fit_loses_no_token_and_cuts_nothing_that_fits(
    batches: list[list[list[int]]], length: int
) -> None:
    packer = packer_of("best-fit", length)
    rows = pack(packer, batches)
    whole = [(*document, END) for batch in batches for document in batch]
    pieces = [
        piece
        for document in whole
        for first in range(0, len(document), length)
        if (piece := document[first : first + length]) != (END,)
    ]
    assert sorted(documents_in(rows)) == sorted(pieces)
    assert packer.remainder == sum(len(d) % length == 1 for d in whole)
    assert packer.cut_documents == sum(len(document) > length for document in whole)
    tokens = sum(map(len, whole))
    assert rows.size - packer.padding + packer.remainder == tokens
    check_spans(packer, rows, whole)
    told = (rows[:, 1:] == END) & (rows[:, :-1] == END)
    assert told.sum() == packer.padding


@given(batches=texts, length=st.integers(2, 12))
@example(batches=[[[10]], [], [[11, 12]]], length=4)  # near duplicates were a whole batch
def test_I5_concat_counts_the_documents_that_it_cuts(
    batches: list[list[list[int]]], length: int
) -> None:
    packer = packer_of("concat", length)
    rows = pack(packer, batches)
    tokens: list[int] = []
    cut = 0
    for batch in batches:
        for document in batch:
            first = len(tokens)
            tokens += [*document, END]
            cut += first // length != (len(tokens) - 1) // length
    assert rows.ravel().tolist() == tokens[: rows.size]
    assert (packer.remainder, packer.padding) == (len(tokens) - rows.size, 0)
    assert packer.cut_documents == cut
    check_spans(packer, rows, [(*document, END) for batch in batches for document in batch])


@given(
    sizes=st.lists(st.integers(1, 30), max_size=60),
    length=st.integers(30, 40),
)
def test_rows_are_those_of_best_fit_decreasing(sizes: list[int], length: int) -> None:
    rows, count = assign_rows(np.array(sizes, np.int64), length)
    filled = np.bincount(rows, weights=sizes, minlength=count)
    assert len(filled) == count
    assert (filled <= length).all() and (filled > 0).all()
    spaces: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [place for place, space in enumerate(spaces) if space >= size]
        if fitting:
            spaces[min(fitting, key=lambda place: spaces[place])] -= size
        else:
            spaces.append(length - size)
    assert sorted(length - filled) == sorted(spaces)


def test_the_rows_of_a_buffer_are_not_in_the_order_of_their_fill() -> None:
    sizes = np.random.default_rng(0).integers(3, 60, 2000)
    batches = [[[10] * int(size) for size in sizes]]
    rows = pack(packer_of("best-fit", 64), batches)
    padding = (rows[:, 1:] == END) & (rows[:, :-1] == END)
    by_row = padding.sum(axis=1)
    assert 0 < by_row.sum() < rows.size / 40
    lengths = (rows == 10).sum(axis=1) / np.maximum((rows == END).sum(axis=1) - by_row, 1)
    half = len(rows) // 2
    assert lengths[:half].mean() == pytest.approx(lengths[half:].mean(), rel=0.1)
    assert (pack(packer_of("best-fit", 64), batches) == rows).all()
    others = (packer_of("best-fit", 64, seed=1), packer_of("best-fit", 64, shard="another"))
    assert all((pack(other, batches) != rows).any() for other in others)


def test_a_buffer_bounds_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.corpora.packers.BUFFER_TOKENS", 0)
    packer = packer_of("best-fit", 8)  # 64 rows at least
    longest = 0
    for _ in range(100):
        list(packer.add(np.array([10] * 30 + [END], DTYPE)))
        longest = max(longest, packer._held_tokens)  # type: ignore[attr-defined]
    assert longest < 64 * 8
