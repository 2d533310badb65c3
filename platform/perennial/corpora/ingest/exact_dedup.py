"""Second pass: equal texts inside a corpus, and between it and the run's earlier corpora.

A task takes one range of digests. It holds 28 bytes per document of its part (of four shards) and
8 bytes per text of that range in one earlier corpus at a time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from perennial.corpora.counts import Counts
from perennial.corpora.ingest.partition import (
    Layout,
    choose_parts,
    digest_bounds,
    group_rows,
    holdout_bound,
    make_file_salts,
    make_order_keys,
)
from perennial.corpora.ingest.spill import ENTRY, SectionFile, read_sections, run_key
from perennial.corpora.manifest import DigestFile, InputFile
from perennial.store import read_checked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import IngestSettings
    from perennial.store import Store

_ENTRY_NAMES = ("digest", "rest", "file", "offset")
REPEAT = np.dtype(
    [
        ("file", "<i4"),
        ("offset", "<i8"),
        ("first_file", "<i4"),
        ("first_offset", "<i8"),
        ("earlier", "<i4"),
    ]
)
"""a document to drop: where it is, where the first equal one is, and the number of the earlier
corpus that holds its text (-1 for none)"""


class Drop(NamedTuple):
    """An entry of a list of documents to drop; see `REPEAT`."""

    file: int
    offset: int
    first_file: int
    first_offset: int
    earlier: int


class CompareResult(BaseModel):
    """Summary of the comparison of one part of the digests; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: DigestFile
    lowest: int | None
    """the lowest digest of a text; None when there is no text"""
    drops: bool
    """a list of documents to drop was written"""
    dropped: int = 0
    """documents on that list"""
    fresh: int | None = None
    """documents that are neither dropped nor among the share that is held out; None in the marker
    of an earlier version"""
    counts: Counts


@dataclass(frozen=True)
class EarlierDigests:
    """Digest files of a corpus of the run that was ingested before."""

    name: str
    files: tuple[DigestFile, ...]


@dataclass(frozen=True)
class CompareJob:
    """Inputs of all compare tasks; a task gets the number of its part besides."""

    corpora: Store
    """the folder of all corpora"""
    name: str
    staging: Store
    runs: tuple[int, ...]
    inputs: tuple[InputFile, ...]
    settings: IngestSettings
    layout: Layout
    earlier: tuple[EarlierDigests, ...] = ()


def drops_key(part: int) -> str:
    """Return the key, below the staging folder, of the documents of a part that are dropped."""
    return f"compared/{part:05d}.drops"


def compare_digests(job: CompareJob, part: int) -> CompareResult:
    """Find the equal texts of a part of the digests, unless its marker says that it was done.

    Args:
        job: what all tasks share.
        part: the number of the part.
    """
    marker, target = f"compared/{part:05d}.json", job.corpora.sub(job.name)
    try:
        result = CompareResult.model_validate_json(job.staging.read(marker))
        if target.info(result.file.file).size_bytes == result.file.size_bytes:
            return result
    except FileNotFoundError:
        pass
    result = _compare(job, part, target)
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def _compare(job: CompareJob, part: int, target: Store) -> CompareResult:
    entries = _read_entries(job, part)
    # By digest, then by position: the first of equal texts is the one that stays.
    entries = entries[np.lexsort([entries[name] for name in reversed(_ENTRY_NAMES)])]
    first = _find_first_equal(entries)
    repeat = first != np.arange(len(entries))
    texts = np.unique(entries["digest"])
    earlier = np.full(len(entries), -1, dtype=np.int32)
    # Backwards, so that the first of several earlier corpora that hold a text is the one recorded.
    for number in reversed(range(len(job.earlier))):
        known = _find_known(job, number, part, texts)
        earlier[known[np.searchsorted(texts, entries["digest"])]] = number
    data = texts.astype("<u8").tobytes()
    file = f"digests-{part:05d}.bin"
    target.write(file, data)
    drop = (repeat | (earlier >= 0)) & (job.settings.duplicates == "drop")
    if drop.any():
        rows = np.flatnonzero(drop)
        with job.staging.open(drops_key(part), "wb") as stream:
            drops = _list_drops(entries[rows], entries[first[rows]], earlier[rows])
            write_drops(stream, job.layout, drops, _find_parts(job, entries[rows]))
    names = [corpus.name for corpus in job.earlier]
    numbers, repeats = np.unique(earlier[earlier >= 0], return_counts=True)
    return CompareResult(
        file=DigestFile(
            file=file,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            digests=len(texts),
        ),
        lowest=int(texts[0]) if len(texts) else None,
        drops=bool(drop.any()),
        dropped=int(drop.sum()),
        fresh=int((~drop & ~_is_held(job, entries)).sum()),
        counts=Counts(
            repeats=int(repeat.sum()),
            repeats_of_earlier={
                names[n]: c for n, c in zip(numbers.tolist(), repeats.tolist(), strict=True)
            },
        ),
    )


