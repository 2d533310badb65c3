"""Objects of a store that hold what no version wrote: every reader ends in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.api.status import read_status
from perennial.audit.repair import repair
from perennial.audit.verify import verify
from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.errors import InputError
from perennial.runs.lease import read_heartbeat, this_process
from perennial.runs.ledger import HEAD, Ledger
from perennial.store import Store, open_store
from perennial.store.stored_json import parse_json
from tests.support.event_factory import AT
from tests.support.small_ledger import ENTRIES, key, write_ledger
from tests.support.tiny_run import tiny_run

TIMES = "report/times.json"
ODD = {
    "empty": b"",
    "cut": b'[{"stage": "00-a", "wh',
    "a list": b'["a", 5]',
    "a number": b"1e999",
    "null": b"null",
    "deep": b"[" * 200_000,
    "a long number": b"1" * 5_000,
    "another object": b'{"schema": 1e999, "events": 1e999, "sha256": [], "kind": {}}',
    "rows of another form": b'[{"stage": 1, "whole": "x", "parts": [], "starts": null}]',
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_ledger(open_store(tmp_path / "store"))


def _status(store: Store) -> object:
    work = Workspace(RunSpec.model_validate(tiny_run(Path("/nowhere"), store.url)), "run.yaml")
    try:
        return read_status(work)
    finally:
        work.close()


READERS: tuple[Callable[[Store], object], ...] = (
    lambda store: Ledger(store).read(),
    _status,
    verify,
    lambda store: repair(store, None, acts=False),
    lambda store: repair(store, None),
)


def _all_end_in_a_line(store: Store) -> None:
    for read in READERS:
        try:
            read(store)
        except InputError as refusal:
            assert "\n" not in str(refusal)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", [HEAD, TIMES, key(0), key(4), key(ENTRIES - 1)])
def test_every_reader_ends_in_a_line(store: Store, name: str, odd: str) -> None:
    store.write(name, ODD[odd])
    _all_end_in_a_line(store)


@pytest.mark.parametrize("name", [HEAD, TIMES, key(4), key(ENTRIES - 1)])
def test_a_folder_in_the_place_of_an_object(store: Store, name: str) -> None:
    store.remove(name)
    Path(store.url, name).mkdir(parents=True)
    _all_end_in_a_line(store)


@pytest.mark.parametrize("spec", [{}, {"a": None}, {"corpora": [], "seed": "x"}])
def test_a_run_file_that_lacks_what_is_checked_against_it(store: Store, spec: object) -> None:
    document = json.loads(store.read(key(0))) | {"spec": spec}
    store.write(key(0), json.dumps(document).encode())
    _all_end_in_a_line(store)
    (finding,) = verify(store).findings
    assert finding.key == key(0)


def test_times_that_cannot_be_read_are_not_there(store: Store) -> None:
    store.write(TIMES, b'[{"stage": "00-a", "wh')
    assert not _status(store).times  # type: ignore[attr-defined]


@pytest.mark.parametrize("process", ["1\0", None, [1]])
def test_a_lease_of_no_process_is_none(store: Store, process: object) -> None:
    holder = vars(this_process("run", AT)) | {"process": process}
    store.write("leases/training/a.json", json.dumps(holder).encode())
    assert read_heartbeat(store, "leases/training/a.json") is None


def test_what_is_nested_too_deeply_is_a_value_error() -> None:
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000)
