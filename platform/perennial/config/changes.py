"""When each field of the run file may change, and which change is refused. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, JsonValue

from perennial.config.run import RunSpec
from perennial.errors import InputError
from perennial.fields import (
    Changeable,
    change_of,
    choice_of,
    is_mapping_of_sections,
    item_choice_of,
    path_of,
    section_in,
)

if TYPE_CHECKING:
    from perennial.fields import Section

Values = dict[str, JsonValue]
"""Values of fields by their dotted names."""
_OPTIMIZER = "training.optimizer"
_ADAMW = ("training.betas", "training.epsilon", "training.weight_decay")
"""Fields that are keys of the optimizer where the run file names none."""


@dataclass(frozen=True)
class RunField:
    """A field of the run file.

    name: dotted; NAME stands for a name that the user chooses.
    section, key: where it is declared.
    change: when it may change; None where its declaration does not say.
    """

    name: str
    section: type[BaseModel]
    key: str
    change: Changeable | None

    @property
    def default(self) -> JsonValue:
        """Return the value of a file that does not have the field, as JSON holds it."""
        return default_of(self.section, self.key)


def run_fields(section: type[BaseModel] = RunSpec, inside: str = "") -> Iterator[RunField]:
    """Yield every field that is no section itself, in the order of the file.

    A section that is chosen by its kind is one field: plug-ins bring kinds with keys of their own.
    """
    for key, info in section.model_fields.items():
        name = f"{inside}{key}"
        is_choice = choice_of(info) or item_choice_of(info)
        inner = None if is_choice else section_in(info.annotation)
        if inner is None:
            yield RunField(name, section, key, change_of(info))
        else:
            yield from run_fields(
                inner, f"{name}.NAME." if is_mapping_of_sections(info) else f"{name}."
            )


def default_of(section: type[BaseModel], key: str) -> JsonValue:
    """Return a field's default as a file would hold it; None for a field without one."""
    info = section.model_fields[key]
    if info.is_required():
        return None
    value: Any = info.get_default(call_default_factory=True)
    shown = section.model_construct(**{key: value}).model_dump(mode="json", include={key})
    default: JsonValue = shown.get(key)
    return default


def check_pinned(where: str, store: str, opened: Mapping[str, JsonValue], spec: Section) -> None:
    """Refuse a run file that differs in a pinned field from the one that opened the run.

    A field that either does not have counts as its default: an older version did not know it.

    Args:
        where: the run file, for the message.
        store: the run's, for the message.
        opened: the resolved run file that opened the run.
        spec: the run file.

    Raises:
        InputError: names the first such field, both values and the remedy.
    """
    wanted = spec.model_dump(mode="json")
    for field in _of_class(Changeable.PINNED):
        before, after = _value(opened, field), _value(wanted, field)
        if before != after and not _is_same_path(field, before, after):
            raise InputError(
                where,
                field.name,
                f"{after!r}, but the run in {store} has {before!r}",
                "restore it, or give this run a store of its own",
                code="run-changed",
            )


def _is_same_path(field: RunField, before: JsonValue, after: JsonValue) -> bool:
    """Return whether two values name one path, though the file or the folder was named otherwise.

    A relative path is recorded as it was from the working directory.
    """
    if path_of(field.section.model_fields[field.key]) is None:
        return False
    if not (isinstance(before, str) and isinstance(after, str)) or "://" in before + after:
        return False
    return os.path.abspath(before) == os.path.abspath(after)  # noqa: PTH100 (lexical)


def held_settings(spec: RunSpec) -> Values:
    """Return what a stage, release or trial that begins now keeps until it is finished."""
    document = spec.model_dump(mode="json")
    values = {field.name: _value(document, field) for field in _of_class(Changeable.HELD)}
    kept = {name: value for name, value in values.items() if name not in _ADAMW}
    # One form, wherever in the section AdamW's settings stand.
    kept[_OPTIMIZER] = spec.training.optimizer_config.model_dump(mode="json")
    return kept


def with_held(spec: RunSpec, settings: Mapping[str, JsonValue] | None) -> RunSpec:
    """Return the run file with what a stage keeps of the one under which it began.

    Args:
        spec: the run file as it is now.
        settings: `held_settings` of the beginning; None where an older version began it.
    """
    if settings is None or held_settings(spec).items() >= settings.items():
        return spec
    document = spec.model_dump(mode="json")
    for name, value in settings.items():
        *sections, key = name.split(".")
        section: Any = document
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section[key] = value
    if _OPTIMIZER in settings:
        for name in _ADAMW:
            document["training"].pop(name.rpartition(".")[2], None)
    return RunSpec.model_validate(document, context={"stored": True})


def check_held(
    begun: str, settings: Mapping[str, JsonValue] | None, spec: RunSpec, where: str
) -> None:
    """Refuse a run file under which what was begun would go on otherwise than it began.

    Args:
        begun: name of the unfinished stage, release or trial.
        settings: `held_settings` of its beginning; None where an older version began it.
        spec: the run file.
        where: the run file, for the message.

    Raises:
        InputError: names the first field that differs, both values and the remedy.
    """
    if settings is None:
        return
    now = _apart(held_settings(spec))
    defaults = {field.name: field.default for field in _of_class(Changeable.HELD)}
    before = _apart({**defaults, **settings})
    for name, value in now.items():
        if name in before and before[name] != value:
            raise InputError(
                where,
                _as_written(name, spec),
                f"{value!r}, but {begun} was begun with {before[name]!r} and is unfinished",
                f"restore it until {begun} is finished or refused; what begins then takes the new "
                "value",
                code="unfinished-under-other-settings",
            )


def _apart(values: Mapping[str, JsonValue]) -> Values:
    """Return the values with the optimizer's keys apart, so that a message names the one."""
    optimizer = values.get(_OPTIMIZER)
    if not isinstance(optimizer, dict):
        return dict(values)
    keys = {f"{_OPTIMIZER}.{key}": value for key, value in optimizer.items()}
    return {name: value for name, value in values.items() if name != _OPTIMIZER} | keys


def _as_written(name: str, spec: RunSpec) -> str:
    """Return the name under which the run file has a key of the optimizer."""
    if spec.training.optimizer is not None:
        return name
    plain = name.replace(f"{_OPTIMIZER}.", "training.")
    return plain if plain in _ADAMW else name


@cache
def _of_class(change: Changeable) -> tuple[RunField, ...]:
    return tuple(field for field in run_fields() if field.change is change)


def _value(document: Mapping[str, JsonValue], field: RunField) -> JsonValue:
    value: Any = document
    for key in field.name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return field.default if value is None else value
