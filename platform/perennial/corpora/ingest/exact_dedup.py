"""Equal texts: inside a corpus, and against the corpora that the run holds already.

Each task takes one range of digests. It holds 28 bytes for each document of its part (of four
shards) and 8 for each text of that range in one earlier corpus at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict

from perennial.corpora.ingest.documents import StagedDocuments
from perennial.corpora.ingest.partition import (
    Layout,
    destinations,
    digest_bounds,
    file_salts,
    holdout_bound,
    order_keys,
)
from perennial.corpora.ingest.read import group_rows, run_key
from perennial.corpora.ingest.spill import ENTRY, SectionFile, read_sections
from perennial.corpora.manifest import DUPLICATE, Counts, DigestFile, InputFile

if TYPE_CHECKING:
    import numpy.typing as npt

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


class CompareResult(BaseModel):
    """What one part of the digests came to; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: DigestFile
    lowest: int | None
    """digest of a text; None when there is no text"""
    drops: bool
    """whether there is a list of documents to drop"""
    counts: Counts


@dataclass(frozen=True)
class EarlierDigests:
    """A corpus of the run that was ingested before, and its digest files."""

    name: str
    files: tuple[DigestFile, ...]


@dataclass(frozen=True)
class CompareJob:
    """Everything a compare task needs besides its part."""

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
    """Where the documents to drop of a part of digests are listed, below the staging folder."""
    return f"compared/{part:05d}.drops"


def compare_digests(job: CompareJob, part: int) -> CompareResult:
    """Finds the equal texts of a part, unless its marker says that it was done before."""
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
    entries = _entries(job, part)
    entries = entries[np.lexsort([entries[name] for name in reversed(_ENTRY_NAMES)])]
    first = _first_of_each(entries)
    repeat = first != np.arange(len(entries))
    texts = np.unique(entries["digest"])
    earlier = np.full(len(entries), -1, dtype=np.int32)
    for number in reversed(range(len(job.earlier))):
        known = _known(job, number, part, texts)
        earlier[known[np.searchsorted(texts, entries["digest"])]] = number
    data = texts.astype("<u8").tobytes()
    file = f"digests-{part:05d}.bin"
    target.write(file, data)
    drop = (repeat | (earlier >= 0)) & (job.settings.duplicates == "drop")
    if drop.any():
        rows = np.flatnonzero(drop)
        with job.staging.open(drops_key(part), "wb") as stream:
            _write_drops(stream, job, entries[rows], entries[first[rows]], earlier[rows])
    names = [each.name for each in job.earlier]
    numbers, found = np.unique(earlier[earlier >= 0], return_counts=True)
    return CompareResult(
        file=DigestFile(
            file=file,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            digests=len(texts),
        ),
        lowest=int(texts[0]) if len(texts) else None,
        drops=bool(drop.any()),
        counts=Counts(
            repeats=int(repeat.sum()),
            repeats_of_earlier={
                names[n]: c for n, c in zip(numbers.tolist(), found.tolist(), strict=True)
            },
        ),
    )


def _entries(job: CompareJob, part: int) -> npt.NDArray[Any]:
    """The documents of the part, of all runs."""
    places = (
        (run_key(piece, run), job.layout.parts + part)
        for piece, runs in enumerate(job.runs)
        for run in range(runs)
    )
    sections = read_sections(job.staging, places)
    parts = [np.frombuffer(section, dtype=ENTRY) for section in sections]
    return np.concatenate([np.empty(0, dtype=ENTRY), *parts])


def _first_of_each(entries: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """For each entry, sorted, the index of the first one with the same digest."""
    begins = np.ones(len(entries), dtype=bool)
    for name in ("digest", "rest"):
        same = entries[name][1:] == entries[name][:-1]
        begins[1:] = ~same if name == "digest" else begins[1:] | ~same
    return np.asarray(np.maximum.accumulate(np.where(begins, np.arange(len(entries)), 0)))


def _known(
    job: CompareJob, number: int, part: int, texts: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Which of the part's digests that earlier corpus holds."""
    bounds = digest_bounds(job.layout.digest_parts)
    low, high = bounds[part], bounds[part + 1]
    earlier = job.earlier[number]
    theirs = digest_bounds(len(earlier.files))
    known = np.zeros(len(texts), dtype=bool)
    for index, file in enumerate(earlier.files):
        if file.digests and theirs[index] < high and low < theirs[index + 1]:
            data = job.corpora.read(f"{earlier.name}/{file.file}")
            digests = np.frombuffer(data, dtype="<u8")
            places = np.minimum(np.searchsorted(digests, texts), len(digests) - 1)
            known |= digests[places] == texts
    return known


def _write_drops(
    stream: BinaryIO,
    job: CompareJob,
    entries: npt.NDArray[Any],
    first: npt.NDArray[Any],
    earlier: npt.NDArray[np.int32],
) -> None:
    """Writes the list of documents to drop: a section for each part of documents."""
    salts = file_salts([file.name for file in job.inputs], job.settings.seed)
    orders = order_keys(salts[entries["file"]], entries["offset"])
    parts = destinations(orders, job.layout.shards)
    held = entries["digest"] < np.uint64(holdout_bound(job.settings.holdout_share))
    parts[held] = job.layout.shards + destinations(orders[held], job.layout.held_parts)
    drops = np.empty(len(entries), dtype=REPEAT)
    for name in ("file", "offset"):
        drops[name], drops[f"first_{name}"] = entries[name], first[name]
    drops["earlier"] = earlier
    file = SectionFile(stream, job.layout.parts)
    for rows in group_rows(parts, job.layout.parts):
        file.add(drops[rows].tobytes())
    file.close()


def without_dropped(
    documents: StagedDocuments,
    staging: Store,
    lists: Sequence[int],
    parts: Sequence[int],
    inputs: Sequence[InputFile],
    names: Sequence[str],
) -> StagedDocuments:
    """The documents of these parts but those that the lists (parts of digests) say to drop.

    `names` are the earlier corpora's.
    """
    details: dict[int, str] = {}
    places = ((key, part) for key in map(drops_key, lists) for part in parts)
    for section in read_sections(staging, places):
        drops = np.frombuffer(section, dtype=REPEAT)
        rows = documents.rows_at(drops["file"], drops["offset"]).tolist()
        texts = (_detail(drop, inputs, names) for drop in drops.tolist())
        details.update(zip(rows, texts, strict=True))
    return documents.without(DUPLICATE, details)


def _detail(
    drop: tuple[int, int, int, int, int], inputs: Sequence[InputFile], names: Sequence[str]
) -> str:
    _, _, file, offset, earlier = drop
    if earlier >= 0:
        return f"equals a document of corpus {names[earlier]}"
    return f"equals {inputs[file].name} at {offset}"
