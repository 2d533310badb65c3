"""Leases in a folder and on a server: their times are the storage's."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.errors import Busy
from perennial.runs.lease import STALE_SECONDS, Lease, read_heartbeat, this_process
from perennial.store import open_store
from tests.support.event_factory import AT
from tests.support.tiny_run import tiny_run


def test_two_leases_are_compared_by_the_times_that_the_storage_gave(store_url: str) -> None:
    store = open_store(store_url)
    first, second = (Lease(store, "training", this_process("run", AT)) for _ in range(2))
    beat = read_heartbeat(store, first.key)
    assert beat is not None
    assert 0 <= second.age_seconds(beat.modified) < STALE_SECONDS
    second.sweep()
    assert read_heartbeat(store, first.key) is not None, "it lives"
    for lease in (first, second):
        lease.give_back()
    assert not store.list("leases/training")


def test_one_controller_holds_a_run_and_the_next_has_it_when_that_one_ends(store_url: str) -> None:
    spec = RunSpec.model_validate(tiny_run(Path("/nowhere"), store_url))
    first, second = (Workspace(spec, "run.yaml") for _ in range(2))
    first.take_charge()
    with pytest.raises(Busy):
        second.take_charge()
    first.close()
    second.take_charge()
    assert second.state.epoch == 2
    second.close()
