"""Store the start of every worker group beside the ledger, for the report.

`starts/<folder of the job>/<000000000000>.json` holds one start: when, at which step, with how many
workers. The controller does not read it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from perennial.store import Log
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store


@dataclass(frozen=True)
class WorkerStart:
    """A worker group that began to train: UTC time, trunk step, workers."""

    at: str
    step: int
    workers: int


def note_start(store: Store, folder: str, start: WorkerStart) -> None:
    """Append a start.

    A store that cannot be written to fails the job's checkpoints, and is reported there.

    Args:
        store: the run's store.
        folder: key of the folder of the job's checkpoints.
        start: the start.
    """
    log = Log(store, f"starts/{folder}")
    data = json.dumps(asdict(start)).encode()
    try:
        number = max(log.numbers(), default=-1) + 1
        while not log.append(number, data):
            number += 1
    except OSError:
        return


def read_starts(store: Store, folder: str) -> list[WorkerStart]:
    """Read the starts of a job, in order; those that cannot be read are left out."""
    starts = []
    for data in Log(store, f"starts/{folder}").entries().values():
        with suppress(ValueError, TypeError):
            starts.append(WorkerStart(**parse_json(data)))
    return starts
