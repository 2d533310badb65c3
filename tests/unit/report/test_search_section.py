"""Results of searches as sections of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from perennial.report.search_section import search_sections
from perennial.search.results import result_key
from perennial.store import open_store
from tests.support.refusal import refused
from tests.support.search_results import sample_layers, sample_result


def test_each_kind_of_search_has_its_own_section(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    results: dict[str, Any] = {"few": sample_layers(), "rates": sample_result([(3.0, 0.5)])}
    for name, result in results.items():
        store.write(result_key(name, "result.json"), json.dumps(result.to_dict()).encode())
    store.write("searches/few/starts/a/config.json", b"{}")
    few, rates = search_sections(store)
    (table,) = few.tables
    assert [row[:2] for row in table.rows] == [
        ("reference", "8"),
        ("inherited", "4"),
        ("random", "4"),
        ("inherited (parity)", "6"),
        ("random", "6"),
    ]
    assert table.rows[3][-2:] == ("2.900", "-0.100 (-0.120 to -0.070)")
    assert rates.tables[0].columns[:2] == ("to", "use")


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    document = sample_layers().to_dict()
    del document["reference"]
    store.write(result_key("few", "result.json"), json.dumps(document).encode())
    with refused("search-result-unreadable"):
        list(search_sections(store))
