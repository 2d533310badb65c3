"""Files of the places that `land` takes: files, folders, globs, prefixes of stores, the Hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from perennial.corpora import find_companions, find_kind, is_hidden
from perennial.corpora.file_list import escape_text
from perennial.corpora.landing import (
    LandingFile,
    LocalFile,
    StoredLandingFile,
    missing_file,
)
from perennial.errors import InputError
from perennial.sources.hub import HUB_SCHEME, list_dataset
from perennial.store import is_store_url, open_store
from perennial.store.keys import valid_key

TRAIN = "train"
EVERY_SPLIT = "all"
_SPLITS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
SPLITS = (*_SPLITS, EVERY_SPLIT)
_WORDS = {word: split for split, words in _SPLITS.items() for word in words}
_SPLIT = re.compile(f"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![a-z])")


@dataclass(frozen=True)
class LeftOut:
    """A file of a place that does not land, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class PlacedFiles:
    """The files to land of some places, and those beside them that are left out."""

    files: tuple[LandingFile, ...]
    left_out: tuple[LeftOut, ...]


def find_files(
    places: Sequence[str], splits: Sequence[str] = (), are_ids: bool = False
) -> PlacedFiles:
    """Return the files of some places.

    A file that is named itself is taken for what it is. Of a folder, a glob, a prefix or a dataset
    of the Hub, what is no data is left out, and so are the splits that were not asked for: those of
    the Hub, and those beside files of the split `train`.

    Args:
        places: paths, globs, `s3://` and `gs://` addresses, `hf://datasets/OWNER/NAME`.
        splits: those to take of `SPLITS`; none for `train` alone.
        are_ids: whether documents are token ids; what holds none is no data then.

    Raises:
        InputError: a place cannot be read, or there is nothing.
    """
    wanted = _check_splits(splits)
    files: list[LandingFile] = []
    left_out: list[LeftOut] = []
    for place in places:
        is_hub = place.startswith(HUB_SCHEME)
        no_files: list[LeftOut] = []
        here, is_named = _list_place(place, no_files)
        if is_named:
            files += here
            continue
        kept, others = _choose(here, wanted, has_splits=is_hub, are_ids=are_ids)
        others = no_files + others
        if not kept:
            raise _nothing(place, others)
        files += kept
        left_out += others
    return PlacedFiles(tuple(files), tuple(left_out))


def split_of(name: str) -> str:
    """Return the split that a file's name or a folder above it names; "" for none."""
    match = _SPLIT.search(name.lower())
    return _WORDS[match[1]] if match else ""


def is_place(word: str) -> bool:
    """Return whether a word of a command line is a place, not an override of a field."""
    return "://" in word.partition("=")[0] or os.path.exists(word) or bool(glob.glob(word))  # noqa: PTH110, PTH207


def _list_place(place: str, no_files: list[LeftOut]) -> tuple[list[LandingFile], bool]:
    """Return the files of a place, and whether it names a file itself.

    Args:
        place: as `find_files` takes it.
        no_files: takes what is no file, such as a link that leads nowhere.
    """
    if place.startswith(HUB_SCHEME):
        return list(list_dataset(place)), False
    if is_store_url(place) and not place.startswith("file://"):
        return _list_store(place)
    path = Path(place.removeprefix("file://"))
    if path.is_file():
        return [LocalFile(path.name, path.stat().st_size, path)], True
    if path.is_dir():
        return list(_walk(path, path, no_files)), False
    base = _glob_base(place)
    matches = [Path(match) for match in sorted(glob.glob(place, recursive=True))]  # noqa: PTH207
    if not matches and _ADDRESS.match(place):
        raise InputError(
            "land",
            place,
            "addresses of that kind are not read",
            "name files, s3:// or gs:// prefixes or hf://datasets/OWNER/NAME; what is on the web "
            "is downloaded first, or named as one of the run file's sources",
            code="place-unreadable",
        )
    if not matches:
        raise missing_file(place)
    by_name = {file.name: file for match in matches for file in _walk(match, base, no_files)}
    return list(by_name.values()), False


def _glob_base(pattern: str) -> Path:
    """Return the folder above the first part of a glob that has a wild card."""
    parts = Path(pattern).parts
    plain = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:plain])


