"""What is wrong with a file, in words for the user who wrote it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from perennial.config.examples import show_example
from perennial.errors import InputError, join_errors
from perennial.fields import choice_of, item_choice_of, section_in

_INSTANCE = re.compile(r"mapping or instance of \w+")


def explain(
    where: str, schema: type[BaseModel], document: Any, errors: Sequence[ErrorDetails]
) -> InputError:
    """Return everything that pydantic reports, in this project's form.

    Args:
        where: name of the file.
        schema: what the document was to be.
        document: what the file holds.
        errors: pydantic's, at least one.
    """
    first: dict[tuple[str, ...], ErrorDetails] = {}
    for error in errors:
        first.setdefault(tuple(_written_path(error, document)), error)
    # Of a value that may have one of several forms, the form that it is most like is meant.
    meant = [path for path in first if not any(_is_inside(other, path) for other in first)]
    return join_errors(_explain_one(where, schema, document, path, first[path]) for path in meant)


def _is_inside(path: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return len(path) > len(outer) and path[: len(outer)] == outer


def _explain_one(
    where: str,
    schema: type[BaseModel],
    document: Any,
    keys: tuple[str, ...],
    error: ErrorDetails,
) -> InputError:
    section, owner, key, description = _locate(schema, keys, document)
    field, message = ".".join(keys), str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
        known = f"known keys are {', '.join(section.model_fields)}"
        remedy = f"did you mean {close[0]}? {known}" if close else known
        return InputError(where, field, "there is no such key", remedy, code="unknown-key")
    remedy = f"give {description}"
    example = show_example(owner, key) if key else ""
    if example and "such as `" not in description:
        remedy += f", such as `{example}`"
    if error["type"] == "missing":
        return InputError(where, field, "is missing", remedy, code="missing-key")
    if error["type"] == "value_error" and not isinstance(error["input"], str):
        problem, _, own_remedy = message.partition("; ")
        is_section = isinstance(error["input"], Mapping | BaseModel)
        own_remedy = own_remedy or (f"see the section {field}" if is_section else remedy)
        return InputError(where, field, problem, own_remedy, code="invalid-section")
    if error["type"] == "value_error":
        return InputError(where, field, message, remedy, code="invalid-value")
    # Of YAML's words, not Python's.
    message = message.replace("valid tuple", "valid list").replace("dictionary", "mapping")
    message = _INSTANCE.sub("mapping", message)
    problem = f"{_show(error['input'])} is refused ({message[0].lower()}{message[1:]})"
    if error["type"] == "unknown_name":
        remedy = "correct it, or install the package that brings it"
        return InputError(where, field, problem, remedy, code="plugin-missing")
    if error["type"] == "unexpanded":
        remedy = "write the path itself, or override the field on the command line"
        return InputError(where, field, problem, remedy, code="variable-not-expanded")
    return InputError(where, field, problem, remedy, code="invalid-value")


def _show(value: Any) -> str:
    """Return a value as YAML has it, where that differs from Python."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _written_path(error: ErrorDetails, document: Any) -> list[str]:
    """Return the keys that lead to an error, without pydantic's names of the forms of a value."""
    keys: list[str] = []
    *inside, last = error["loc"] or ("",)
    for key in inside:
        is_index = isinstance(key, int) and isinstance(document, Sequence)
        if is_index or (isinstance(document, Mapping) and key in document):
            keys.append(str(key))
            document = document[key]
    is_text = isinstance(document, str) and error["type"] != "unknown_name"
    is_plain = is_text or not isinstance(document, (Mapping, Sequence))
    is_form = is_plain or ("[" in str(last) and last != "[key]")
    return [*keys, str(last)] if not is_form or not error["loc"] else keys


def _locate(
    schema: type[BaseModel], keys: Sequence[str], document: Any
) -> tuple[type[BaseModel], type[BaseModel], str, str]:
    """Return the innermost section on the way, and the last field with its section and text.

    The field of an entry of a mapping or a list is the mapping or the list. Its key is "" where
    there is none on the way.
    """
    section, owner, own_key, description = schema, schema, "", "a value"
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
        owner, own_key = section, key
        description = " ".join((info.description or key).split())
        items = item_choice_of(info)
        section = section_at(info, document) or section
    return section, owner, own_key, description


def section_at(info: FieldInfo | None, value: Any) -> type[BaseModel] | None:
    """Return the section class of a field's value, or of the values of its mapping."""
    choice = choice_of(info)
    if choice is not None:
        return choice.choose(value)
    return section_in(info.annotation) if info else None
