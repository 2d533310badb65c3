"""Lists of a landed corpus's files: in its marker, and as the run recorded them. Pure.

A list is evidence: of every file its size, and the digest that its producer promised, or else the
ETag under which the inbox listed it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from perennial.corpora.formats.base import CHANGED, VANISHED
from perennial.errors import InputError
from perennial.store.stored_json import parse_json

_SIZES = ("bytes", "size_bytes", "size")
_NAMES = ("name", "path")


@dataclass(frozen=True)
class ListedFile:
    """A file of a list; `name` is its path below the corpus's folder.

    size_bytes: None where the list does not say it.
    sha256: "" where the list does not say it.
    etag: as the inbox listed it; "" in a list of a producer.
    """

    name: str
    size_bytes: int | None
    sha256: str = ""
    etag: str = ""

    def __str__(self) -> str:
        size = "" if self.size_bytes is None else f"{self.size_bytes} bytes"
        marks = {"sha256": self.sha256, "etag": "" if self.sha256 else self.etag}
        return ", ".join(filter(None, [size, *(f"{k} {v}" for k, v in marks.items() if v)]))

    def differs(self, other: ListedFile) -> bool:
        """Return whether a file that is there now, `other`, is not the listed one."""
        sizes = {self.size_bytes, other.size_bytes} - {None}
        digests = {self.sha256, other.sha256} - {""}
        if len(sizes) > 1 or len(digests) > 1:
            return True
        # An ETag says less than a digest: the same bytes, written again, have another one.
        return not self.sha256 and bool(self.etag) and self.etag != other.etag


class ListRecord(BaseModel):
    """The list of a landed corpus's files, which the run's store keeps under its digest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    """of the object that holds the list"""
    size_bytes: int
    """of that object"""
    files: int
    promised: bool
    """whether the producer's list has every file's digest; else it is what the inbox listed"""

    @property
    def key(self) -> str:
        """Return the key of the list in the run's store."""
        return f"landed/{self.sha256}.json"


def is_hidden(name: str) -> bool:
    """Return whether a part of a file's path says that it is no data.

    Programs write beside data: Spark `_temporary/` and `_metadata`, Hadoop `.part-0.crc`, Delta
    Lake `_delta_log/`, Jupyter `.ipynb_checkpoints/`, the Hub's client `.cache/`, macOS
    `__MACOSX/`. All of these begin with an underscore or a dot. The way up, `..`, is none of them.
    """
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(("_", ".")) for part in parts)


def escape_text(text: str) -> str:
    """Return a text of one line for a file's name, or what a library says of its content.

    Bytes that are not UTF-8, line breaks and other unprintable characters are escaped. A name with
    such characters is no key of a store, and neither is what is returned for it.
    """
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "surrogatepass")  # half a character, as JSON may spell it
    plain = data.decode("utf-8", "backslashreplace")
    return plain if plain.isprintable() else repr(plain)[1:-1]


def parse_list(data: bytes) -> tuple[ListedFile, ...] | None:
    """Return the files that a marker or a manifest lists; None when it has no list.

    The list is the JSON object's field `files`: names, objects with `name` (or `path`), `bytes` (or
    `size`) and `sha256`, or an object of these by name. Only the name is needed.

    Raises:
        ValueError: it begins like a JSON object and is none, or its list cannot be read.
    """
    if not data.lstrip().startswith(b"{"):
        return None
    entries = parse_json(data).get("files")
    if isinstance(entries, dict):
        entries = [
            {"name": name} | (entry if isinstance(entry, dict) else {})
            for name, entry in entries.items()
        ]
    if not isinstance(entries, list) or not entries:
        return None
    files = tuple(_parse_entry(entry) for entry in entries)
    if len({file.name for file in files}) < len(files):
        raise ValueError("it lists a file twice")
    return files


def _parse_entry(entry: Any) -> ListedFile:
    fields = entry if isinstance(entry, dict) else {"name": entry}
    name = next((fields[key] for key in _NAMES if key in fields), None)
    size = next((fields[key] for key in _SIZES if key in fields), None)
    sha256 = fields.get("sha256", "")
    if not isinstance(name, str) or not name or "://" in name or name.startswith("/"):
        raise ValueError(f"{name!r} is no path below the corpus's folder")
    if not (size is None or (type(size) is int and size >= 0)):
        raise ValueError(f"{size!r} is no size of {name}")
    if not isinstance(sha256, str) or (sha256 and not _is_digest(sha256.lower())):
        raise ValueError(f"{sha256!r} is no sha256 of {name}")
    return ListedFile(name.removeprefix("./"), size, sha256.lower())


def _is_digest(text: str) -> bool:
    return len(text) == hashlib.sha256().digest_size * 2 and set(text) <= set("0123456789abcdef")


def encode_list(files: Sequence[ListedFile]) -> bytes:
    """Return the object that keeps a list: JSON, the same for the same list."""
    entries = [
        {"name": file.name, "bytes": file.size_bytes}
        | ({"sha256": file.sha256} if file.sha256 else {"etag": file.etag})
        for file in sorted(files, key=lambda file: file.name)
    ]
    return json.dumps(entries, separators=(",", ":")).encode()


def decode_list(data: bytes) -> list[ListedFile]:
    """Return the list that `encode_list` wrote."""
    return [
        ListedFile(entry["name"], entry["bytes"], entry.get("sha256", ""), entry.get("etag", ""))
        for entry in parse_json(data)
    ]


def check_same_files(
    where: str, then: Sequence[ListedFile], now: Sequence[ListedFile], promised: bool
) -> None:
    """Raise InputError for the first file that is gone or is another one; see `moved_file`.

    Args:
        where: the corpus's folder, for the message.
        then: the files that must be there.
        now: the files that are.
        promised: whether `then` is a producer's list.
    """
    actual = {file.name: file for file in now}
    for file in then:
        there = actual.get(file.name)
        if there is None:
            raise moved_file(where, file, VANISHED, "there is no such file", promised)
        if file.differs(there):
            raise moved_file(where, file, CHANGED, f"found {there}", promised)


def moved_file(
    where: str, file: ListedFile, reason: str, actual: str, promised: bool = True
) -> InputError:
    """Return the refusal of a corpus of which a file is not what it was when it landed.

    Args:
        where: the corpus's folder.
        file: the file as it was listed.
        reason: VANISHED or CHANGED.
        actual: what is in its place, in words.
        promised: whether a producer's list has the file; else the inbox listed it.
    """
    name = where.rpartition("/")[2]
    listed = "its marker's list has" if promised else "it landed with"
    other = (
        "land the corpus under another name"
        if promised
        else f"take the inbox as it is by `perennial retry RUN_FILE {name}`"
    )
    return InputError(
        where,
        escape_text(file.name),
        f"{reason}: {listed} {str(file) or 'it'}; {actual}",
        f"restore the file and use `perennial retry RUN_FILE {name}`, or {other}",
        code="file-vanished" if reason == VANISHED else "file-changed",
    )
