"""Landing of a corpus: its files are copied to the inbox, the marker with their list last."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.corpora.formats.open import describe_suffixes, find_kind
from perennial.corpora.inbox import MARKER, check_name
from perennial.errors import Altered, InputError
from perennial.store import check_object, copy_checked

if TYPE_CHECKING:
    from perennial.store import Store


@dataclass(frozen=True)
class FileToLand:
    """A file of another store: its key there, and the name that it gets in the corpus."""

    key: str
    name: str
    size_bytes: int
    sha256: str


def land(inbox: Store, name: str, files: Sequence[Path]) -> list[str]:
    """Upload files as a corpus, the marker last.

    Landing the same content again restores files that are gone or damaged, changes nothing else,
    and is safe after a kill.

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

    Raises:
        FileNotFoundError: a file is gone from `source`.
        Altered: a file of `source` has another digest than was given.
    """
    by_name = {file.name: file for file in files}

    def copy(file: str, key: str) -> None:
        try:
            copy_checked(source, by_name[file].key, inbox, key, by_name[file].sha256)
        except Altered as altered:
            if altered.actual:
                raise
            raise FileNotFoundError(errno.ENOENT, "no such object", by_name[file].key) from None

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
        for key, entry in zip(keys, described, strict=True):
            try:
                check_object(inbox, key, str(entry["sha256"]))
            except Altered:
                copy(str(entry["name"]), key)
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
