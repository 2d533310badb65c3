"""Landing of a corpus: its files are copied to the inbox, the marker with their list last."""

from __future__ import annotations

import errno
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.corpora.file_list import ListedFile, is_hidden, parse_list
from perennial.corpora.formats.open import describe_suffixes, find_kind
from perennial.corpora.inbox import MARKER, check_name
from perennial.errors import Altered, InputError
from perennial.store import check_object, copy_checked, count_moved

if TYPE_CHECKING:
    from perennial.store import Store

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class LandingFile(ABC):
    """A file that is to land.

    name: the path that it gets below the corpus's folder.
    size_bytes: as its place says.
    """

    name: str
    size_bytes: int

    @property
    @abstractmethod
    def origin(self) -> str:
        """Return where the file is, for messages."""

    @abstractmethod
    def digest(self) -> str:
        """Return its sha256; "" where it is known only once the file is copied."""

    @abstractmethod
    def copy_to(self, inbox: Store, key: str) -> str:
        """Put it into the inbox, and return its sha256.

        Returns "" where `digest` has it, and where a server copied the file, so that its bytes were
        not read.
        """


@dataclass(frozen=True)
class LocalFile(LandingFile):
    """A file of this machine."""

    path: Path

    @property
    def origin(self) -> str:
        return str(self.path)

    def digest(self) -> str:
        with self.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def copy_to(self, inbox: Store, key: str) -> str:
        inbox.upload(self.path, key)
        return ""


@dataclass(frozen=True)
class StoredLandingFile(LandingFile):
    """An object of a store.

    sha256: "" where it is not known.
    etag: as it was listed; "" to not compare it.
    """

    store: Store
    key: str
    sha256: str = ""
    etag: str = ""

    @property
    def origin(self) -> str:
        return f"{self.store.url}/{self.key}"

    def digest(self) -> str:
        return self.sha256

    def copy_to(self, inbox: Store, key: str) -> str:
        """Put it into the inbox, without reading it where one server has both; see `LandingFile`.

        Raises:
            FileNotFoundError: it is gone.
            Altered: it has another digest than was given.
            OSError: it was replaced meanwhile.
        """
        if self.sha256:
            self._copy_checked(inbox, key)
            return ""
        digest = hashlib.sha256()
        on_server = inbox.copy_on_server(self.store, self.key, key)
        if not on_server:
            with self.store.open(self.key) as source, inbox.open(key, "wb") as sink:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    sink.write(chunk)
                    count_moved(len(chunk))
        else:
            count_moved(self.size_bytes)
        if self.etag and self.store.info(self.key).etag != self.etag:
            inbox.remove(key)
            raise OSError(f"{self.origin} was replaced while it was copied; land it again")
        return "" if on_server else digest.hexdigest()

    def _copy_checked(self, inbox: Store, key: str) -> None:
        try:
            copy_checked(self.store, self.key, inbox, key, self.sha256)
        except Altered as altered:
            if altered.actual:
                raise
            raise FileNotFoundError(errno.ENOENT, "no such object", self.key) from None


def land(inbox: Store, name: str, files: Sequence[Path]) -> list[str]:
    """Upload local files under their base names; see `land_files`."""
    for path in files:
        if not path.is_file():
            raise missing_file(str(path))
    return land_files(inbox, name, [LocalFile(p.name, p.stat().st_size, p) for p in files])


