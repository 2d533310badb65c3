"""The reference pages of the run, tuning and study files, and their schemas for editors.

`python -m perennial.config.reference` writes all of them (`make docs`); a test keeps them current.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perennial.config.changes import default_of
from perennial.config.json_schema import describe_type, file_schema, property_schemas
from perennial.config.run import RunSpec
from perennial.config.search import TuningSpec
from perennial.config.study import StudySpec
from perennial.fields import (
    ByKind,
    Changeable,
    Section,
    change_of,
    choice_of,
    is_mapping_of_sections,
    item_choice_of,
    section_in,
)

_SCHEMAS = Path("platform/perennial/config")
_PAGES = Path("docs/reference")
_NOTE = "<!-- Written by `make docs` from the schema in platform/perennial. Do not edit. -->"

_RUN_INTRODUCTION = """\
A run file is YAML: one trunk, its corpora, and everything that decides its result. A key that is
not listed here is an error. Every key can be overridden on the command line, as
`section.key=value`, or by a YAML file that holds a part of a run file.

- **base**: a file's key `base` names another file that holds the values which the file does not
  set. `null` for a key that cannot be null discards one of them. A file that chooses another
  schedule `kind` keeps those keys of its base that this kind has.
- **paths**: a relative path is from the folder of the file that names it, and one in
  `section.key=value` from the working directory. Variables such as `$HOME` are not expanded and are
  refused.
