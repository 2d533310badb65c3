"""Corpora in the inbox: a folder `<name>/` of files, complete once its marker `_SUCCESS` exists.

Where the marker has a list of files, the corpus is that list.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.corpora.file_list import (
    ListedFile,
    ListRecord,
    check_same_files,
    decode_list,
    encode_list,
    is_hidden,
    moved_file,
    parse_list,
)
from perennial.corpora.formats.base import CHANGED
from perennial.corpora.formats.open import describe_suffixes
from perennial.errors import InputError
from perennial.store import read_checked

if TYPE_CHECKING:
    from perennial.store import ObjectInfo, Store

MARKER = "_SUCCESS"
MANIFEST = "manifest.json"
"""A producer's own manifest; one that lists its files completes a corpus without the marker."""
_MARKERS = (MARKER, MANIFEST)
_READ_LISTS = 1 << 14
MAX_NAME_CHARACTERS = 64
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")


@dataclass(frozen=True)
class LandedFile:
    """One file of a landed corpus; `name` is its path below the corpus's folder.

    sha256: as the corpus's list promises it; "" where it does not.
    """

    name: str
    size_bytes: int
    etag: str
    sha256: str = ""


@dataclass(frozen=True)
class LandedCorpus:
    """A complete corpus: one whose marker exists, or whose manifest's files all do.

    is_listed: whether `files` are those of its producer's list.
    ignored: names of files beside those of the corpus, and of links to folders in it.
    """

    name: str
    files: tuple[LandedFile, ...]
    landed_at: datetime
    is_listed: bool = False
    ignored: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Return the size of all files as they are stored."""
        return sum(file.size_bytes for file in self.files)


def check_name(name: str) -> str:
    """Return `name` if it can be a folder of a store. Raises InputError otherwise."""
    if len(name) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise InputError(
        "corpus",
        "name",
        f"{name!r} cannot be a corpus's name",
        f"use at most {MAX_NAME_CHARACTERS} lower-case letters, digits, dashes, underscores and "
        "single dots, beginning and ending with a letter or digit, such as french-2024.1",
        code="corpus-name-invalid",
    )


def list_landed(inbox: Store) -> list[LandedCorpus]:
    """Return the complete corpora in the order in which they landed (the marker's time, name).

    Their files are those that the inbox lists. A marker's own list is not read here: what this
    costs must not grow with the number of corpora. `read_landed` reads it.
    """
    folders: dict[str, list[ObjectInfo]] = {}
    for info in inbox.list(""):
        name, slash, _ = info.key.partition("/")
        if slash:
            folders.setdefault(name, []).append(info)
    corpora = [_read_folder(inbox, name, infos) for name, infos in folders.items()]
    return sorted((c for c in corpora if c is not None), key=lambda c: (c.landed_at, c.name))


def read_landed(inbox: Store, name: str) -> LandedCorpus:
    """Return the landed corpus of a name: the files of its producer's list where there is one.

    Args:
        inbox: the store that corpora land in.
        name: the corpus's name.

    Raises:
        InputError: if it is missing, unfinished or empty, if its list cannot be read, or if a file
            of the list is gone or has another size.
    """
    check_name(name)
    infos = inbox.list(f"{name}/")
    corpus = _read_folder(inbox, name, infos)
    where = f"{inbox.url}/{name}"
    if corpus is None:
        raise _unfinished(where, name, infos)
    listed = _read_list(inbox, name, infos)
    if listed is not None:
        check_same_files(where, listed, _as_listed(name, infos), promised=True)
        corpus = _with_list(corpus, listed, infos)
    links = _list_linked_folders(inbox, name)
    corpus = replace(corpus, ignored=(*corpus.ignored, *links))
    if corpus.total_bytes == 0:
        raise InputError(
            where,
            "",
            "every file is empty"
            if corpus.files
            else ", and not what is behind ".join(["it holds no files", *links[:1]]),
            f"land files with text: {describe_suffixes()}",
            code="corpus-empty" if corpus.files else "corpus-without-files",
        )
    return corpus


def _list_linked_folders(inbox: Store, name: str) -> list[str]:
    """Return the links to folders in a corpus's folder: what is behind them is not read."""
    if not inbox.is_local:
        return []
    root = Path(inbox.url, name)
    walked = ((Path(parent), folders) for parent, folders, _ in os.walk(root))
    paths = (parent / folder for parent, folders in walked for folder in folders)
    links = (path.relative_to(root).as_posix() for path in paths if path.is_symlink())
    return sorted(f"{link}/ (a link to a folder)" for link in links if not is_hidden(link))


def record_list(store: Store, inbox: Store, corpus: LandedCorpus) -> ListRecord | None:
    """Keep the list of a corpus's files in the run's store, where it is never changed.

    Args:
        store: the run's store.
        inbox: the store that the corpus landed in.
        corpus: the corpus as it was listed.

    Returns:
        What the ledger holds of the list; None when the list in the marker cannot be read.
    """
    try:
        listed = _read_list(inbox, corpus.name, inbox.list(f"{corpus.name}/"))
    except InputError:
        return None  # the ingest meets it again, and refuses the corpus
    here = {file.name: file for file in corpus.files}
    files = [
        file if file.sha256 or file.name not in here else _add_etag(file, here[file.name])
        for file in listed or [ListedFile(name, None) for name in here]
    ]
    data = encode_list(files)
    record = ListRecord(
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        files=len(files),
        promised=all(file.sha256 for file in files),
    )
    store.create(record.key, data)
    return record


def _add_etag(listed: ListedFile, here: LandedFile) -> ListedFile:
    return replace(listed, size_bytes=here.size_bytes, etag=here.etag)


def check_landed(store: Store, inbox: Store, name: str, record: ListRecord | None) -> LandedCorpus:
    """Return a landed corpus if its files are those with which it landed.

    Files that came later are not of the corpus; `ignored` names them.

    Args:
        store: the run's store.
        inbox: the store that the corpus landed in.
        name: the corpus's name.
        record: its list as the ledger holds it; None where the ledger has none.

    Raises:
        InputError: as `read_landed`, and for a file that is gone or another one since it landed.
        Altered: the list that the store keeps is missing or damaged.
    """
    corpus = read_landed(inbox, name)
    if record is None:
        return corpus
    then = decode_list(read_checked(store, record.key, record.sha256))
    if not record.promised:
        # Earlier versions took files in hidden folders for data.
        then = [file for file in then if corpus.is_listed or not is_hidden(file.name)]
    where = f"{inbox.url}/{name}"
    now = [ListedFile(f.name, f.size_bytes, f.sha256, f.etag) for f in corpus.files]
    check_same_files(where, then, now, record.promised)
    added = [file for file in now if file.name not in {f.name for f in then}]
    if added and record.promised and corpus.is_listed:
        gone = ListedFile(MARKER, None)
        raise moved_file(where, gone, CHANGED, f"found a list that has {added[0].name} too")
    digests = {file.name: file.sha256 for file in then}
    files = tuple(
        replace(file, sha256=digests[file.name] or file.sha256)
        for file in corpus.files
        if file.name in digests
    )
    ignored = (*corpus.ignored, *(file.name for file in added))
    return replace(corpus, files=files, ignored=ignored)


def _read_folder(inbox: Store, name: str, infos: Sequence[ObjectInfo]) -> LandedCorpus | None:
    """Return the corpus in a folder as the inbox lists it; None while it is not complete."""
    times = {key: i.modified for i in infos if (key := i.key.removeprefix(f"{name}/")) in _MARKERS}
    landed_at = times.get(MARKER)
    if landed_at is None and MANIFEST in times:
        landed_at = _completed_at(inbox, name, infos)
    if landed_at is None:
        return None
    files = (
        LandedFile(info.key.removeprefix(f"{name}/"), info.size_bytes, info.etag)
        for info in sorted(infos, key=lambda i: i.key)
    )
    kept = tuple(f for f in files if f.name not in _MARKERS and not is_hidden(f.name))
    return LandedCorpus(name, kept, landed_at)


def _completed_at(inbox: Store, name: str, infos: Sequence[ObjectInfo]) -> datetime | None:
    """Return when a corpus without marker was complete by its producer's manifest, or None.

    An empty manifest is a marker by another name. One with a list is complete with the last file of
    the list, since it may have been written first. Any other completes nothing, for the same
    reason.
    """
    by_name = {info.key.removeprefix(f"{name}/"): info for info in infos}
    manifest = by_name[MANIFEST]
    if manifest.size_bytes == 0:
        return manifest.modified
    try:
        listed = _read_list(inbox, name, infos)
    except InputError:
        return None
    if listed is None:
        return None
    here = [by_name.get(file.name) for file in listed]
    if not all(
        info is not None and file.size_bytes in (None, info.size_bytes)
        for file, info in zip(listed, here, strict=True)
    ):
        return None
    return max(info.modified for info in (manifest, *here) if info is not None)


def _read_list(
    inbox: Store, name: str, infos: Sequence[ObjectInfo]
) -> tuple[ListedFile, ...] | None:
    """Return the list in a corpus's marker, or else in its producer's manifest; None without one.

    Raises InputError for a list that cannot be read, where it is the marker's or there is none.
    """
    markers = {info.key.removeprefix(f"{name}/"): info for info in infos}
    for marker in _MARKERS:
        info = markers.get(marker)
        if info is None or info.size_bytes == 0:
            continue
        try:
            listed = _parse_object(inbox, info.key, info.etag)
        except ValueError as broken:
            if marker == MANIFEST and MARKER in markers:
                return None  # a file of another program, beside the marker
            raise InputError(
                f"{inbox.url}/{name}",
                marker,
                f"its list of files cannot be read ({broken})",
                'write {"files": [{"name": ..., "bytes": ..., "sha256": ...}, ...]} with names '
                f"below the corpus's folder, or an empty {MARKER}",
                code="marker-unreadable",
            ) from broken
        if listed is not None:
            return listed
    return None


@lru_cache(maxsize=_READ_LISTS)
def _parse_object(inbox: Store, key: str, _etag: str) -> tuple[ListedFile, ...] | None:
    """Return the list in an object, which is read once a version."""
    try:
        return parse_list(inbox.read(key))
    except ValueError:
        return parse_list(inbox.read(key))  # a torn read spoils one transfer of a sound object


def _as_listed(name: str, infos: Sequence[ObjectInfo]) -> list[ListedFile]:
    return [
        ListedFile(info.key.removeprefix(f"{name}/"), info.size_bytes, etag=info.etag)
        for info in infos
    ]


def _with_list(
    corpus: LandedCorpus, listed: Sequence[ListedFile], infos: Sequence[ObjectInfo]
) -> LandedCorpus:
    """Return a corpus with the files of its list, all of which are there."""
    here = {info.key.removeprefix(f"{corpus.name}/"): info for info in infos}
    files = tuple(
        LandedFile(file.name, here[file.name].size_bytes, here[file.name].etag, file.sha256)
        for file in sorted(listed, key=lambda file: file.name)
    )
    named = {file.name for file in listed}
    ignored = tuple(file.name for file in corpus.files if file.name not in named)
    return replace(corpus, files=files, is_listed=True, ignored=ignored)


def _unfinished(where: str, name: str, infos: Sequence[ObjectInfo]) -> InputError:
    """Return the refusal of a corpus that is missing or not complete."""
    problem = f"its marker {MARKER} does not exist" if infos else "there is no such corpus"
    remedy = f"land it: `perennial land RUN_FILE {name} FILES...`"
    if any(info.key == f"{name}/{MANIFEST}" for info in infos):
        problem += f", and its {MANIFEST} lists no files, or some that are not there yet"
        remedy = f"complete it, and write an empty {MARKER} last"
    return InputError(
        where, "", problem, remedy, code="corpus-unfinished" if infos else "corpus-missing"
    )
