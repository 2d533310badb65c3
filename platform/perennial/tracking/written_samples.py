"""Remove samples from what TensorBoard and W&B wrote on this machine: neither program does it.

A sample is the beginning of a held-out document, and goes when that is erased. What is left of the
samples is logged again afterwards.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from perennial.store import open_store

_TAGS = re.compile(rb"samples\.txt/text_summary|sample-\d+-[a-z0-9._-]*\.png")
"""tags of the records of event files that hold samples, see `TensorBoardRuns.put`"""
_FILES = ("samples.txt", "report.html", "sample-*.png")
_SIZE, _CHECKSUM = 8, 4
"""bytes of a record's size and of each of its two checksums"""


def run_id_of(key: str, store: str) -> str:
    """Return the id of a run in W&B, where two stores may have one name.

    Args:
        key: name of the lineage, and of the run in it.
        store: id of the store.
    """
    return hashlib.sha256(f"{store}/{key}".encode()).hexdigest()[:16]


def remove_samples(
    folder: Path, events: Path, lineage: str, names: Iterable[str], store: str
) -> None:
    """Remove samples from the local files of a lineage.

    Args:
        folder: that holds `wandb/`, if it is there.
        events: folder of TensorBoard's files, if it is there.
        lineage: its name.
        names: of the runs in it.
        store: id of the store.
    """
    for path in sorted((events / lineage).rglob("events.out.tfevents.*")):
        data = path.read_bytes()
        if _TAGS.search(data):
            kept = b"".join(record for record in _records(data) if not _TAGS.search(record))
            open_store(path.parent).write(path.name, kept)
    for key in (lineage, *(f"{lineage}/{name}" for name in names)):
        for pattern in _FILES:
            # A folder for each process that logged: run-TIME-ID or offline-run-TIME-ID.
            for path in folder.glob(f"wandb/*run-*-{run_id_of(key, store)}/files/{pattern}"):
                path.unlink()


def _records(data: bytes) -> Iterator[bytes]:
    """Yield the records of an event file; one that was cut off at its end is left out."""
    at = 0
    while at + _SIZE <= len(data):
        (size,) = struct.unpack("<Q", data[at : at + _SIZE])
        end = at + _SIZE + _CHECKSUM + size + _CHECKSUM
        if end > len(data):
            return
        yield data[at:end]
        at = end
