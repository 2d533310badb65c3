"""How stages went: the starts of worker groups, where the time went, what searches found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perennial.report.search_section import search_sections
from perennial.runs.history import stage_time
from perennial.runs.state import RunState
from perennial.runs.worker_starts import WorkerStart, note_start, read_starts
from perennial.search.results import Advice
from perennial.store import open_store
from tests.support.event_factory import walk
from tests.support.search_results import sample_result

TIMES = {"started": "2026-01-01T00:00:00+00:00", "trained": "2026-01-01T00:01:40+00:00"}


def test_starts_are_kept_in_order_for_each_job(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    told = [
        WorkerStart("2026-01-01T00:00:00+00:00", 0, 2),
        WorkerStart("2026-01-01T00:05:00+00:00", 40, 1),
    ]
    for start in told:
        note_start(store, "checkpoints/00-a", start)
    assert read_starts(store, "checkpoints/00-a") == told
    assert read_starts(store, "checkpoints/01-b") == []


def test_a_stages_time_is_that_of_its_steps_and_the_rest() -> None:
    state = RunState()
    walk(state, "a")
    rows: list[dict[str, Any]] = [
        {"seconds": {"forward": 1.0, "backward": 2.0}},
        {"batch_tokens": 4096, "tokens_per_second": 2048.0},  # of an older version
    ]
    told = stage_time(state.stages[0], TIMES, rows, starts=2)
    assert (told.whole, told.steps, told.restarts) == (100.0, 5.0, 1)
    assert told.goodput == pytest.approx(0.05)
    assert stage_time(state.stages[0], {}, rows, 0).goodput is None


def test_the_ledger_keeps_when_a_stage_began_and_ended() -> None:
    state = RunState()
    walk(state, "a")
    walk(state, "b", "landed", "ingesting", "ready", "started")
    assert {name: set(times) for name, times in state.times.items()} == {
        "00-a": {"started", "trained"},
        "01-b": {"started"},
    }


def test_a_search_is_a_section_with_its_advice(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert list(search_sections(store)) == []
    result = sample_result([(3.1, 0.4), (3.3, 0.1)])
    advice = (Advice("keep-old", 1, {}, ""), Advice("learn-new", 0, {}, ""))
    document = replace(result, advice=advice).to_dict()
    store.write("searches/quick/result.json", json.dumps(document).encode())
    (section,) = search_sections(store)
    assert section.title == "Search: quick"
    assert section.picture is not None
    assert section.picture.svg("a").startswith("<svg ")
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["keep old", "learn new"]
    assert "replay 0.1" in table.rows[0][1]
