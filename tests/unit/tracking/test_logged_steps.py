"""The last step of each metric beside a run's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.store import open_store
from perennial.tracking.logged_steps import LoggedSteps
from perennial.tracking.outbox import MetricPoint

KEY = "run/steps.json"


def test_steps_are_kept_and_never_fall(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    logged = LoggedSteps(store, KEY)
    logged.add([MetricPoint("train/loss", 1.0, 0, step) for step in (3, 1)])
    logged.mark_complete()
    again = LoggedSteps(store, KEY)
    assert (again.steps, again.complete) == ({"train/loss": 3}, True)
    again.merge('{"steps": {"train/loss": 2, "train/eta": 2}}')
    assert again.steps == {"train/loss": 3, "train/eta": 2}


@pytest.mark.parametrize(
    "document", [b"", b"{", b"[]", b'{"steps": [1]}', b'{"steps": {"a": "x"}}', b"\xff"]
)
def test_a_damaged_file_counts_as_none(document: bytes, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.write(KEY, document)
    assert LoggedSteps(store, KEY).steps == {}
