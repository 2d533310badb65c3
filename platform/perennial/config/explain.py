"""One field of a file explained: its type, default, meaning and an example, as in the reference."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from perennial.config.examples import show_example
from perennial.config.json_schema import describe_type, property_schemas
from perennial.config.reference import FieldTable, describe_default, field_tables, meaning_of
from perennial.config.run import RunSpec
from perennial.config.search import TuningSpec
from perennial.config.study import StudySpec
from perennial.errors import InputError
from perennial.fields import Section, change_of

_FILES: dict[str, type[Section]] = {
    "run file": RunSpec,
    "tuning file": TuningSpec,
    "study file": StudySpec,
}
_KIND = re.compile(r" of kind [\w-]+")
_NEAR = 5


@dataclass(frozen=True)
class FieldHelp:
    """A field, or a section of fields.

    Attributes:
        name: dotted; NAME stands for a name that the user chooses.
        file: the kind of file that has it.
        type: what it may be, with its choices and bounds; "section" for a section.
        default: as a file would have it; "required" for none, "" for a section.
        change: when it may change once a run has begun; "" where the file does not say.
        meaning: its documentation.
        example: a line of a file that gives it a value.
        keys: fields of a section, with the first sentence of each.
    """

    name: str
    file: str
    type: str
    default: str
    change: str
    meaning: str
    example: str
    keys: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return asdict(self)


def explain(field: str) -> list[FieldHelp]:
    """Return the fields that a name may stand for; one of a run file before those of other files.

    Args:
        field: a dotted name, such as `training.zero_stage` or `stages.corpora.french.budget`; a
            section; or a key alone.

    Raises:
        InputError: there is none; names those like it.
    """
    everything = _all_fields()
    is_key = "." not in field
    matches = [
        known
        for known in everything
        if _names(field, known.name) or (is_key and known.name.endswith(f".{field}"))
    ]
    if matches:
        return matches
    names = list(dict.fromkeys(_plain(known.name) for known in everything))
    last = {name.rpartition(".")[2]: name for name in reversed(names)}
    near = difflib.get_close_matches(field, names, n=_NEAR, cutoff=0.7)
    near += [
        last[key] for key in difflib.get_close_matches(field.rpartition(".")[2], last, n=_NEAR)
    ]
    close = ", ".join(list(dict.fromkeys(near))[:_NEAR])
    raise InputError(
        "explain", field, "there is no such field",
        f"did you mean {close}?" if close else "name one as training.zero_stage is",
        code="field-unknown",
    )  # fmt: skip


def _plain(name: str) -> str:
    """Return a field's name as a file has it, without the kind of its section."""
    return _KIND.sub("", name)


def _names(asked: str, known: str) -> bool:
    """Return whether what was asked for is a field, with any name in the place of NAME."""
    pattern = re.escape(_plain(known)).replace("NAME", r"[^.]+")
    return re.fullmatch(pattern, asked) is not None or asked == known


@cache
def _all_fields() -> tuple[FieldHelp, ...]:
    return tuple(
        field
        for file, schema in _FILES.items()
        for table in field_tables("", "", schema, plugins=True)
        for field in _of_table(file, table)
    )


def _of_table(file: str, table: FieldTable) -> Iterator[FieldHelp]:
    """Yield a section, and its fields that are no sections themselves."""
    section = table.section
    if table.name:
        text = " ".join((section.__doc__ or "").split())
        keys = {key: _first_sentence(section, key) for key in section.model_fields}
        meaning = f"{text} Here: {table.meaning}." if table.meaning else text
        yield FieldHelp(table.name, file, "section", "", "", _plainly(meaning), "", keys)
    for key in table.keys:
        info = section.model_fields[key]
        change = table.change or change_of(info)
        yield FieldHelp(
            name=f"{table.name}.{key}".removeprefix("."),
            file=file,
            type=_plainly(describe_type(property_schemas(section)[key])),
            default=_plainly(describe_default(section, info, key)),
            change=str(change) if change and file == "run file" else "",
            meaning=_plainly(meaning_of(info)),
            example=show_example(section, key),
            keys={},
        )


def _first_sentence(section: Any, key: str) -> str:
    return _plainly(meaning_of(section.model_fields[key])).split(". ")[0]


def _plainly(text: str) -> str:
    """Return a text of the reference without Markdown."""
    return text.replace("`", "").replace("&lt;", "<")
