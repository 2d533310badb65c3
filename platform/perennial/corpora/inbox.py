"""Corpora in the inbox: a folder `<name>/` of files, complete once its marker `_SUCCESS` exists."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.formats.open import describe_suffixes, find_kind
from perennial.errors import InputError

if TYPE_CHECKING:
    from perennial.store import ObjectInfo, Store

MARKER = "_SUCCESS"
# A producer that writes a manifest of its own need not write the marker too.
_MARKERS = (MARKER, "manifest.json")
MAX_NAME_CHARACTERS = 64
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")


@dataclass(frozen=True)
class LandedFile:
    """One file of a landed corpus; `name` is its path below the corpus's folder."""

    name: str
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class FileToLand:
    """A file of another store: its key there, and the name that it gets in the corpus."""

    key: str
    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class LandedCorpus:
    """A complete corpus: one whose marker exists."""

    name: str
    files: tuple[LandedFile, ...]
    landed_at: datetime

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


def land(inbox: Store, name: str, files: Sequence[Path]) -> list[str]:
    """Upload files as a corpus, the marker last.

    Landing the same content again changes nothing and is safe after a kill.

    Args:
        inbox: the store that corpora land in.
        name: the corpus's name.
        files: local files; their base names become the names in the corpus.

    Returns:
        The keys of the files in the inbox.

    Raises:
        InputError: before anything is written, for a bad name, no file, a missing file, an unknown
            suffix, two files of one name, or a complete corpus of that name with other content.
    """
    check_files(files)
    by_name = {path.name: path for path in files}
    return _land(inbox, name, _describe(files), lambda file, key: inbox.upload(by_name[file], key))


def land_stored(inbox: Store, name: str, files: Sequence[FileToLand], source: Store) -> list[str]:
    """Copy files of another store into the inbox as a corpus, the marker last; see `land`.

    Args:
        inbox: the store that corpora land in.
        name: the corpus's name.
        files: the files to copy, with the names that they get.
        source: the store that holds them.

    Returns:
        The keys of the files in the inbox.
    """
    by_name = {file.name: file for file in files}

    def copy(file: str, key: str) -> None:
        with source.open(by_name[file].key) as stream, inbox.open(key, "wb") as sink:
            shutil.copyfileobj(stream, sink, 1 << 20)

    described = [
        {"name": file.name, "bytes": file.size_bytes, "sha256": file.sha256}
        for file in sorted(files, key=lambda file: file.name)
    ]
    return _land(inbox, name, described, copy)


def _land(
    inbox: Store,
    name: str,
    described: Sequence[dict[str, Any]],
    copy: Callable[[str, str], None],
) -> list[str]:
    check_name(name)
    marker = _canonical({"files": described})
    keys = [f"{name}/{entry['name']}" for entry in described]
    if inbox.exists(f"{name}/{MARKER}"):
        _check_same(inbox, name, marker)
        return keys
    for key, entry in zip(keys, described, strict=True):
        copy(str(entry["name"]), key)
    # An earlier landing of this name may have been killed and left files that are not in this one.
    for info in inbox.list(f"{name}/"):
        if info.key not in (*keys, f"{name}/{MARKER}"):
            inbox.remove(info.key)
    if not inbox.create(f"{name}/{MARKER}", marker):
        # Another process landed the name meanwhile, which is fine if the content is the same.
        _check_same(inbox, name, marker)
    return keys


def list_landed(inbox: Store) -> list[LandedCorpus]:
    """Return the complete corpora in the order in which they landed (the marker's time, name)."""
    folders: dict[str, list[ObjectInfo]] = {}
    for info in inbox.list(""):
        name, slash, _ = info.key.partition("/")
        if slash:
            folders.setdefault(name, []).append(info)
    corpora = [_read_folder(name, infos) for name, infos in folders.items()]
    return sorted((c for c in corpora if c is not None), key=lambda c: (c.landed_at, c.name))


def read_landed(inbox: Store, name: str) -> LandedCorpus:
    """Return the landed corpus of a name.

    Args:
        inbox: the store that corpora land in.
        name: the corpus's name.

    Raises:
        InputError: if it is missing, unfinished or empty.
    """
    check_name(name)
    infos = inbox.list(f"{name}/")
    corpus = _read_folder(name, infos)
    where = f"{inbox.url}/{name}"
    if corpus is None:
        raise InputError(
            where,
            "",
            f"its marker {MARKER} does not exist" if infos else "there is no such corpus",
            f"land it: `perennial land RUN_FILE {name} FILES...`",
            code="corpus-unfinished" if infos else "corpus-missing",
        )
    if corpus.total_bytes == 0:
        raise InputError(
            where,
            "",
            "every file is empty" if corpus.files else "it holds no files",
            f"land files with text: {describe_suffixes()}",
            code="corpus-empty" if corpus.files else "corpus-without-files",
        )
    return corpus


def _read_folder(name: str, infos: Sequence[ObjectInfo]) -> LandedCorpus | None:
    markers = [i for i in infos if i.key.removeprefix(f"{name}/") in _MARKERS]
    if not markers:
        return None
    files = (
        LandedFile(info.key.removeprefix(f"{name}/"), info.size_bytes, info.etag)
        for info in sorted(infos, key=lambda i: i.key)
        if info not in markers
    )
    # Spark and Hadoop leave files such as _metadata and .part-0.crc beside the data.
    kept = tuple(f for f in files if not f.name.rpartition("/")[2].startswith(("_", ".")))
    return LandedCorpus(name, kept, min(marker.modified for marker in markers))


def check_files(files: Sequence[Path]) -> None:
    """Raise InputError for files that cannot be landed together; see `land`."""
    if not files:
        raise InputError(
            "land",
            "files",
            "no files were given",
            f"name at least one {describe_suffixes()}",
            code="no-files",
        )
    for path in files:
        if not path.is_file():
            raise InputError(
                "land",
                str(path),
                "there is no such file",
                "name a file that exists",
                code="file-missing",
            )
        if find_kind(path.name) is None:
            raise InputError(
                "land",
                str(path),
                f"its suffix {path.suffix!r} is unknown",
                f"use {describe_suffixes()}",
                code="format-unknown",
            )
        if path.name.startswith(("_", ".")):
            raise InputError(
                "land",
                str(path),
                "names that begin with an underscore or a dot are ignored in an inbox",
                "rename it",
                code="file-name-ignored",
            )
    names = sorted(path.name for path in files)
    for first, second in pairwise(names):
        if first == second:
            raise InputError(
                "land",
                first,
                "two files have this name",
                "rename one of them",
                code="file-name-twice",
            )


def _describe(files: Sequence[Path]) -> list[dict[str, Any]]:
    described = []
    for path in sorted(files, key=lambda p: p.name):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described.append({"name": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return described


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()


def _check_same(inbox: Store, name: str, marker: bytes) -> None:
    if inbox.read(f"{name}/{MARKER}") != marker:
        raise InputError(
            f"{inbox.url}/{name}",
            "",
            "a complete corpus of this name has other content",
            "land the new files under another name; a landed corpus never changes",
            code="corpus-differs",
        )