- **amount**: a number with its unit, `2%`, `500 steps` or `4M tokens` (k, M, B, T).
- **change**: when the value may change once the run has begun. *pinned*: never; a changed file is
  refused (`run-changed`). *join*: at any time; a stage, a release or a corpus that was begun keeps
  what it began with, and the next one takes the new value. *join, held*: as *join*, but refused
  while a stage, a release or a trial that would go on under it is unfinished
  (`unfinished-under-other-settings`). *free*: at any time, from then on. See
  [changing a run file](../guide/run-and-watch.md#change-the-run-file).
- **duration**: `90s`, `10m`, `6h` or `7d`. **size**: `500 kB`, `10 MB`, `8 MiB` or `2 GB`.
- **editors**: the schema is in the package, `perennial/config/run-file.schema.json`. With the YAML
  language server, the first line of a file names it:
  `# yaml-language-server: $schema=PATH/run-file.schema.json`.
"""
_TUNING_INTRODUCTION = """\
A tuning file is YAML: a search for the settings of the next stage, or with the section `inheritune`
for the layers of a smaller model, for `perennial tune`. `base`, amounts and overrides are as in the
[run file](run-file.md); its schema for editors is `perennial/config/tuning-file.schema.json`.
"""
_STUDY_INTRODUCTION = """\
A study file is YAML: arms that differ from one base run file, seeds, and claims that the results
decide, for `perennial study`. Amounts and overrides are as in the [run file](run-file.md); its
schema for editors is `perennial/config/study-file.schema.json`.
"""


def write_references(root: Path) -> None:
    """Write the pages and schemas into the source tree at `root`."""
    for path, text in reference_files().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def reference_files() -> dict[Path, str]:
    """Return the texts of the generated files by their paths in the source tree."""
    run, tuning, study = (
        file_schema(RunSpec, "Perennial run file"),
        file_schema(TuningSpec, "Perennial tuning file"),
        file_schema(StudySpec, "Perennial study file"),
    )
    return {
        _PAGES / "run-file.md": _page("The run file", _RUN_INTRODUCTION, RunSpec),
        _PAGES / "tuning-file.md": _page("The tuning file", _TUNING_INTRODUCTION, TuningSpec),
        _PAGES / "study-file.md": _page("The study file", _STUDY_INTRODUCTION, StudySpec),
        _SCHEMAS / "run-file.schema.json": json.dumps(run, indent=1) + "\n",
        _SCHEMAS / "tuning-file.schema.json": json.dumps(tuning, indent=1) + "\n",
        _SCHEMAS / "study-file.schema.json": json.dumps(study, indent=1) + "\n",
    }


def documented_keys(schema: type[Section]) -> list[str]:
    """Return the dotted name of every leaf key of a file, as its page shows it."""
    tables = field_tables("", "", schema)
    return [f"{table.name}.{key}".removeprefix(".") for table in tables for key in table.keys]


def documented_sections(schema: type[Section]) -> list[type[BaseModel]]:
    """Return every section of a file, those of each kind too, in the order of its page."""
    return [table.section for table in field_tables("", "", schema)]


def _page(title: str, introduction: str, schema: type[Section]) -> str:
    lines = [f"# {title}", "", _NOTE, "", introduction]
    changes = schema is RunSpec
    columns = ["key", "value", "default", *(["change"] if changes else []), "meaning"]
    for table in field_tables("", "", schema):
        if table.name:
            level = "###" if "." in table.name else "##"
            lines += [f"{level} {table.name}", "", *_introduction(table.section), ""]
        if table.meaning:
            lines += [*wrap(f"Here: {table.meaning}.", 100, break_on_hyphens=False), ""]
        if table.keys:
            lines += [_cells(columns), _cells(["---"] * len(columns))]
            lines += [_row(table, key, changes) for key in table.keys]
            lines += [""]
    return "\n".join(lines).rstrip() + "\n"


@dataclass(frozen=True)
class FieldTable:
    """A section as its page shows it.

    name: dotted name of the section; "" for the whole file.
    meaning: documentation of the key that holds it.
    keys: those of its keys that are no sections themselves.
    change: when any of its keys may change; None where each says so itself.
    """

    name: str
    meaning: str
    section: type[BaseModel]
    keys: list[str]
    change: Changeable | None


def field_tables(
    name: str,
    meaning: str,
    section: type[BaseModel],
    change: Changeable | None = None,
    plugins: bool = False,
) -> Iterator[FieldTable]:
    """Yield a section and those in it, in the order of the file.

    Args:
        name: dotted name of the section; "" for a whole file.
        meaning: documentation of the key that holds it.
        section: its class.
        change: when any of its keys may change; None where each says so itself.
        plugins: whether sections that installed packages bring are among them.
    """
    fields = section.model_fields
    inner = {key: _inner(info, plugins) for key, info in fields.items()}
    yield FieldTable(name, meaning, section, [key for key in fields if not inner[key]], change)
    for key, sections in inner.items():
        for suffix, inner_section in sections.items():
            inner_name = f"{name}.{key}".removeprefix(".") + suffix
            own = change or change_of(fields[key])
            inside = meaning_of(fields[key])
            yield from field_tables(inner_name, inside, inner_section, own, plugins)


def _inner(info: FieldInfo, plugins: bool) -> Mapping[str, type[BaseModel]]:
    """Return the sections that a field may hold, by what follows its name in a heading."""
    choice = choice_of(info) or item_choice_of(info)
    if choice is not None:
        return {f" of kind {kind}": choice.registry[kind] for kind in _kinds(choice, plugins)}
    section = section_in(info.annotation)
    if section is None:
        return {}
    return {".NAME" if is_mapping_of_sections(info) else "": section}


def _kinds(choice: ByKind, plugins: bool) -> list[str]:
    """Return the built-in kinds, or all, the default first."""
    if plugins:
        choice.registry.load_plugins()
    own = choice.registry.provider
    kinds = [kind for kind in choice.registry if plugins or own(kind) == "perennial"]
    return sorted(kinds, key=lambda kind: kind != choice.default)


def _introduction(section: type[BaseModel]) -> list[str]:
    return [line.strip() for line in (section.__doc__ or "").strip().splitlines()]


def meaning_of(info: FieldInfo) -> str:
    """Return the documentation of a field on one line, for a cell of a table."""
    text = " ".join((info.description or "").split())
    return text.replace("<", "&lt;")


def _row(table: FieldTable, key: str, changes: bool) -> str:
    section = table.section
    info = section.model_fields[key]
    kind = describe_type(property_schemas(section)[key])
    change = [str(table.change or change_of(info))] if changes else []
    return _cells(
        [f"`{key}`", kind, describe_default(section, info, key), *change, meaning_of(info)]
    )


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def describe_default(section: type[BaseModel], info: FieldInfo, key: str) -> str:
    """Return the default of a field as a file would hold it, in Markdown."""
    if info.is_required():
        return "required"
    # As a file would hold it: an amount as its text, a duration in its largest unit.
    shown = default_of(section, key)
    if shown is None:
        return "none"
    if shown in ("", [], {}):
        return "empty"
    return f"`{json.dumps(shown) if not isinstance(shown, str) else shown}`"


if __name__ == "__main__":
    write_references(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
