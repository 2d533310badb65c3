"""Samples as objects of the store: what an event names, and what is gone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from perennial.errors import Altered
from perennial.evaluation.kept_samples import SampleList, find_undrawn, keep_samples, read_samples
from perennial.evaluation.samples import Rendering, Sample
from perennial.runs.events import Released
from perennial.store import open_store

SAMPLES = [
    Sample("", "once upon", " a time"),
    Sample("help", "the émigré word", "of a held-out document"),
    Sample("help", "another", "one", Rendering("f", problem="it broke")),
]


def test_an_event_names_an_object_a_corpus_and_holds_no_text(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    held = keep_samples(store, SAMPLES)
    assert read_samples(store, held) == SAMPLES
    lists = [its for its in held if isinstance(its, SampleList)]
    assert [(its.corpus, its.count) for its in lists] == [("", 1), ("help", 2)]
    assert find_undrawn(held) == {"help": "f: it broke"}
    event = Released(
        at="", name="r", source="c", folder="f", steps=0, schedule={}, losses={}, samples=held
    )
    written = event.model_dump_json()
    assert "document" not in written
    assert Released.model_validate_json(written) == event
    store.remove("samples/help")
    assert read_samples(store, held) == SAMPLES[:1]


def test_samples_in_events_of_earlier_versions_are_read(tmp_path: Path) -> None:
    adapter: TypeAdapter[list[Sample | SampleList]] = TypeAdapter(list[Sample | SampleList])
    old = adapter.validate_python([{"corpus": "help", "prompt": "a", "text": "b"}])
    assert read_samples(open_store(tmp_path), old) == [Sample("help", "a", "b")]


def test_an_altered_object_is_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    held = keep_samples(store, SAMPLES[:1])
    assert isinstance(held[0], SampleList)
    store.write(held[0].key, b"[]")
    with pytest.raises(Altered):
        read_samples(store, held)
