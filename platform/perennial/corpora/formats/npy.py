"""NumPy files of token ids, with a header or without."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from perennial.corpora.formats.base import (
    FORMATS,
    UNREADABLE,
    FileFormat,
    FilePart,
    FormatNotes,
    Record,
)
from perennial.corpora.formats.id_stream import IdStream, read_headless, read_stream

if TYPE_CHECKING:
    from perennial.corpora.manifest import IngestSettings

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 1 << 16
"""longest header that is read"""


@FORMATS.register("npy")
class NpyFormat(FileFormat):
    """`.npy`: one array of token ids, each document ended by the end-of-document id.

    A file without NumPy's header, as OLMo's tools write it, holds ids of the declared `dtype`. An
    array of objects is not read: it would have to be unpickled.
    """

    suffixes = (".npy",)
    splittable = True
    compressible = False
    holds_text = False
    holds_ids = True
    expansion = 2
    notes = FormatNotes(
        document="the ids up to the end-of-document id",
        offset="the number of its first id",
        limit="a document of `max_document`, at 4 bytes an id, and a chunk of 512 Ki ids",
        damage=(
            "`unreadable` for a header that is none, an array of several dimensions, of anything "
            "but integers or of fewer ids than its header states, and for what follows the last "
            "whole id; without a header also for a file of which every second id is 0: its ids are "
            "wider"
        ),
    )

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the documents that begin in the part; see `FileFormat.read`."""
        try:
            ids = _find_ids(part)
        except ValueError as error:
            if part.start == 0:
                detail = str(error)[:200]
                yield Record(0, reason=UNREADABLE, detail=detail, lost_bytes=part.size_bytes)
            return
        if ids is None:
            yield from read_headless(part, settings)
        else:
            yield from read_stream(part, ids, settings)


def _find_ids(part: FilePart) -> IdStream | None:
    """Return where the ids are; None for a file without a header.

    Raises ValueError for a header that does not describe any.
    """
    part.stream.seek(0)
    head = io.BytesIO(part.stream.read(_HEADER_BYTES))
    if not head.getvalue().startswith(_MAGIC):
        return None
    version = np.lib.format.read_magic(head)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"a header of version {version}; write it again with numpy.save")
    shape, _, dtype = read(head)
    if dtype.kind not in "iu":
        raise ValueError(f"an array of {dtype}; ids are integers")
    if len(shape) != 1:
        raise ValueError(f"an array of {len(shape)} dimensions; write it flat, with one")
    if not 0 <= shape[0] < 1 << 63:
        raise ValueError(f"a header that states {shape[0]} ids")
    held = (part.size_bytes - head.tell()) // dtype.itemsize
    if held < shape[0]:
        # As a whole: a part of it that is another task's is not read without the rest either.
        raise ValueError(f"{held} ids of the {shape[0]} that its header states")
    return IdStream(dtype, head.tell(), shape[0])
