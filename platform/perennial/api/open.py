"""Opening a run by its run file or its store, and what is wrong before it is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.api.run import Run
from perennial.config import RunSpec, load_run, override_stored_run
from perennial.corpora import list_landed
from perennial.errors import InputError, PerennialError
from perennial.runs.event_codec import decode
from perennial.runs.events import Document, Opened
from perennial.runs.ledger import Ledger
from perennial.store import open_run_store

if TYPE_CHECKING:
    from perennial.controller.observer import RunObserver
    from perennial.diagnosis.machine import Diagnosis
    from perennial.store import Store


def open_run(
    run: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    observers: Sequence[RunObserver] = (),
) -> Run:
    """Return the run of a run file or of a store; see `perennial.open`."""
    name = os.fspath(run)
    if name.endswith((".yaml", ".yml")) or Path(name).is_file():
        return Run(load_run(Path(name), overrides), name, observers)
    return Run(_recorded_spec(name, overrides), name, observers, from_store=True)


def diagnose(
    run: str | os.PathLike[str] | None = None, overrides: Sequence[str] = ()
) -> list[Diagnosis]:
    """Return what was found of this machine, its GPUs, cluster, store and network.

    A run file that cannot be used is one of the findings. Nothing is started, and an object that
    is written to the store for the test is removed again.

    Args:
        run: path of a run file, or a store; None to look at the machine and the cluster alone.
        overrides: as for `perennial.open`.
    """
    from perennial.diagnosis.examine import examine
    from perennial.diagnosis.places import refusal

    if run is None:
        return [*examine(None)]
    where = os.fspath(run)
    try:
        spec = open_run(run, overrides).spec
    except (PerennialError, OSError) as wrong:
        return [*examine(None), *refusal("run file", where, wrong)]
    return [*examine(spec, where)]


def _recorded_spec(url: str, overrides: Sequence[str]) -> RunSpec:
    """Return the run file that the ledger of a store recorded, with the store where it is now."""
    store = open_run_store(url)
    ledger = Ledger(store, lambda line: None)
    try:
        recorded = ledger.read().spec
    except InputError as broken:
        # `verify`, `repair` and `move` read the store themselves; every other verb meets the fault
        # again.
        recorded = _read_first_entry(store, ledger.key(0))
        if broken.code not in ("ledger-broken", "store-moved") or recorded is None:
            raise
    if recorded is None:
        raise _without_run(url, store)
    # The run may have been copied or moved since it was opened.
    return override_stored_run({**recorded, "store": store.url}, overrides)


def _without_run(url: str, store: Store) -> InputError:
    """Return why a store is none of a run: no such place, nothing in it, or corpora that wait."""
    landed = [corpus.name for corpus in list_landed(store.sub("inbox"))]
    if landed:
        many = "corpora have" if len(landed) > 1 else "corpus has"
        problem = f"no run has begun in this store, where {len(landed)} {many} landed"
        remedy = "give the run file; `perennial run` begins it"
    elif store.is_empty():
        problem, remedy = "there is nothing at this place", "correct it, or give a run file"
    else:
        problem, remedy = "there is no run in this store", "give a run file, or a run's store"
    return InputError(url, "", problem, remedy, code="no-run-in-store")


def _read_first_entry(store: Store, key: str) -> Document | None:
    """Return the run file in a ledger's first entry; None where it cannot be read."""
    try:
        event = decode(store.read(key)).event
    except (FileNotFoundError, ValueError):
        return None
    return event.spec if isinstance(event, Opened) else None
