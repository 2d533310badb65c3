"""Pieces of any layout find in those of any other exactly the elements that both have."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from perennial.training.engine.pieces import Columns, Elements, overlaps, parse_key, piece_key


@st.composite
def _matrix_and_spans(draw: st.DrawFn) -> tuple[int, int, Elements, Elements]:
    """Rows and columns of a matrix, and two spans of it: of the whole of it, or of some columns."""
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    spans = []
    for _ in range(2):
        first = draw(st.integers(0, width - 1))
        some = Columns(first, draw(st.integers(first + 1, width)), width)
        columns = draw(st.sampled_from([None, some]))
        size = rows * (width if columns is None else columns.last - columns.first)
        start = draw(st.integers(0, size - 1))
        spans.append(Elements(start, draw(st.integers(1, size - start)), columns))
    return rows, width, spans[0], spans[1]


def _elements(span: Elements, whole: torch.Tensor) -> torch.Tensor:
    first, last, _ = span.columns or Columns(0, whole.shape[1], whole.shape[1])
    return whole[:, first:last].reshape(-1)[span.start : span.end].clone()


@given(_matrix_and_spans())
def test_what_two_runs_share_is_copied_once_and_nothing_else(
    case: tuple[int, int, Elements, Elements],
) -> None:
    rows, width, one, other = case
    whole = torch.arange(rows * width).reshape(rows, width)
    mine, stored = torch.full((one.length,), -1), _elements(other, whole)
    copied = 0
    for here, there in overlaps(one, other):
        part = stored[there.offset : there.end]
        here.view(mine).copy_(there.moved(there.offset).view(part))
        copied += here.rows * here.columns
    wanted = _elements(one, whole)
    shared = torch.isin(wanted, stored)
    assert torch.equal(mine, torch.where(shared, wanted, -1))
    assert copied == int(shared.sum())


@given(st.integers(0, 10**12), st.none() | st.builds(Columns, *[st.integers(0, 10**6)] * 3))
def test_a_key_says_what_a_piece_is(start: int, columns: Columns | None) -> None:
    key = piece_key("model.layers.0.mlp.weight", start, columns, "exp_avg")
    assert parse_key(key) == ("model.layers.0.mlp.weight", "exp_avg", start, columns)


def test_pieces_of_whole_parameters_have_the_keys_of_all_versions() -> None:
    assert piece_key("embed.weight", 64, None, "master") == "embed.weight|64|master"