def _walk(path: Path, base: Path, no_files: list[LeftOut]) -> Iterator[LandingFile]:
    """Yield a file, or those below a folder, by their names below `base`. Links are followed.

    What is no file, such as a pipe or a link that leads nowhere, goes to `no_files`.
    """

    def take(file: Path) -> Iterator[LandingFile]:
        name = file.relative_to(base).as_posix() if file != base else file.name
        if file.is_file():
            yield LocalFile(name, file.stat().st_size, file)
        else:
            why = "a link that leads nowhere" if file.is_symlink() else "no file"
            no_files.append(LeftOut(escape_text(name), why))

    if not path.is_dir():
        yield from take(path)
        return
    seen = set[str]()
    for folder, inner, names in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(folder))
        inner[:] = sorted(n for n in inner if os.path.realpath(Path(folder, n)) not in seen)
        for file in (Path(folder, name) for name in sorted(names)):
            yield from take(file)


def _list_store(place: str) -> tuple[list[LandingFile], bool]:
    address = place.rstrip("/")
    folder, _, name = address.rpartition("/")
    try:
        files = _match_objects(address) if glob.has_magic(address) else []
        # Without a match, its characters may be those of a key; an address has no "?".
        if not files and "?" in address:
            raise missing_file(place)
        files = files or _list_objects(address)
        if files or folder.endswith("/"):
            return files, False
        store = open_store(folder)
        info = store.info(name)
    except FileNotFoundError:
        raise missing_file(place) from None
    except (OSError, ValueError) as error:
        raise InputError(
            "land",
            place,
            f"it cannot be read: {error}",
            "correct the address, and the credentials that the environment has for it",
            code="place-unreadable",
        ) from error
    return [StoredLandingFile(name, info.size_bytes, store, name, etag=info.etag)], True


def _list_objects(address: str) -> list[LandingFile]:
    store = open_store(address)
    return [
        StoredLandingFile(info.key, info.size_bytes, store, info.key, etag=info.etag)
        for info in store.list("")
    ]


def _match_objects(address: str) -> list[LandingFile]:
    """Return the objects below the plain part of a glob that match the rest, as `glob` would."""
    parts = address.split("/")
    plain = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    if plain <= parts.index("") + 1:  # the bucket itself
        return []
    patterns = parts[plain:]
    files = _list_objects("/".join(parts[:plain]))
    return [file for file in files if _is_matched(file.name.split("/"), patterns)]


def _is_matched(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether a path, or a folder above it, matches the parts of a glob."""
    if not patterns:
        return True
    if patterns[0] == "**":
        return any(_is_matched(parts[i:], patterns[1:]) for i in range(len(parts)))
    if not parts or not fnmatchcase(parts[0], patterns[0]):
        return False
    return _is_matched(parts[1:], patterns[1:])


def _check_splits(splits: Sequence[str]) -> frozenset[str]:
    for split in splits:
        if split not in SPLITS:
            raise InputError(
                "land",
                "--split",
                f"there is no split {split!r}",
                f"name one of {', '.join(SPLITS)}",
                code="split-unknown",
            )
    return frozenset(splits or (TRAIN,))


def _choose(
    files: Sequence[LandingFile], wanted: frozenset[str], *, has_splits: bool, are_ids: bool
) -> tuple[list[LandingFile], list[LeftOut]]:
    """Return the data of a place, and what is left out of it."""
    beside = find_companions(file.name for file in files)
    reasons = {file.name: _refusal(file.name, beside, are_ids) for file in files}
    data = [file for file in files if not reasons[file.name]]
    splits = {file.name: split_of(file.name) for file in data}
    if EVERY_SPLIT not in wanted and (has_splits or TRAIN in splits.values()):
        reasons |= {
            name: f"split {split}; `--split {split}` takes it"
            for name, split in splits.items()
            if split and split not in wanted
        }
    kept = [file for file in files if not reasons[file.name]]
    # What is text comes before what is none, and so into the few lines that are shown.
    names = sorted(
        filter(reasons.__getitem__, reasons), key=lambda name: (name not in splits, name)
    )
    return kept, [LeftOut(escape_text(name), reasons[name]) for name in names]


def _refusal(name: str, companions: Iterable[str], are_ids: bool) -> str:
    """Return why a file of a place is no data; "" where it is."""
    try:
        valid_key(name)
    except ValueError:
        return "its name cannot be a key; rename it"
    if is_hidden(name):
        return "a name that begins with a dot or an underscore"
    if name in companions:
        return "left beside the data by the program that wrote it"
    kind = find_kind(name)
    return kind.describe_other(are_ids) if kind else "no format that is read"


def _nothing(place: str, left_out: Sequence[LeftOut]) -> InputError:
    why = f": {left_out[0].name} is left out ({left_out[0].reason})" if left_out else ""
    more = f" and {len(left_out) - 1:,} more" if len(left_out) > 1 else ""
    return InputError(
        "land",
        place,
        f"it holds no files to land{why}{more}",
        "name a place that holds data, or ask for a split",
        code="no-files",
    )
