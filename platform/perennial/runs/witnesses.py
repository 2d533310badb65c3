"""Read from the checkpoints how long the ledger was when their jobs began.

A checkpoint's manifest holds the number of the ledger's entries behind which its job began, and the
digest of the last of them. So it shows that an end of the ledger is lost, the head with it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from perennial.errors import Damaged
from perennial.store import Store
from perennial.training.checkpoint.manifest import MANIFEST, read_manifest

TRUNK = "checkpoints"
_BRANCHES = "branches"


@dataclass(frozen=True)
class Witness:
    """A checkpoint that names an entry of the ledger.

    checkpoint: key of its folder.
    events: number of the ledger's entries when its job began; 0 where an older version wrote it.
    sha256: digest of the last of them.
    """

    checkpoint: str
    events: int
    sha256: str


def read_named(store: Store) -> dict[int, set[str]]:
    """Return the digests of the ledger's entries that all checkpoints name, by number."""
    named: defaultdict[int, set[str]] = defaultdict(set)
    for folder in (TRUNK, _BRANCHES):
        for checkpoint in _committed(store, folder):
            witness = read_witness(store, checkpoint)
            if witness.events:
                named[witness.events - 1].add(witness.sha256)
    return dict(named)


def newest_witnesses(store: Store, folder: str, known: Iterable[str]) -> list[Witness]:
    """Return what the newest checkpoint of a stage names, and one of each stage that is not known.

    Takes a listing of that stage's folder and of those behind it, and a request a folder.

    Args:
        store: the run's store.
        folder: of the last stage that the ledger started; "" for none.
        known: the folders of all stages that it started.
    """
    newest: dict[str, str] = {}
    for checkpoint in _committed(store, TRUNK, after=folder):
        newest[checkpoint.rpartition("/")[0]] = checkpoint
    others = set(known) - {folder}
    return [read_witness(store, key) for stage, key in newest.items() if stage not in others]


def read_witness(store: Store, checkpoint: str) -> Witness:
    """Return what a committed checkpoint names; nothing where its manifest cannot be read."""
    try:
        manifest = read_manifest(store, checkpoint)
    except (FileNotFoundError, Damaged):
        return Witness(checkpoint, 0, "")
    events = max(manifest.ledger_events or 0, 0) if manifest.ledger_sha256 else 0
    return Witness(checkpoint, events, manifest.ledger_sha256)


def _committed(store: Store, folder: str, after: str = "") -> list[str]:
    suffix = f"/{MANIFEST}"
    keys = [info.key for info in store.list(folder, after)]
    return [key.removesuffix(suffix) for key in keys if key.endswith(suffix)]
