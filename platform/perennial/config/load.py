"""Reading YAML files into sections, with errors for the user who wrote the file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from perennial.config.mistakes import explain, section_at
from perennial.config.paths import place_path, place_paths
from perennial.config.run import RunSpec
from perennial.config.yaml_reader import parse_yaml, read_yaml
from perennial.errors import InputError
from perennial.fields import IsPath, Section, choice_of, is_mapping_of_sections
from perennial.registry import load_plugins

S = TypeVar("S", bound=Section)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Return the run file at `path` with overrides applied, checked.

    Args:
        path: the run file.
        overrides: `section.key=value`, or YAML files that hold a part of a run file; later
            ones win.

    Raises:
        InputError: names the file, and of everything that is wrong the field, what is wrong and
            what would be right.
    """
    return load(path, RunSpec, overrides)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Return any YAML file of the project as its schema; see `load_run`.

    A file's key `base` names another file, which holds the values that the file does not set;
    `null` for a key that cannot be null discards one of them. Where a file chooses another `kind`
    than its base, the base's keys that this kind does not have are left out. Relative paths are
    from the folder of the file that names them, those of overrides from the working directory.

    Args:
        path: the file.
        schema: what it must be.
        overrides: see `load_run`.

    Raises:
        InputError: names the file, and of everything that is wrong the field, what is wrong and
            what would be right.
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
        InputError: the first thing that is wrong, with the others.
    """
    try:
        return schema.model_validate(document)
    except ValidationError as invalid:
        raise explain(where, schema, document, invalid.errors()) from None


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
        raise explain("command line", RunSpec, changed, invalid.errors()) from None


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
    document = read_yaml(path)
    if "base" not in document:
        return dict(place_paths(document, schema, path))
    named = document.pop("base")
    document = place_paths(document, schema, path)
    if not isinstance(named, str):
        raise InputError(
            str(path), "base", f"{named!r} is not a path", "give another file's path",
            code="base-invalid",
        )  # fmt: skip
    base = Path(place_path(named, path, "base", IsPath()))
    if base.absolute() in (file.absolute() for file in (*above, path)):
        raise InputError(
            str(path), "base", f"{base} is based on this file", "remove the circular `base`",
            code="base-circular",
        )  # fmt: skip
    return _lay_over(_read_with_base(base, schema, (*above, path)), document, schema)


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
            both[key] = _lay_over(before, value, section_at(info, value))
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
        inner = section_at(info, value)
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


def _apply(document: dict[str, Any], override: str) -> None:
    """Set the field that an override names."""
    field, equals, text = override.partition("=")
    keys = field.split(".")
    if not equals or not all(keys):
        problem, remedy = "is not an override", "write it as section.key=value"
        raise InputError("command line", override, problem, remedy, code="override-invalid")
    value = parse_yaml(text, "command line", field)
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            problem = f"{key} is not a section"
            raise InputError(
                "command line", field, problem, "shorten the path", code="override-invalid"
            )
        document = inner
    document[keys[-1]] = value
