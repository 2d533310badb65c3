"""Checks of what landed: the list that the ledger holds, the inbox, and what the ingest read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from perennial.audit.files import FileListContents
from perennial.audit.finding import Finding, field_of
from perennial.corpora import check_landed, find_companions
from perennial.corpora.file_list import ListedFile, check_same_files, escape_text
from perennial.errors import Altered, InputError
from perennial.store import open_store

if TYPE_CHECKING:
    from perennial.corpora import CorpusManifest
    from perennial.runs.state import RunState
    from perennial.store import Store


@dataclass(frozen=True)
class InboxFile:
    """A file in the inbox whose digest was promised; `key` is its key for messages."""

    store: Store
    name: str
    key: str
    size_bytes: int
    sha256: str


def check_inbox(
    store: Store, state: RunState, names: Iterable[str]
) -> Iterator[Finding | InboxFile]:
    """Yield what is wrong with the listing of corpora that wait for their ingest, and their files.

    Args:
        store: the run's store.
        state: of the run.
        names: the corpora.
    """
    inbox = _open_inbox(store, state)
    for name in names:
        try:
            landed = check_landed(store, inbox, name, state.corpora[name].listing)
        except InputError as wrong:
            place = "/".join(filter(None, (wrong.where, wrong.field)))
            yield Finding(place.removeprefix(f"{store.url}/"), wrong.problem, wrong.remedy)
            continue
        except Altered:
            continue  # the list is among the files that are read
        except OSError as error:
            yield Finding(f"{inbox.url}/{name}", f"cannot be read ({error})", "it can be read")
            continue
        folder = inbox.sub(name)
        for file in landed.files:
            if file.sha256:
                key = f"{folder.url}/{file.name}".removeprefix(f"{store.url}/")
                yield InboxFile(folder, file.name, key, file.size_bytes, file.sha256)


def _open_inbox(store: Store, state: RunState) -> Store:
    url = None if state.spec is None else field_of(state.spec, "inbox")
    return open_store(url) if isinstance(url, str) else store.sub("inbox")


def check_inputs(key: str, manifest: CorpusManifest, landed: FileListContents) -> Iterator[Finding]:
    """Check that a corpus was tokenised from the files with which it landed.

    Args:
        key: of the corpus's manifest.
        manifest: the manifest.
        landed: the list that the ledger holds.
    """
    inputs = [ListedFile(f.name, f.size_bytes, f.sha256, f.etag) for f in manifest.inputs]
    files = [replace(file, name=escape_text(file.name)) for file in landed.files]
    beside = find_companions(file.name for file in files)
    data = [file for file in files if file.name not in beside]
    try:
        check_same_files(key, data, inputs, promised=False)
    except InputError as wrong:
        yield Finding(key, f"inputs: {wrong.field}: {wrong.problem}", "what landed is ingested")
    extra = {file.name for file in inputs} - {file.name for file in files}
    if extra:
        yield Finding(key, f"inputs: {min(extra)} did not land", "what landed is ingested")
