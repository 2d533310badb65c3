"""The reference page of file formats, from their classes.

`python -m perennial.corpora.formats.reference` writes it (`make docs`); a test keeps it current.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from perennial.corpora.formats.base import FORMATS, FileFormat
from perennial.corpora.formats.compression import COMPRESSIONS

PAGE = Path("docs/reference/formats.md")
_NOTE = "<!-- Written by `make docs` from the classes in platform/perennial. Do not edit. -->"
_INTRODUCTION = """\
The files that a corpus may hold, by the ends of their names. Text is UTF-8. `text_field`,
`domain_field`, `txt_documents` and `max_document` are in the [run file](run-file.md), for all
corpora or [for one](run-file.md#corporareadname); a field `a.b` is the field of that very name,
else the field `b` of what the field `a` holds. What is no document is set aside with a reason; see
[quarantine](../guide/land-data.md#quarantine) for all reasons, and for the share of bad documents
from which on a corpus is refused. [Another format](../extending.md#a-file-format) is one class.
"""


def format_page() -> str:
    """Return the page of the built-in formats."""
    names = [key for key in FORMATS if FORMATS.provider(key) == "perennial"]
    forms = sorted((FORMATS[key] for key in names), key=lambda form: form.suffixes)
    columns = ["files", "one document", "offset", "parts", "limit", "a bad file gives"]
    lines = ["# File formats", "", _NOTE, "", _INTRODUCTION, _row(columns)]
    lines += [_row(["---"] * len(columns)), *map(_summary, forms), ""]
    packed = ", ".join(f"`{suffix}`" for suffix in COMPRESSIONS)
    lines += [f"*parts*: whether several tasks read one plain file. Compressions: {packed}.", ""]
    for form in forms:
        lines += [f"## {_names(form)}", "", *_details(form), ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(form: type[FileFormat]) -> str:
    notes, names = form.notes, _names(form)
    files = f"{names}, also compressed" if form.compressible else f"{names}, not compressed"
    parts = "yes" if form.splittable else "no"
    return _row([files, notes.document, notes.offset, parts, notes.limit, notes.damage])


def _details(form: type[FileFormat]) -> Iterator[str]:
    yield from (inspect.getdoc(form) or "").splitlines()
    if form.holds_ids and form.holds_text:
        yield ""
        yield "Documents may be token ids: lists of integers in the field that `tokens` names."
    if form.companions:
        beside = ", ".join(f"`{name}`" for name in form.companions)
        yield ""
        yield "Files beside such files that are ignored:"
        yield f"{beside}."


def _names(form: type[FileFormat]) -> str:
    return ", ".join(f"`{suffix}`" for suffix in form.suffixes)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    (Path(sys.argv[1] if len(sys.argv) > 1 else ".") / PAGE).write_text(
        format_page(), encoding="utf-8"
    )
