"""Batches that are left out: one object per batch in the job's folder, written before the skip.

The plan stays what it is: the step of a skipped batch goes by without an optimizer step, so every
later step has the batch and the learning rate that it would have had. Every worker group reads the
objects when it starts, so a resumed job skips the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from perennial.errors import Damaged

if TYPE_CHECKING:
    from perennial.store import Store

_PREFIX = "skipped-"


class Skip(BaseModel):
    """A batch that is not trained. `step` is the trunk step that it would have led to.

    origins: its rows; documents: what they hold, where the corpus knows it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    reason: str
    origins: tuple[dict[str, Any], ...]
    documents: tuple[dict[str, Any], ...] = ()


def record_skip(store: Store, folder: str, skip: Skip) -> None:
    """Record that a batch is left out from now on; the first record of a step stands."""
    key = f"{folder}/{_PREFIX}{skip.step:08d}.json"
    store.create(key, skip.model_dump_json(indent=1).encode())


def read_skips(store: Store, folder: str) -> list[Skip]:
    """Return the batches that a job's folder leaves out, by step.

    Raises:
        Damaged: a record cannot be read.
    """
    names = (info.key.removeprefix(f"{folder}/") for info in store.list(folder))
    return [_read_skip(store, f"{folder}/{name}") for name in names if name.startswith(_PREFIX)]


def _read_skip(store: Store, key: str) -> Skip:
    try:
        return Skip.model_validate_json(store.read(key))
    except ValueError as broken:
        raise Damaged(key, "cannot be read") from broken
