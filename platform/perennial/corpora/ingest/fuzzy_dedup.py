"""Fuzzy duplicates among the documents to train: MinHash with locality-sensitive hashing.

1. Reading a document makes 64 minima of its runs of 5 words. Groups of them are its bands (their
   number follows from the similarity asked for), and a byte of each is its sketch.
2. Match: a task takes a range of bands. Documents with an equal band are compared by their sketches
   with the first one in the order of positions; those that are not like it then with the first of
   the rest, and so on, 32 times. Pairs that are alike are written.
3. Cluster: one task joins the pairs. Of documents that a chain of pairs links, the first one stays.

No step depends on how the work is divided. There are as many ranges of bands as shards, and a match
task holds about 2 kB for every document of one (at 0.8, where a document has 12 bands); the cluster
task holds about 100 bytes for every pair that is alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from perennial.corpora.ingest.documents import find_places
from perennial.corpora.ingest.exact_dedup import REPEAT, write_drops
from perennial.corpora.ingest.near_dedup import compute_minhash
from perennial.corpora.ingest.partition import (
    Layout,
    choose_parts,
    group_by_digest,
    make_file_salts,
    make_order_keys,
    splitmix64,
)
from perennial.corpora.ingest.spill import read_sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from perennial.corpora.manifest import InputFile
    from perennial.store import Store

_MINIMA = 64
_RECALL = 0.95  # share of pairs of just the similarity asked for that share a band, at least
_MOST_ROWS = 8
_LEADERS = 32  # documents of one band, at most, that others are compared with
_AT_ONCE = 1 << 16  # pairs of sketches
_BAND = np.dtype([("key", "<u8"), ("file", "<i4"), ("offset", "<i8"), ("sketch", "u1", (_MINIMA,))])
_PLACE = np.dtype([("file", "<i4"), ("offset", "<i8")])
_PAIR = np.dtype(
    [("file", "<i4"), ("offset", "<i8"), ("first_file", "<i4"), ("first_offset", "<i8")]
)
DROPS_KEY = "fuzzy/drops"
"""key, below the staging folder, of the documents to drop"""


class MatchResult(BaseModel):
    """Summary of what one match task found; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pairs: int
    partly_compared: int
    """entries that were not compared with all that share their band"""


class ClusterResult(BaseModel):
    """Summary of the clusters; also the completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    """documents to drop"""
    partly_compared: int
    """documents that stay and were not compared with all that share a band with them"""


@dataclass(frozen=True)
class FuzzyJob:
    """Inputs of all tasks that look for fuzzy duplicates."""

    staging: Store
    places: tuple[str, ...]
    """keys of all run files"""
    inputs: tuple[InputFile, ...]
    layout: Layout
    seed: int
    similarity: float


def choose_band_rows(similarity: float) -> int:
    """Return how many minima make a band, so that pairs of that similarity share one.

    More of them leave fewer pairs to compare. At 0.8 it is 5, for 12 bands: they miss one pair of
    0.8 in 120, and one of 0.9 in 50,000.
    """
    for rows in range(_MOST_ROWS, 1, -1):
        if 1 - (1 - similarity**rows) ** (_MINIMA // rows) >= _RECALL:
            return rows
    return 1


def bands_bytes(similarity: float) -> int:
    """Return the bytes of the bands of a document."""
    return _BAND.itemsize * (_MINIMA // choose_band_rows(similarity))


def encode_bands(
    layout: Layout,
    texts: Sequence[bytes],
    files: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    similarity: float,
) -> Iterator[bytes]:
    """Yield the sections of the documents' bands, one for every part of the layout.

    Args:
        layout: bands are dealt into as many parts as there are shards.
        texts: the documents, as UTF-8; those of fewer than 5 words have no bands.
        files: numbers of their files `(documents,)`.
        offsets: offsets in these `(documents,)`.
        similarity: the similarity from which on documents are alike.
    """
    made = [(row, compute_minhash(text, _MINIMA)) for row, text in enumerate(texts)]
    rows = np.array([row for row, minima in made if minima is not None], dtype=np.int64)
    minima = np.array([m for _, m in made if m is not None], dtype=np.uint32)
    minima = minima.reshape(len(rows), _MINIMA)
    size = choose_band_rows(similarity)
    bands = _MINIMA // size
    entries = np.empty((len(rows), bands), dtype=_BAND)
    for band in range(bands):
        key = np.full(len(rows), band + 1, dtype=np.uint64)
        for place in range(band * size, (band + 1) * size):
            key = splitmix64(key + minima[:, place])
        entries["key"][:, band] = key
    entries["file"], entries["offset"] = files[rows, None], offsets[rows, None]
    # The low bits of a minimum are as good as random, other than its high ones.
    entries["sketch"] = minima.astype(np.uint8)[:, None]
    flat = entries.reshape(-1)
    for chosen in group_by_digest(flat["key"], layout.shards):
        yield flat[chosen].tobytes()


def match_bands(job: FuzzyJob, part: int) -> MatchResult:
    """Find the pairs of a part of the bands, unless its marker says that it was done.

    Args:
        job: what all tasks share.
        part: the number of the part.
    """
    marker = f"fuzzy/{part:05d}.json"
    try:
        return MatchResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    section = job.layout.bands_section(part)
    sections = read_sections(job.staging, ((key, section) for key in job.places))
    read = [np.frombuffer(data, dtype=_BAND) for data in sections]
    pairs, left = find_pairs(np.concatenate([np.empty(0, dtype=_BAND), *read]), job.similarity)
    job.staging.write(_pairs_key(part), pairs.tobytes())
    job.staging.write(_left_key(part), left.tobytes())
    result = MatchResult(pairs=len(pairs), partly_compared=len(left))
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def find_pairs(
    entries: npt.NDArray[Any], similarity: float
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the pairs of documents that are alike, and the places of what was left uncompared.

    Both may be there several times.

    Args:
        entries: bands of documents, in any order.
        similarity: share of equal minima from which on documents are alike.
    """
    entries = entries[np.lexsort((entries["offset"], entries["file"], entries["key"]))]
    keys, least = entries["key"], int(np.ceil(similarity * _MINIMA))
    pairs = [np.empty(0, dtype=_PAIR)]
    rows = _with_company(np.arange(len(entries)), keys)
    for _ in range(_LEADERS):
        if not len(rows):
            break
        begins = np.flatnonzero(_begins(keys[rows]))
        leaders = np.repeat(rows[begins], np.diff([*begins, len(rows)]))
        alike = _count_equal(entries["sketch"], rows, leaders) >= least
        others = rows != leaders
        similar = alike & others
        some = np.empty(int(similar.sum()), dtype=_PAIR)
        for name in ("file", "offset"):
            some[name] = entries[name][rows[similar]]
            some[f"first_{name}"] = entries[name][leaders[similar]]
        pairs.append(some)
        rows = _with_company(rows[~alike & others], keys)
    left = np.empty(len(rows), dtype=_PLACE)
    left["file"], left["offset"] = entries["file"][rows], entries["offset"][rows]
    return np.concatenate(pairs), left


