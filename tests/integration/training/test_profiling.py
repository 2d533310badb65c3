"""What `training.profile` writes: a trace that opens, of the steps that it says."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from perennial.store import open_store
from perennial.training.engine.profiling import FIRST, LAST, Trace

KEY = "profiles/00-text/00000000-rank-00.json.gz"


@pytest.mark.parametrize(
    ("steps", "traced"), [(LAST + 5, LAST - FIRST + 1), (FIRST + 1, 2), (FIRST - 1, None)]
)
def test_a_trace_has_the_steps_that_it_says(tmp_path: Path, steps: int, traced: int | None) -> None:
    store = open_store(tmp_path)
    trace = Trace(store, KEY, wanted=True)
    for _ in range(steps):
        trace.step()
        torch.mm(torch.ones(4, 4), torch.ones(4, 4))
    trace.close()
    if traced is None:
        assert not list(store.list("profiles"))
        return
    events = json.loads(gzip.decompress(store.read(KEY)))["traceEvents"]
    assert sum(event.get("name") == "aten::mm" for event in events) == traced


def test_nothing_is_traced_that_nobody_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trace = Trace(store, KEY, wanted=False)
    for _ in range(LAST + 1):
        trace.step()
    trace.close()
    assert not list(store.list("profiles"))
