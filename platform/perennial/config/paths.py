"""Paths in a file: a relative one is from the folder of the file that names it.

Versions before 0.2 read them from the working directory. Where a file is there and not in the
file's folder, it is refused with the path to write, so that no run begins again beside its store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perennial.errors import InputError, join_errors
from perennial.fields import (
    IsPath,
    Section,
    choice_of,
    is_mapping_of_sections,
    item_choice_of,
    path_of,
    section_in,
)

_Place = Callable[[str, IsPath, str], str]
"""returns a path in its place, given its kind and the dotted name of its field"""


def place_paths(document: Any, section: type[BaseModel], file: Path) -> Any:
    """Return a document with its relative paths as they are from the working directory.

    Args:
        document: what the file holds.
        section: what it is to be; what does not fit it is left for the validation.
        file: the file, as it was named.

    Raises:
        InputError: paths that are there from the working directory alone.
    """
    if not file.parent.parts:
        return document
    moved: list[InputError] = []

    def place(text: str, mark: IsPath, field: str) -> str:
        try:
            return place_path(text, file, field, mark)
        except InputError as elsewhere:
            moved.append(elsewhere)
            return text

    placed = _place_section(document, section, place, ())
    if moved:
        raise join_errors(moved)
    return placed


def relative_paths(document: Any, section: type[BaseModel], folder: Path) -> Any:
    """Return a document whose relative paths are from a folder; now from the working directory.

    So it is the same whatever the working directory is.

    Args:
        document: of a checked file.
        section: what it is.
        folder: the folder.
    """

    def place(text: str, mark: IsPath, _field: str) -> str:
        if not text or "://" in text or text.startswith(("/", "~")):
            return text
        is_there = os.path.exists(text)  # noqa: PTH110
        return os.path.relpath(text, folder) if is_there or not _is_plain(text, mark) else text

    return _place_section(document, section, place, ())


def place_path(text: str, file: Path, field: str, mark: IsPath) -> str:
    """Return a path of a file as it is from the working directory.

    Args:
        text: the path, as the file has it.
        file: the file.
        field: the dotted name of the field, for the error.
        mark: the kind of path.

    Raises:
        InputError: it is there from the working directory alone.
    """
    if not text or "://" in text or "$" in text or text.startswith(("/", "~")):
        return text
    placed = os.path.normpath(file.parent / text)
    is_there = os.path.exists(placed)  # noqa: PTH110 (a text that may be no path)
    if _is_plain(text, mark) and not is_there:
        return text
    if not is_there and os.path.exists(text):  # noqa: PTH110
        raise InputError(
            str(file),
            field,
            f"{text} is read from the folder of this file, where there is no such file or folder; "
            "there is one in the working directory",
            f"write {os.path.relpath(text, file.parent)}"
            + (f", or make {placed}" if mark.is_output else ""),
            code="path-from-elsewhere",
        )
    return placed


def _is_plain(text: str, mark: IsPath) -> bool:
    """Return whether a text may be a plain name in place of a path."""
    return mark.or_name and "/" not in text and not text.endswith((".yaml", ".json"))


def input_paths(section: Section, inside: str = "") -> Iterator[tuple[str, str]]:
    """Yield the files and folders that a checked file reads, with the names of their fields.

    A value that may be a plain name is left out.
    """
    for key, info in type(section).model_fields.items():
        field, value, mark = f"{inside}{key}", getattr(section, key), path_of(info)
        if mark is not None and not mark.or_name and not mark.is_output:
            values = value.values() if isinstance(value, Mapping) else value
            texts = [value] if isinstance(value, str) else values or ()
            yield from ((field, text) for text in texts)
        elif isinstance(value, Section):
            yield from input_paths(value, f"{field}.")
        elif isinstance(value, Mapping):
            for name, item in value.items():
                if isinstance(item, Section):
                    yield from input_paths(item, f"{field}.{name}.")
        elif isinstance(value, tuple):
            for number, item in enumerate(value):
                if isinstance(item, Section):
                    yield from input_paths(item, f"{field}.{number}.")


def _place_section(
    values: Any,
    section: type[BaseModel] | None,
    place: _Place,
    inside: tuple[str, ...],
) -> Any:
    if section is None or not isinstance(values, Mapping):
        return values
    placed = {}
    for key, value in values.items():
        info = section.model_fields.get(key) if isinstance(key, str) else None
        path = (*inside, str(key))
        placed[key] = _place_field(value, info, place, path) if info else value
    return placed


def _place_field(value: Any, info: FieldInfo, place: _Place, inside: tuple[str, ...]) -> Any:
    sections = dict(_sections(value, info))
    for key, section in sections.items():
        if key is None:
            value = _place_section(value, section, place, inside)
        elif isinstance(value, Mapping):
            inner = _place_section(value[key], section, place, (*inside, str(key)))
            value = {**value, key: inner}
        else:
            inner = _place_section(value[key], section, place, (*inside, str(key)))
            value = [*value[:key], inner, *value[key + 1 :]]
    mark = path_of(info)
    return value if mark is None else _place_values(value, info, mark, place, inside)


def _sections(value: Any, info: FieldInfo) -> Iterator[tuple[Any, type[BaseModel] | None]]:
    """Yield the sections that a field holds, by their key or number in it; None for the one."""
    if choice := choice_of(info):
        yield None, choice.choose(value)
    elif (items := item_choice_of(info)) and isinstance(value, list):
        yield from ((number, items.choose(item)) for number, item in enumerate(value))
    elif is_mapping_of_sections(info) and isinstance(value, Mapping):
        yield from ((key, section_in(info.annotation)) for key in value)
    elif isinstance(value, Mapping):
        yield None, section_in(info.annotation)


def _place_values(
    value: Any,
    info: FieldInfo,
    mark: IsPath,
    place_one: _Place,
    inside: tuple[str, ...],
) -> Any:
    """Return the paths of a field in their place: a text, a list of texts, values or names."""

    def place(text: Any) -> Any:
        return place_one(text, mark, ".".join(inside)) if isinstance(text, str) else text

    if isinstance(value, list):
        return [place(item) for item in value]
    if isinstance(value, Mapping):
        # Sections by path, as gates are by task; else paths by a name.
        by_path = is_mapping_of_sections(info)
        return {place(k) if by_path else k: v if by_path else place(v) for k, v in value.items()}
    return place(value)