def _begins(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which of sorted keys are the first ones of their value."""
    return np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]


def _with_company(
    rows: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int64]:
    """Return those of sorted rows whose key another one has."""
    first = _begins(keys[rows])
    last = np.concatenate([first[1:], [True]])[: len(rows)]
    return np.asarray(rows[~(first & last)])


def _count_equal(
    sketches: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], others: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return how many minima two sketches share `(pairs,)`."""
    counts = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        counts.append((sketches[rows[part]] == sketches[others[part]]).sum(axis=1))
    return np.concatenate(counts)


def cluster_documents(job: FuzzyJob) -> ClusterResult:
    """Join all pairs, and list the documents to drop, unless that was done.

    Args:
        job: what all tasks share.
    """
    marker = "fuzzy/clusters.json"
    try:
        return ClusterResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    parts = range(job.layout.shards)
    pairs = [np.frombuffer(job.staging.read(_pairs_key(part)), dtype=_PAIR) for part in parts]
    left = [np.frombuffer(job.staging.read(_left_key(part)), dtype=_PLACE) for part in parts]
    drops = choose_drops(np.concatenate(pairs))
    salts = make_file_salts([file.name for file in job.inputs], job.seed)
    orders = make_order_keys(salts[drops["file"]], drops["offset"])
    with job.staging.open(DROPS_KEY, "wb") as stream:
        write_drops(stream, job.layout, drops, choose_parts(orders, job.layout.shards))
    places = np.concatenate(left)
    _, first = _number_places(places["file"], places["offset"])
    places = places[first]
    rows = find_places(drops["file"], drops["offset"], places["file"], places["offset"])
    result = ClusterResult(documents=len(drops), partly_compared=int((rows < 0).sum()))
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def choose_drops(pairs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the documents to drop (`REPEAT`): of every cluster all but its first one.

    Args:
        pairs: documents that are alike, in any order and any number of times.
    """
    files = np.concatenate([pairs["file"], pairs["first_file"]])
    offsets = np.concatenate([pairs["offset"], pairs["first_offset"]])
    numbers, places = _number_places(files, offsets)
    later, first = np.split(numbers, 2)
    labels = np.arange(len(places))
    while True:
        lowest = np.minimum(labels[later], labels[first])
        before = labels.copy()
        np.minimum.at(labels, later, lowest)
        np.minimum.at(labels, first, lowest)
        labels = labels[labels]  # halves the length of every chain
        if np.array_equal(labels, before):
            break
    dropped = np.flatnonzero(labels != np.arange(len(places)))
    drops = np.empty(len(dropped), dtype=REPEAT)
    for name, values in (("file", files), ("offset", offsets)):
        drops[name], drops[f"first_{name}"] = (
            values[places[dropped]],
            values[places[labels[dropped]]],
        )
    drops["earlier"] = -1
    return drops


def _number_places(
    files: npt.NDArray[Any], offsets: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the number of every place `(places,)`, and a row for every number `(numbers,)`.

    Equal places have one number; numbers are in the order of positions.
    """
    order = np.lexsort((offsets, files))
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.diff(files[order]) | np.diff(offsets[order])
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(begins) - 1
    return numbers, order[begins]


def read_dropped(staging: Store, layout: Layout) -> Iterator[npt.NDArray[Any]]:
    """Yield the documents to drop (`REPEAT`), in parts."""
    for section in read_sections(staging, ((DROPS_KEY, part) for part in range(layout.parts))):
        yield np.frombuffer(section, dtype=REPEAT)


def _pairs_key(part: int) -> str:
    return f"fuzzy/{part:05d}.pairs"


def _left_key(part: int) -> str:
    return f"fuzzy/{part:05d}.left"