def land_files(inbox: Store, name: str, files: Sequence[LandingFile]) -> list[str]:
    """Copy files into the inbox as a corpus, the marker last.

    Landing the same content again restores files that are gone or damaged, changes nothing else,
    and is safe after a kill.

    Args:
        inbox: the store that corpora land in.
        name: the corpus's name.
        files: the files, with the names that they get.

    Returns:
        The keys of the files in the inbox.

    Raises:
        InputError: before anything is written, for a bad name, no file, an unknown suffix, two
            files of one name, or a complete corpus of that name with other content.
    """
    check_name(name)
    check_files(files)
    ordered = sorted(files, key=lambda file: file.name)
    digests = {file.name: file.digest() for file in ordered}
    keys = [f"{name}/{file.name}" for file in ordered]
    if inbox.exists(f"{name}/{MARKER}"):
        _restore(inbox, name, ordered, digests)
        return keys
    for key, file in zip(keys, ordered, strict=True):
        digests[file.name] = file.copy_to(inbox, key) or digests[file.name]
    # An earlier landing of this name may have been killed and left files that are not in this one.
    for info in inbox.list(f"{name}/"):
        if info.key not in (*keys, f"{name}/{MARKER}"):
            inbox.remove(info.key)
    if not inbox.create(f"{name}/{MARKER}", _encode_marker(ordered, digests)):
        # Another process landed the name meanwhile, which is fine if the content is the same.
        _check_same(inbox, name, ordered, digests)
    return keys


def check_files(files: Sequence[LandingFile]) -> None:
    """Raise InputError for files that cannot be landed together; see `land_files`."""
    if not files:
        raise InputError(
            "land",
            "files",
            "no files were given",
            f"name at least one {describe_suffixes()}",
            code="no-files",
        )
    for file in files:
        if find_kind(file.name) is None:
            raise InputError(
                "land",
                file.origin,
                f"its suffix {Path(file.name).suffix!r} is unknown",
                f"use {describe_suffixes()}",
                code="format-unknown",
            )
        if is_hidden(file.name):
            raise InputError(
                "land",
                file.origin,
                "names that begin with an underscore or a dot are ignored in an inbox",
                "rename it",
                code="file-name-ignored",
            )
    names = sorted(file.name for file in files)
    for first, second in pairwise(names):
        if first == second:
            raise InputError(
                "land",
                first,
                "two files have this name",
                "rename one of them, or land the folder that holds both",
                code="file-name-twice",
            )


def missing_file(path: str) -> InputError:
    """Return the refusal of a path, a glob or an address where there is nothing."""
    return InputError(
        "land", path, "there is no such file", "name a file that exists", code="file-missing"
    )


def _encode_marker(files: Sequence[LandingFile], digests: dict[str, str]) -> bytes:
    entries = [
        {"name": file.name, "bytes": file.size_bytes}
        | ({"sha256": digests[file.name]} if digests[file.name] else {})
        for file in files
    ]
    return json.dumps({"files": entries}, sort_keys=True, indent=1).encode()


def _restore(
    inbox: Store, name: str, files: Sequence[LandingFile], digests: dict[str, str]
) -> None:
    """Put back the files of a complete corpus that are gone or damaged.

    Raises InputError for a corpus with other content.
    """
    listed = _check_same(inbox, name, files, digests)
    for file in files:
        key, sha256 = f"{name}/{file.name}", digests[file.name] or listed[file.name].sha256
        if not _is_sound(inbox, key, file.size_bytes, sha256):
            file.copy_to(inbox, key)


def _is_sound(inbox: Store, key: str, size_bytes: int, sha256: str) -> bool:
    try:
        if sha256:
            check_object(inbox, key, sha256)
        return inbox.info(key).size_bytes == size_bytes
    except (Altered, FileNotFoundError):
        return False


def _check_same(
    inbox: Store, name: str, files: Sequence[LandingFile], digests: dict[str, str]
) -> dict[str, ListedFile]:
    """Return the files of a complete corpus by name, if they are the given ones."""
    try:
        listed = {file.name: file for file in parse_list(inbox.read(f"{name}/{MARKER}")) or ()}
    except ValueError:
        listed = {}
    given = {f.name: ListedFile(f.name, f.size_bytes, digests[f.name]) for f in files}
    if listed.keys() != given.keys() or any(given[key].differs(listed[key]) for key in given):
        raise InputError(
            f"{inbox.url}/{name}",
            "",
            "a complete corpus of this name has other content",
            "land the new files under another name; a landed corpus never changes",
            code="corpus-differs",
        )
    return listed
