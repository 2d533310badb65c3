"""Reading YAML files into sections, with errors for the user who wrote the file."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from perennial.config.run import RunSpec
from perennial.errors import InputError
from perennial.fields import (
    Section,
    choice_of,
    is_mapping_of_sections,
    item_choice_of,
    section_in,
)
from perennial.registry import load_plugins

S = TypeVar("S", bound=Section)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the run file at `path` with overrides applied, checked.

    Args:
        path: the run file.
        overrides: `section.key=value`, or YAML files that hold a part of a run file; later
            ones win.

    Raises:
        InputError: names the file, the field, what is wrong and what would be right.
    """
    return load(path, RunSpec, overrides)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Return any YAML file of the project as its schema; see `load_run`.

    A file's key `base` names another file, from the working directory as all paths. It holds the
    values that the file does not set; `null` for a key that cannot be null discards one of them.
    Where a file chooses another `kind` than its base, the base's keys that this kind does not have
    are left out.

    Args:
        path: the file.
        schema: what it must be.
        overrides: see `load_run`.

    Raises:
        InputError: names the file, the field, what is wrong and what would be right.
    """
    # Not at import: a command that reads no run file must not fail because of a broken plug-in.
    load_plugins()
    document = _read_with_base(path, schema)
    document = _apply_overrides(document, schema, overrides)
    return parse(_drop_nulls(document, schema), schema, str(path))


def parse(document: Any, schema: type[S], where: str) -> S:
    """Return a document as its schema.

    Args:
        document: mappings, lists and values, as YAML gives them.
        schema: what it must be.
        where: name of the document in errors.

    Raises:
        InputError: the first thing that is wrong.
    """
    try:
        return schema.model_validate(document)
    except ValidationError as invalid:
        raise _explain(where, schema, document, invalid.errors()) from None


def read_stored_run(document: Mapping[str, Any]) -> RunSpec:
    """Return the resolved run file that a ledger holds, of this version or an earlier one.

    A schedule whose plug-in is not installed is replaced by a stand-in that cannot be trained with.
    """
    return RunSpec.model_validate(document, context={"stored": True})


def override_stored_run(document: Mapping[str, Any], overrides: Sequence[str]) -> RunSpec:
    """Return the run file that a ledger holds, with overrides applied.

    Args:
        document: the resolved run file.
        overrides: as for `load_run`.

    Raises:
        InputError: an override is wrong.
    """
    load_plugins()
    changed = _apply_overrides(copy.deepcopy(dict(document)), RunSpec, overrides)
    try:
        return read_stored_run(changed)
    except ValidationError as invalid:
        raise _explain("command line", RunSpec, changed, invalid.errors()) from None


def _apply_overrides(
    document: dict[str, Any], schema: type[BaseModel], overrides: Sequence[str]
) -> dict[str, Any]:
    """Return the document with each override applied, the later ones over the earlier."""
    for override in overrides:
        _forget_other_kinds(document, schema, override)
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            document = _lay_over(document, _read_with_base(Path(override), schema), schema)
        else:
            _apply(document, override)
    return document


def _read_with_base(
    path: Path, schema: type[BaseModel], above: tuple[Path, ...] = ()
) -> dict[str, Any]:
    document = _read_yaml(path)
    if "base" not in document:
        return document
    base = document.pop("base")
    if not isinstance(base, str):
        raise InputError(
            str(path), "base", f"{base!r} is not a path", "give another file's path",
            code="base-invalid",
        )  # fmt: skip
    if Path(base) in (*above, path):
        raise InputError(
            str(path), "base", f"{base} is based on this file", "remove the circular `base`",
            code="base-circular",
        )  # fmt: skip
    return _lay_over(_read_with_base(Path(base), schema, (*above, path)), document, schema)


def _lay_over(
    base: dict[str, Any], document: dict[str, Any], section: type[BaseModel] | None
) -> dict[str, Any]:
    """Return the base with the document's values in place of its own, section by section."""
    both = dict(base)
    for key, value in document.items():
        before = both.get(key)
        if isinstance(before, dict) and value is None:
            del both[key]
        elif isinstance(before, dict) and isinstance(value, dict):
            info = section.model_fields.get(key) if section else None
            choice = choice_of(info)
            if choice and value.get("kind", before.get("kind")) != before.get("kind"):
                before = _known_keys(before, choice.choose(value))
            both[key] = _lay_over(before, value, _section_of(info, value))
        else:
            both[key] = value
    return both


def _forget_other_kinds(document: dict[str, Any], schema: type[BaseModel], override: str) -> None:
    """Remove the keys of a section that do not belong to the kind that an override chooses."""
    field, _, text = override.partition("=")
    name, _, last = field.rpartition(".")
    choice, before = choice_of(schema.model_fields.get(name)), document.get(name)
    if choice and last == "kind" and isinstance(before, dict) and text != before.get("kind"):
        document[name] = _known_keys(before, choice.choose({"kind": text}))


def _known_keys(values: dict[str, Any], section: type[BaseModel] | None) -> dict[str, Any]:
    if section is None:
        return values
    return {key: value for key, value in values.items() if key in section.model_fields}


