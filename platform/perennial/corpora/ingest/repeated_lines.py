"""Lines that occurred before in a corpus are cut out of the documents to train.

This is the exact form of what Lee et al. 2021 (arXiv 2107.06499) do with a suffix array, bounded to
whole lines as in CCNet (Wenzek et al. 2019, arXiv 1911.00359): a repeated text is found where it
fills a line, or several, and not where it begins or ends inside of one.

A task takes one range of the lines' digests and holds 28 bytes for every line of it. Lines are
compared without the white space around them, by 64 bits of a digest. In the order of positions
(file, offset, line) the first occurrence stays, of those in documents that are trained: held-out
documents and fuzzy duplicates neither keep a line nor lose one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from perennial.corpora.counts import REPEATED_LINES, Counts
from perennial.corpora.ingest.documents import find_places
from perennial.corpora.ingest.fuzzy_dedup import read_dropped
from perennial.corpora.ingest.partition import (
    Layout,
    choose_parts,
    group_by_digest,
    group_rows,
    make_file_salts,
    make_order_keys,
)
from perennial.corpora.ingest.spill import SectionFile, read_sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from perennial.corpora.ingest.documents import StagedDocuments
    from perennial.corpora.manifest import InputFile
    from perennial.store import Store

_LINE = np.dtype(
    [("key", "<u8"), ("file", "<i4"), ("offset", "<i8"), ("start", "<u4"), ("size", "<u4")]
)
_CUT = np.dtype([("file", "<i4"), ("offset", "<i8"), ("start", "<u4"), ("size", "<u4")])
_BLANK = b" \t\r\n\f\v"


class LinesResult(BaseModel):
    """Summary of what one task found; also its completion marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lines: int
    """repeated ones"""


@dataclass(frozen=True)
class LinesJob:
    """Inputs of all tasks that look for repeated lines; a task gets the number of its part."""

    staging: Store
    places: tuple[str, ...]
    """keys of all run files"""
    inputs: tuple[InputFile, ...]
    layout: Layout
    seed: int
    without_fuzzy: bool
    """whether documents were dropped as fuzzy duplicates"""


def encode_lines(
    layout: Layout,
    texts: Sequence[bytes],
    files: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    characters: int,
) -> Iterator[bytes]:
    """Yield the sections of the documents' lines, one for every part of the layout.

    Args:
        layout: lines are dealt into as many parts as digests.
        texts: the documents, as UTF-8.
        files: numbers of their files `(documents,)`.
        offsets: offsets in these `(documents,)`.
        characters: fewest characters of a line that is looked for.
    """
    keys: list[bytes] = []
    where: list[tuple[int, int, int]] = []
    for row, text in enumerate(texts):
        start = 0
        for line in text.splitlines(keepends=True):
            size = len(line)
            if size >= characters:
                kept = line.strip(_BLANK)
                # In UTF-8 a text has at most as many characters as bytes.
                if len(kept) >= characters and len(str(kept, "utf-8")) >= characters:
                    keys.append(hashlib.blake2b(kept, digest_size=8).digest())
                    where.append((row, start, size))
            start += size
    entries = np.empty(len(keys), dtype=_LINE)
    entries["key"] = np.frombuffer(b"".join(keys), dtype="<u8")
    rows, entries["start"], entries["size"] = np.array(where, dtype=np.int64).reshape(-1, 3).T
    entries["file"], entries["offset"] = files[rows], offsets[rows]
    for chosen in group_by_digest(entries["key"], layout.digest_parts):
        yield entries[chosen].tobytes()


