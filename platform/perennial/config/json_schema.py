"""JSON Schemas of the run file and the tuning file, for editors.

A schema is that of pydantic, adapted to what a file may hold before it is laid over its base: the
key `base`, incomplete sections, and nulls. It checks names and values; what is required,
and what must fit together, is checked when the file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from perennial.fields import Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {
    "boolean": "true or false",
    "string": "text",
    "integer": "whole number",
    "number": "number",
}
_BASE = {
    "type": "string",
    "description": "another file that holds the values which this file does not set; "
    "null discards a value of it",
}


def file_schema(schema: type[Section], title: str) -> dict[str, Any]:
    """Return the JSON Schema of a file.

    Args:
        schema: the section that the whole file is.
        title: name of the kind of file.
    """
    document = schema.model_json_schema()
    required = document["required"]
    _adapt(document)
    definitions = document.pop("$defs", {})
    for definition in definitions.values():
        _adapt(definition)
    document["properties"] = {"base": _BASE, **document["properties"]}
    head = {"$schema": _DIALECT, "title": title}
    alone = {"if": {"not": {"required": ["base"]}}, "then": {"required": required}}
    return head | document | alone | {"$defs": definitions}


def _adapt(section: dict[str, Any]) -> None:
    """Let a section be incomplete, and let null discard a value of the base."""
    for choice in section.get("anyOf", []):
        _adapt(choice)
    for name in ("title", "required"):
        section.pop(name, None)
    for name, value in section.get("properties", {}).items():
        section["properties"][name] = _nullable(value)


def _nullable(value: Mapping[str, Any]) -> dict[str, Any]:
    outside = {name: value[name] for name in ("description", "default") if name in value}
    if "description" in outside:
        outside["description"] = " ".join(outside["description"].split())
    inside = {k: v for k, v in value.items() if k not in ("description", "default", "title")}
    choices = inside["anyOf"] if set(inside) == {"anyOf"} else [inside]
    for choice in choices:
        _adapt(choice)
    if {"type": "null"} not in choices and inside != {}:
        choices = [*choices, {"type": "null"}]
    return outside | ({"anyOf": choices} if inside else {})


def describe_type(value: Mapping[str, Any]) -> str:
    """Return the type of a property in words, with its choices and bounds."""
    if comment := value.get("$comment"):
        return str(comment)
    if "$ref" in value or value.get("type") == "object":
        return "mapping"
    if choices := value.get("anyOf"):
        texts = [describe_type(choice) for choice in choices if choice != {"type": "null"}]
        return " or ".join(dict.fromkeys(texts))
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value.get("type") == "array":
        items = value.get("prefixItems")
        return f"list of {len(items)} numbers" if items else f"list of {_plural(value['items'])}"
    return _TYPES.get(value.get("type", ""), "any value") + _bounds(value)


def _plural(items: Mapping[str, Any]) -> str:
    text = describe_type(items)
    return {"text": "texts", "amount": "amounts"}.get(text, text)


def _bounds(value: Mapping[str, Any]) -> str:
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{text} {value[name]:g}" for name, text in words.items() if name in value]
    # A seed's bound of 2**63 is of no use to a reader.
    bounds = [text for text in bounds if "e+" not in text]
    return f", {' and '.join(bounds)}" if bounds else ""


def property_schemas(section: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schemas of the keys of a section, as pydantic generates them."""
    document = section.model_json_schema()
    body = document["$defs"][section.__name__] if "$ref" in document else document
    # A section that may be written shorter, such as workers, is one of several forms.
    forms = [body, *body.get("anyOf", [])]
    schemas: dict[str, Any] = next(form["properties"] for form in forms if "properties" in form)
    return schemas
