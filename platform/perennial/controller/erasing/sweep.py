"""What else than a corpus's own files has its text: found by name, and removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from perennial.config.corpora import of_name
from perennial.controller.failures import FOLDER as FAILURES
from perennial.controller.source_poller import open_sources
from perennial.controller.storage.loans import list_owners
from perennial.corpora import read_manifest
from perennial.corpora.ingest.quality import refused_folder
from perennial.corpora.manifest import manifest_key
from perennial.errors import InputError
from perennial.evaluation.kept_samples import folder_of as samples_of
from perennial.store.aside import ASIDE

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.corpora.erasing.tombstone import Tombstone
    from perennial.store import Store


class Leftover(NamedTuple):
    """An object that an erasure removes; `place` is where users find it."""

    store: Store
    key: str
    place: str


def list_leftovers(work: Workspace, erased: list[Tombstone]) -> Iterator[Leftover]:
    """Yield the objects that erasures of a corpus remove, as far as they are there.

    Args:
        work: the run.
        erased: the tombstones of one corpus, in their order.
    """
    name = erased[0].corpus
    kept = {manifest_key(name)} if erased[-1].manifest else set()
    there = [info.key for folder in _folders(erased) for info in work.store.list(folder)]
    there += [key for key in _files(erased) if work.store.exists(key)]
    there += _strays(work, erased)
    for key in sorted({*there} - kept):
        yield Leftover(work.store, key, key)
    if any(its.whole or its.held_out for its in erased):
        for info in work.store.list("evaluations"):
            file = info.key.rpartition("/")[2]
            # Losses by document, and scores by item of a task that is made of its documents.
            if file == f"{name}.parquet" or ("/tasks/" in info.key and f"_{name}-" in file):
                yield Leftover(work.store, info.key, info.key)
        picture = re.compile(rf"sample-\d+-{re.escape(name)}\.png")
        for info in work.store.list("mlflow"):
            if picture.fullmatch(info.key.rpartition("/")[2]):
                yield Leftover(work.store, info.key, info.key)
    inbox = work.inbox.sub(name)
    whole = any(its.whole for its in erased)
    files = {file for its in erased for file in its.inputs}
    for info in inbox.list():
        if whole or info.key in files:
            place = f"{inbox.url}/{info.key}".removeprefix(f"{work.store.url}/")
            yield Leftover(inbox, info.key, place)


def _files(erased: list[Tombstone]) -> list[str]:
    """Return the keys of the files that are no more of a corpus's."""
    return [f"corpora/{its.corpus}/{file.file}" for its in erased for file in its.removed]


def _strays(work: Workspace, erased: list[Tombstone]) -> list[str]:
    """Return what lies beside the files of a corpus: of an ingest or an erasure that was killed."""
    name = erased[0].corpus
    manifest = erased[-1].manifest
    if manifest is None and work.store.exists(manifest_key(name)):
        manifest = read_manifest(work.store, name)  # it is planned
    if manifest is None:
        return []
    folder = f"corpora/{name}"
    own = {manifest_key(name), *(f"{folder}/{file.file}" for file in manifest.files)}
    return [info.key for info in work.store.list(folder) if info.key not in own]


def _folders(erased: list[Tombstone]) -> list[str]:
    """Return the folders of the run's store that are removed as a whole."""
    name, folder = erased[0].corpus, f"corpora/{erased[0].corpus}"
    folders = ["report", refused_folder(name), f"{FAILURES}/{name}"]
    folders += [f"{ASIDE}/{folder}", f"{ASIDE}/inbox/{name}"]
    if any(its.whole or its.held_out for its in erased):
        folders += [samples_of(name), f"{ASIDE}/{samples_of(name)}"]
    if any(its.whole for its in erased):
        folders.append(folder)
    return folders


def sweep(work: Workspace, erased: list[Tombstone]) -> list[str]:
    """Remove what is left of erased text; return where it was. Safe to repeat and to kill."""
    for source in open_sources(work):
        try:
            source.clear()  # copies of files that landed, where a landing was killed
        except InputError as broken:
            work.log(f"notice: what the source {source.name} pulled is not swept ({broken})")
    swept = []
    for left in list_leftovers(work, erased):
        left.store.remove(left.key)
        swept.append(left.place)
    return swept


def list_kept(work: Workspace, erased: list[Tombstone], names: list[str]) -> Iterator[str]:
    """Yield what an erasure cannot remove, or must not, each with its reason.

    Args:
        work: the run.
        erased: the tombstones of one corpus.
        names: the corpus's checkpoints, trials and releases, for the first line.
    """
    corpus, state = erased[0].corpus, work.state
    if names:
        yield f"weights that were trained on it: {len(names)} models, listed above"
    manifest = erased[-1].manifest
    first = next((c.name for c in state.corpora.values() if c.sequences), "")
    if work.spec.tokenizer.path is None and corpus == first and manifest is not None:
        yield "the tokenizer, whose entries were counted in its text"
    if corpus in state.extensions:
        yield f"entries of the tokenizer that it brought: {state.extensions[corpus].folder}"
    entries = _count_old_samples(work, corpus)
    if entries:
        yield (
            f"samples in {entries} entries of the ledger, which an earlier version wrote into it "
            "and which cannot be changed"
        )
    yield "names of its files and domains in the ledger, landed/ and its manifest, and its losses"
    yield "places and metadata of documents in records of loss spikes"
    for fork in list_owners(work.store, f"corpora/{corpus}"):
        yield f"what the fork in {fork.url} has of it as its own: erase it there too"
    yield "versions and copies that the storage keeps of removed objects, and backups of the store"
    yield f"copies of reports and releases elsewhere, and where {corpus} came from"
    if of_name(work.spec.evaluation.render, corpus) is not None:
        yield "pictures of its samples in an MLflow outside of the store"
    if "wandb" in work.spec.tracking.to:
        yield "what was sent to W&B: pictures of its samples, and earlier versions of files"


def _count_old_samples(work: Workspace, corpus: str) -> int:
    from perennial.evaluation.samples import Sample

    state = work.state
    held = [origin.samples for origin in state.origins.values()]
    held += [state.stage_samples[name] for name in state.stage_samples]
    held += [release.samples for release in state.releases]
    return sum(any(isinstance(s, Sample) and s.corpus == corpus for s in some) for some in held)


def list_samples(work: Workspace, tombstone: Tombstone) -> list[str]:
    """Return the keys of samples that go with an erasure."""
    if not (tombstone.whole or tombstone.held_out):
        return []
    return [info.key for info in work.store.list(samples_of(tombstone.corpus))]


def write_manifest(work: Workspace, tombstone: Tombstone) -> None:
    """Put the manifest of a tombstone in place of the corpus's."""
    if tombstone.manifest is not None:
        data = tombstone.manifest.model_dump_json(indent=1).encode()
        work.store.write(manifest_key(tombstone.corpus), data)
