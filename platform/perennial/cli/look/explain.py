"""`perennial explain`: one field of a file, from the source of its reference."""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.config.explain import FieldHelp

_WIDTH = 88
_KIND = re.compile(r" of (kind [\w-]+)")


def explain(
    field: Annotated[
        str,
        typer.Argument(
            metavar="FIELD", help="Such as training.zero_stage, a section, or a key alone"
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Explain a field of a run, tuning or study file: type, default, meaning, an example."""
    from perennial.config.explain import explain as explain_field

    fields = explain_field(field)
    if as_json:
        print_json({"fields": [known.to_dict() for known in fields]})
        return
    for number, known in enumerate(fields):
        if number:
            out.print()
        _print_field(known)


def _print_field(field: FieldHelp) -> None:
    # The kind is none of the words that a file has.
    kind = _KIND.search(field.name)
    where = f"{field.file}, {kind[1]}" if kind else field.file
    out.print(f"{_KIND.sub('', field.name)}  ({where})", style="bold", markup=False)
    rows = [
        ("type", "" if field.keys else field.type),
        ("default", field.default),
        ("change", field.change),
        ("meaning", field.meaning),
        ("example", field.example),
    ]
    for label, text in rows:
        for line_number, line in enumerate(wrap(text, _WIDTH - 10, break_on_hyphens=False)):
            out.print(f"  {label if not line_number else '':8} {line}", markup=False)
    width = max(map(len, field.keys), default=0)
    for key, text in field.keys.items():
        lines = wrap(text, _WIDTH - width - 4, break_on_hyphens=False) or [""]
        for line_number, line in enumerate(lines):
            out.print(f"  {key if not line_number else '':{width}}  {line}", markup=False)
