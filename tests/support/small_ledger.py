"""The ledger of a run of one corpus, its copies, and checkpoints that name its entries."""

from __future__ import annotations

from pathlib import Path

from perennial.config import RunSpec
from perennial.runs.events import Opened, TookOver
from perennial.runs.lease import FOLDER
from perennial.runs.ledger import Ledger, digest_of
from perennial.store import Store, open_store
from perennial.training.checkpoint.manifest import CheckpointManifest
from tests.support.event_factory import AT, WALK, event_of
from tests.support.tiny_run import tiny_run

ENTRIES = 2 + len(WALK)


def key(number: int) -> str:
    return f"ledger/{number:012d}.json"


def write_ledger(store: Store, owner: str = "c") -> Store:
    """The events of a run of one corpus."""
    spec = RunSpec.model_validate(tiny_run(Path("/nowhere"))).model_dump(mode="json")
    ledger = Ledger(store)
    ledger.append(Opened(at=AT, spec=spec | {"store": store.url}))
    ledger.append(TookOver(at=AT, epoch=1, controller=owner))
    for kind in WALK:
        ledger.append(event_of(kind, ledger.state, "a"))
    return store


def objects(store: Store) -> dict[str, bytes]:
    """Everything but heartbeats, which belong to nobody's work."""
    keys = [info.key for info in store.list() if not info.key.startswith(f"{FOLDER}/r")]
    return {key: store.read(key) for key in keys}


def copy_of(store: Store, folder: Path) -> Store:
    copy = open_store(folder)
    for name, data in objects(store).items():
        copy.write(name, data)
    return copy


def write_checkpoint(store: Store, folder: str, step: int, events: int) -> None:
    """A checkpoint whose job began behind so many entries of the ledger."""
    manifest = CheckpointManifest(
        name=folder.rpartition("/")[2],
        step=step,
        phase="constant",
        eta=1e-3,
        schedule={},
        mix={},
        mix_step=step,
        tokens_seen={},
        optimizer_steps=step,
        world_size=1,
        code_version="0",
        tracking_run="",
        ledger_events=events,
        ledger_sha256=digest_of(store.read(key(events - 1))),
        files={},
    )
    place = f"{folder}/{step:08d}/manifest.json"
    store.write(place, manifest.model_dump_json().encode())
