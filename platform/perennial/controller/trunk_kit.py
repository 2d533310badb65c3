"""Make trunk kits: what lets others continue the trunk, from a checkpoint before its anneal."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial import corpora
from perennial.controller.publish import check_place, copy_folder, push_folder
from perennial.controller.release import find_checkpoint
from perennial.controller.tokenizer_growth import tokenizer_of
from perennial.errors import InputError
from perennial.runs import trunk_kit
from perennial.runs.card_metadata import HUB
from perennial.runs.training_content import content_files
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.kit.manifest import RUN_FILE, read_kit

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.runs.state import Stage


@dataclass(frozen=True)
class TrunkKit:
    """A kit that was made.

    Attributes:
        source: STAGE@STEP of its checkpoint.
        place: where it lies.
        digest: SHA-256 of its manifest.
        size_bytes: of all its files.
    """

    source: str
    place: str
    digest: str
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "source": self.source,
            "place": self.place,
            "digest": self.digest,
            "bytes": self.size_bytes,
        }


def make_kit(work: Workspace, origin: str | None = None, to: str | None = None) -> TrunkKit:
    """Write a trunk kit. Safe to repeat: what is there and the same stays.

    Args:
        work: the run.
        origin: `STAGE@STEP`, or `STAGE` for its end; None is the end of the last stage that passed.
        to: a folder, a bucket's url or `hf://OWNER/NAME`; None is `kits/` of the run's store.

    Raises:
        InputError: there is no such checkpoint, it is annealed, or the place is none or holds
            something else.
        Busy: another process has the whole store to itself.
    """
    from perennial.corpora.release_tokenizer import release_files
    from perennial.training.kit.build import build_kit, seal_kit

    stage, step, place = _choose(work, origin, to)
    checkpoint = checkpoints.folder_of(stage.folder, step)
    promised = hashlib.sha256(work.store.read(f"{checkpoint}/{checkpoints.MANIFEST}")).hexdigest()
    if (there := _find_kit(place, promised)) is not None:
        work.log(f"trunk kit {there.source} is there already")
        return there
    manifests = work.manifests()
    tokenizer = tokenizer_of(work, stage)
    named = work.spec.tokenizer
    base = corpora.read_base_files(work.store, corpora.load_tokenizer(work.store))
    files = release_files(tokenizer, base, named.end_of_document, named.begin_of_document)
    work.log(f"writing trunk kit {stage.name}@{step} to {place}")
    with work.beside(), tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        local, folder = Path(scratch, "checkpoint"), Path(scratch, "kit")
        local.mkdir()
        folder.mkdir()
        optimizer = build_kit(work.store, checkpoint, files, local, folder)
        kit = trunk_kit.kit_manifest(
            work.spec,
            work.state,
            stage,
            step,
            manifests,
            optimizer,
            tokenizer,
            promised,
        )
        card = trunk_kit.kit_card(work.spec, work.state, stage, kit, manifests, place)
        run_file = trunk_kit.continuing_run_file(work.spec, stage, step, tokenizer, place)
        texts = content_files(work.spec, work.state, stage, step, manifests)
        texts |= {"README.md": card.encode(), RUN_FILE: run_file.encode()}
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        digest = checkpoints.digest(seal_kit(folder, kit))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if place.startswith(HUB):
            push_folder(folder, place, f"Trunk kit {kit.source}")
        else:
            copy_folder(folder, place)
    return TrunkKit(kit.source, place, digest, size)


def _find_kit(place: str, checkpoint: str) -> TrunkKit | None:
    """Return the whole kit of a checkpoint that lies in a place already; None for anything else.

    Its card may be older than what the run knows by now.

    Args:
        place: no repository of the Hub, which is written again.
        checkpoint: SHA-256 of the checkpoint's manifest.
    """
    if place.startswith(HUB):
        return None
    store = open_store(place)
    try:
        kit = read_kit(store, place)
    except InputError:  # which file it is, is said when they are compared with those of the kit
        return None
    if kit is None or kit[1].checkpoint != checkpoint:
        return None
    size = sum(entry.size_bytes for entry in store.list())
    return TrunkKit(kit[1].source, place, kit[1].digest, size)


def plan_kit(work: Workspace, origin: str | None = None, to: str | None = None) -> list[str]:
    """Return what `make_kit` would do, in words; writes nothing."""
    from perennial.training.kit.build import estimate_bytes

    stage, step, place = _choose(work, origin, to)
    manifest = checkpoints.read_manifest(work.store, checkpoints.folder_of(stage.folder, step))
    size = estimate_bytes(manifest, rounded=work.spec.training.precision != "fp32")
    return [f"write a trunk kit of {stage.name}@{step} to {place}: about {size:,} bytes"]


def _choose(work: Workspace, origin: str | None, to: str | None) -> tuple[Stage, int, str]:
    if to is not None:
        check_place(to)
    stage, step = find_checkpoint(work, origin)
    trunk_kit.check_continuable(work.spec, stage, step)
    return stage, step, to or f"{work.store.url}/kits/{stage.name}-{step}"
