"""A model is divided into files evenly and exactly, and a set of them is seen to be whole."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.training.model.shards import (
    INDEX,
    LARGEST_BYTES,
    SMALLEST_BYTES,
    WHOLE,
    absent_files,
    count_shards,
    cut_in_order,
    divide_evenly,
    file_names,
    index_text,
    indexed_files,
)

SIZES = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(0, 1 << 20), max_size=40)


@given(sizes=SIZES, parts=st.integers(1, 9))
def test_every_name_is_in_one_part_and_parts_are_even(sizes: dict[str, int], parts: int) -> None:
    lists = divide_evenly(sizes, parts)
    assert len(lists) == parts
    assert sorted(name for names in lists for name in names) == sorted(sizes)
    loads = [sum(sizes[name] for name in names) for names in lists]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


def test_a_model_of_equal_blocks_is_divided_to_the_byte() -> None:
    block = {"q": 4, "k": 4, "v": 4, "o": 4, "up": 16, "gate": 16, "down": 16, "norm": 1}
    sizes = {f"{number}.{name}": size for number in range(8) for name, size in block.items()}
    loads = [sum(sizes[name] for name in names) for names in divide_evenly(sizes, 4)]
    assert loads == [sum(block.values()) * 2] * 4


@given(total_bytes=st.integers(0, 1 << 45), writers=st.integers(1, 64))
def test_files_are_no_smaller_and_no_larger_than_they_should_be(
    total_bytes: int, writers: int
) -> None:
    count = count_shards(total_bytes, writers)
    assert count == 1 or total_bytes / count >= SMALLEST_BYTES
    assert total_bytes / count <= LARGEST_BYTES
    if total_bytes >= writers * SMALLEST_BYTES:
        assert count % writers == 0, "every rank writes as many"


@given(sizes=SIZES, most_bytes=st.integers(1, 1 << 20))
def test_names_cut_in_order_stay_in_order_and_within_the_size(
    sizes: dict[str, int], most_bytes: int
) -> None:
    lists = cut_in_order(sizes, most_bytes)
    assert [name for names in lists for name in names] == list(sizes)
    for names in lists:
        assert len(names) == 1 or sum(sizes[name] for name in names) <= most_bytes


@pytest.mark.parametrize("count", [1, 2, 11])
def test_a_set_of_files_is_whole_when_all_are_there(count: int) -> None:
    files = file_names(count)
    names = {*files, "config.json", *([INDEX] if count > 1 else [])}
    assert absent_files(names) == []
    for missing in names - {"config.json"}:
        expected = [missing] if count > 1 else [WHOLE]
        assert absent_files(names - {missing}) == expected
    assert absent_files({"config.json"}) == [WHOLE]


def test_an_index_says_what_is_where() -> None:
    files = dict(zip(file_names(2), ({"a": 4, "b": 8}, {"c": 16}), strict=True))
    index = json.loads(index_text(files))
    assert index["metadata"] == {"total_size": 28}
    first, second = file_names(2)
    assert index["weight_map"] == {"a": first, "b": first, "c": second}
    assert indexed_files(index_text(files).encode()) == file_names(2)