def _drop_nulls(document: dict[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Return the document without the nulls of keys that cannot be null.

    They have done their work: the value of the base is discarded.
    """
    kept = {}
    for key, value in document.items():
        info = section.model_fields.get(key)
        if value is None and info is not None and type(None) not in get_args(info.annotation):
            continue
        inner = _section_of(info, value)
        if inner is not None and isinstance(value, dict):
            value = _drop_inner_nulls(value, info, inner)
        kept[key] = value
    return kept


def _drop_inner_nulls(
    value: dict[str, Any], info: FieldInfo | None, section: type[BaseModel]
) -> dict[str, Any]:
    if info is not None and is_mapping_of_sections(info):
        return {
            name: _drop_nulls(item, section) if isinstance(item, dict) else item
            for name, item in value.items()
            if item is not None
        }
    if choice := choice_of(info):
        # A null may discard a key that another kind has; a misspelt key stays, and is refused.
        others = {name for kind in choice.registry for name in choice.registry[kind].model_fields}
        others -= section.model_fields.keys()
        value = {k: v for k, v in value.items() if v is not None or k not in others}
    return _drop_nulls(value, section)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem, remedy = "there is no such file", "give a run file's path"
        raise InputError(str(path), "", problem, remedy, code="file-missing") from None
    except (OSError, UnicodeDecodeError) as broken:
        problem, remedy = f"cannot be read ({broken})", "give a UTF-8 file"
        raise InputError(str(path), "", problem, remedy, code="file-unreadable") from None
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else ""
        problem = getattr(broken, "problem", None) or "not YAML"
        remedy = "write `key: value` lines"
        raise InputError(str(path), line, problem, remedy, code="yaml-invalid") from None
    if not isinstance(document, dict):
        problem, remedy = "is not a mapping of sections", "write `key: value` lines"
        raise InputError(str(path), "", problem, remedy, code="yaml-invalid")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    """Set the field that an override names."""
    field, equals, text = override.partition("=")
    keys = field.split(".")
    if not equals or not all(keys):
        problem, remedy = "is not an override", "write it as section.key=value"
        raise InputError("command line", override, problem, remedy, code="override-invalid")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        problem = f"{text!r} is not YAML"
        raise InputError("command line", field, problem, "quote it", code="yaml-invalid") from None
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            problem = f"{key} is not a section"
            raise InputError(
                "command line", field, problem, "shorten the path", code="override-invalid"
            )
        document = inner
    document[keys[-1]] = value


def _explain(
    where: str, schema: type[BaseModel], document: Any, errors: Sequence[ErrorDetails]
) -> InputError:
    """Return the first error of pydantic in this project's form."""
    paths = [_written_path(error, document) for error in errors]
    # Of a value that may have one of several forms, the form that it is most like is meant.
    alike = [n for n, path in enumerate(paths) if path[: len(paths[0])] == paths[0]]
    best = max(alike, key=lambda n: len(paths[n]))
    error, keys = errors[best], paths[best]
    section, description = _locate(schema, keys, document)
    field, message = ".".join(keys), str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
        known = f"known keys are {', '.join(section.model_fields)}"
        remedy = f"did you mean {close[0]}? {known}" if close else known
        return InputError(where, field, "there is no such key", remedy, code="unknown-key")
    if error["type"] == "missing":
        return InputError(where, field, "is missing", f"give {description}", code="missing-key")
    if error["type"] == "value_error" and not isinstance(error["input"], str):
        problem, _, remedy = message.partition("; ")
        remedy = remedy or f"see the section {field}"
        return InputError(where, field, problem, remedy, code="invalid-section")
    if error["type"] == "value_error":
        return InputError(where, field, message, f"give {description}", code="invalid-value")
    # Of YAML's words, not Python's.
    message = message.replace("valid tuple", "valid list").replace("dictionary", "mapping")
    problem = f"{error['input']!r} is refused ({message[0].lower()}{message[1:]})"
    if error["type"] == "unknown_name":
        remedy = "correct it, or install the package that brings it"
        return InputError(where, field, problem, remedy, code="plugin-missing")
    return InputError(where, field, problem, f"give {description}", code="invalid-value")


def _written_path(error: ErrorDetails, document: Any) -> list[str]:
    """Return the keys that lead to an error, without pydantic's names of the forms of a value."""
    keys: list[str] = []
    *inside, last = error["loc"] or ("",)
    for key in inside:
        is_index = isinstance(key, int) and isinstance(document, Sequence)
        if is_index or (isinstance(document, Mapping) and key in document):
            keys.append(str(key))
            document = document[key]
    is_plain = isinstance(document, str) or not isinstance(document, (Mapping, Sequence))
    is_form = is_plain or ("[" in str(last) and last != "[key]")
    return [*keys, str(last)] if not is_form or not error["loc"] else keys


def _locate(
    schema: type[BaseModel], keys: Sequence[str], document: Any
) -> tuple[type[BaseModel], str]:
    """Return the innermost section on the way to a field, and the field's description."""
    section, description = schema, "a value"
    items = None
    for key in keys:
        if isinstance(document, Sequence) and key.isdecimal():
            document = document[int(key)]
            section = (items.choose(document) if items else None) or section
            continue
        document = document.get(key) if isinstance(document, Mapping) else None
        info = section.model_fields.get(key)
        if info is None:
            continue
        description = " ".join((info.description or key).split())
        items = item_choice_of(info)
        section = _section_of(info, document) or section
    return section, description


def _section_of(info: FieldInfo | None, value: Any) -> type[BaseModel] | None:
    """Return the section class of a field's value, or of the values of its mapping."""
    choice = choice_of(info)
    if choice is not None:
        return choice.choose(value)
    return section_in(info.annotation) if info else None
