"""A file format: a CSV file with a header, a document in each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import ClassVar

from perennial.corpora import IngestSettings
from perennial.corpora.formats.base import MISSING_TEXT, FileFormat, FilePart, Record, make_record


class CsvFormat(FileFormat):
    """The column named `text_field` holds the text; an offset is a row's number."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv",)

    def read(self, part: FilePart, settings: IngestSettings) -> Iterator[Record]:
        """Yield the records of the whole file; it is not splittable."""
        # Bytes that are not UTF-8 become surrogates, which make_record refuses for their row alone.
        lines = io.TextIOWrapper(part.stream, "utf-8", "surrogateescape", newline="")
        for number, row in enumerate(csv.DictReader(lines)):
            if settings.text_field in row:
                yield make_record(number, row[settings.text_field], None, settings)
            else:
                detail = f"no column {settings.text_field!r}"
                yield Record(number, reason=MISSING_TEXT, detail=detail)