def _read_entries(job: CompareJob, part: int) -> npt.NDArray[Any]:
    """Return the documents of the part, of all run files."""
    places = (
        (run_key(piece, run), job.layout.digests_section(part))
        for piece, runs in enumerate(job.runs)
        for run in range(runs)
    )
    sections = read_sections(job.staging, places)
    parts = [np.frombuffer(section, dtype=ENTRY) for section in sections]
    return np.concatenate([np.empty(0, dtype=ENTRY), *parts])


def _find_first_equal(entries: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return, for every one of sorted entries, the index of the first one with its digest."""
    begins = np.ones(len(entries), dtype=bool)
    for name in ("digest", "rest"):
        same = entries[name][1:] == entries[name][:-1]
        begins[1:] = ~same if name == "digest" else begins[1:] | ~same
    return np.asarray(np.maximum.accumulate(np.where(begins, np.arange(len(entries)), 0)))


def _find_known(
    job: CompareJob, number: int, part: int, texts: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Return a mask of the part's digests that an earlier corpus holds."""
    bounds = digest_bounds(job.layout.digest_parts)
    low, high = bounds[part], bounds[part + 1]
    earlier = job.earlier[number]
    theirs = digest_bounds(len(earlier.files))
    known = np.zeros(len(texts), dtype=bool)
    for index, file in enumerate(earlier.files):
        if file.digests and theirs[index] < high and low < theirs[index + 1]:
            data = read_checked(job.corpora, f"{earlier.name}/{file.file}", file.sha256)
            digests = np.frombuffer(data, dtype="<u8")
            places = np.minimum(np.searchsorted(digests, texts), len(digests) - 1)
            known |= digests[places] == texts
    return known


def _list_drops(
    entries: npt.NDArray[Any], first: npt.NDArray[Any], earlier: npt.NDArray[np.int32]
) -> npt.NDArray[Any]:
    drops = np.empty(len(entries), dtype=REPEAT)
    for name in ("file", "offset"):
        drops[name], drops[f"first_{name}"] = entries[name], first[name]
    drops["earlier"] = earlier
    return drops


def _is_held(job: CompareJob, entries: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    bound = np.uint64(holdout_bound(job.settings.holdout_share))
    return np.asarray(entries["digest"] < bound)


def _find_parts(job: CompareJob, entries: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the part of documents `(entries,)` that every entry's document is in."""
    salts = make_file_salts([file.name for file in job.inputs], job.settings.seed)
    orders = make_order_keys(salts[entries["file"]], entries["offset"])
    parts = choose_parts(orders, job.layout.shards)
    held = _is_held(job, entries)
    parts[held] = job.layout.shards + choose_parts(orders[held], job.layout.held_parts)
    return parts


def write_drops(
    stream: BinaryIO, layout: Layout, drops: npt.NDArray[Any], parts: npt.NDArray[np.int64]
) -> None:
    """Write a list of documents to drop: a section for every part of documents.

    Args:
        stream: the file.
        layout: how documents are dealt into parts.
        drops: the documents (`REPEAT`).
        parts: the part of each of them `(drops,)`.
    """
    file = SectionFile(stream, layout.parts)
    for rows in group_rows(parts, layout.parts):
        file.add(drops[rows].tobytes())
    file.close()


def read_drops(
    documents: StagedDocuments,
    staging: Store,
    places: Sequence[tuple[str, int | range]],
    describe: Callable[[Drop], str],
) -> dict[int, str]:
    """Return, by row, the documents that lists name, and what to record of each.

    Args:
        documents: of the parts; of those of one domain, in a corpus of parts.
        staging: the store of staged files.
        places: (key of a list, part of documents, or successive ones) pairs.
        describe: returns the detail of a document to drop.
    """
    details: dict[int, str] = {}
    for section in read_sections(staging, places):
        drops = np.frombuffer(section, dtype=REPEAT)
        rows = documents.find_rows(drops["file"], drops["offset"])
        for row, drop in zip(rows.tolist(), drops.tolist(), strict=True):
            if row >= 0:  # else of another domain
                details[row] = describe(Drop(*drop))
    return details
