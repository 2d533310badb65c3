"""The report's table of parts."""

from __future__ import annotations

from perennial.report import tables


def test_the_tokens_of_parts_are_a_table_where_a_corpus_has_parts() -> None:
    plain = {"new": 8, "new_by_corpus": {"a": 8}, "replayed": {}}
    parted = plain | {"parts": {"a": {"wiki": 6000, "": 2000}}}
    assert tables.parts({"00-a": plain}) == []
    (table,) = tables.parts({"00-a": plain, "01-a": parted})
    assert list(table.rows) == [
        ("01-a", "a", "wiki", "6,000", "75.0%"),
        ("01-a", "a", "no domain", "2,000", "25.0%"),
    ]