def find_repeated_lines(job: LinesJob, part: int) -> LinesResult:
    """List the repeated lines of a part of the digests, unless its marker says that it was done.

    Args:
        job: what all tasks share.
        part: the number of the part.
    """
    marker = f"lines/{part:05d}.json"
    try:
        return LinesResult.model_validate_json(job.staging.read(marker))
    except FileNotFoundError:
        pass
    section = job.layout.lines_section(part)
    sections = read_sections(job.staging, ((key, section) for key in job.places))
    read = [np.frombuffer(data, dtype=_LINE) for data in sections]
    entries = np.concatenate([np.empty(0, dtype=_LINE), *read])
    if job.without_fuzzy:
        entries = _without(entries, job)
    names = ("start", "offset", "file", "key")
    entries = entries[np.lexsort([entries[name] for name in names])]
    repeated = entries[1:][entries["key"][1:] == entries["key"][:-1]]
    salts = make_file_salts([file.name for file in job.inputs], job.seed)
    orders = make_order_keys(salts[repeated["file"]], repeated["offset"])
    cuts = np.empty(len(repeated), dtype=_CUT)
    for name in _CUT.names or ():
        cuts[name] = repeated[name]
    with job.staging.open(_cuts_key(part), "wb") as stream:
        file = SectionFile(stream, job.layout.shards)
        for rows in group_rows(choose_parts(orders, job.layout.shards), job.layout.shards):
            file.add(cuts[rows].tobytes())
        file.close()
    result = LinesResult(lines=len(repeated))
    job.staging.write(marker, result.model_dump_json().encode())
    return result


def _without(entries: npt.NDArray[Any], job: LinesJob) -> npt.NDArray[Any]:
    """Return the lines but those of documents that are dropped as fuzzy duplicates."""
    for drops in read_dropped(job.staging, job.layout):
        places = (drops["file"], drops["offset"], entries["file"], entries["offset"])
        entries = entries[find_places(*places) < 0]
    return entries


def cut_lines(
    documents: StagedDocuments, staging: Store, lists: int, dealt: range
) -> tuple[StagedDocuments, Counts]:
    """Return documents without their repeated lines, and what was cut.

    Documents of which nothing is left are recorded as removed.

    Args:
        documents: all that are trained of those dealt to `dealt`; of those of one domain, in a
            corpus of parts.
        staging: the store of staged files.
        lists: number of the lists of lines.
        dealt: numbers that they were dealt to.
    """
    places = ((_cuts_key(part), dealt) for part in range(lists))
    read = [np.frombuffer(data, dtype=_CUT) for data in read_sections(staging, places)]
    cuts = np.concatenate([np.empty(0, dtype=_CUT), *read])
    cuts = cuts[np.lexsort((cuts["start"], cuts["offset"], cuts["file"]))]
    rows = documents.find_rows(cuts["file"], cuts["offset"])
    cuts, rows = cuts[rows >= 0], rows[rows >= 0]
    texts, bounds = documents.texts(), [*np.flatnonzero(np.diff(rows, prepend=-1)), len(rows)]
    left: dict[int, bytes] = {}
    empty: dict[int, str] = {}
    for begin, end in pairwise(map(int, bounds)):
        row, mine = int(rows[begin]), cuts[begin:end]
        text = _cut(texts[row], mine["start"].tolist(), mine["size"].tolist())
        if text.strip(_BLANK):
            left[row] = text
        else:
            empty[row] = f"{end - begin} lines, all of which occurred before"
    sizes = documents.sizes
    cut_bytes = sum(int(sizes[row]) - len(text) for row, text in left.items())
    documents = documents.with_texts(left).without(REPEATED_LINES, empty)
    return documents, Counts(repeated_line_documents=len(left), repeated_line_bytes=cut_bytes)


def _cut(text: memoryview, starts: list[int], sizes: list[int]) -> bytes:
    kept, place = [], 0
    for start, size in zip(starts, sizes, strict=True):
        kept.append(text[place:start])
        place = start + size
    # What ended with a newline before the last line that is cut still ends with one.
    return b"".join([*kept, text[place:]]).rstrip(b"\r\n")


def _cuts_key(part: int) -> str:
    return f"lines/{part:05d}.cuts"
