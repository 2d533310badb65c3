"""Reading YAML files into sections, with errors for the person who wrote the file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from perennial.config.base import Section
from perennial.config.run import RunSpec
from perennial.errors import InputError

S = TypeVar("S", bound=Section)


def load_run(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """The run file at `path` with overrides applied, checked.

    An override is `section.key=value`, or a YAML file that holds a part of a run file.
    Raises InputError naming the file, the field, what is wrong and what would be right.
    """
    return load(path, RunSpec, overrides)


def load(path: Path, schema: type[S], overrides: Sequence[str] = ()) -> S:
    """Any YAML file of the project read into its schema; see `load_run`.

    A file's key `base` names another one, from the working directory as all paths: what the file
    does not say is as the base says it; `null` for a section forgets what the base says of it.
    """
    document = _read_with_base(path)
    for override in overrides:
        if "=" not in override and override.endswith((".yaml", ".yml")):
            document = _laid_over(document, _read_with_base(Path(override)))
        else:
            _apply(document, override)
    return parse(document, schema, str(path))


def parse(document: Any, schema: type[S], where: str) -> S:
    """A document checked against its schema; the first error becomes an InputError."""
    try:
        return schema.model_validate(document)
    except ValidationError as invalid:
        raise _explain(where, schema, invalid.errors()[0]) from None


def _read_with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    document = _read_yaml(path)
    if "base" not in document:
        return document
    base = document.pop("base")
    if not isinstance(base, str):
        raise InputError(str(path), "base", f"{base!r} is no path", "give another file's path")
    if Path(base) in (*above, path):
        raise InputError(str(path), "base", f"{base} is based on this file", "end the circle")
    return _laid_over(_read_with_base(Path(base), (*above, path)), document)


def _laid_over(base: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The base with the document's values in place of its own, section by section."""
    both = dict(base)
    for key, value in document.items():
        before = both.get(key)
        if isinstance(before, dict) and value is None:
            del both[key]
        elif isinstance(before, dict) and isinstance(value, dict):
            both[key] = _laid_over(before, value)
        else:
            both[key] = value
    return both


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(str(path), "", "there is no such file", "give a run file's path") from None
    except (OSError, UnicodeDecodeError) as broken:
        raise InputError(str(path), "", f"cannot be read ({broken})", "give a UTF-8 file") from None
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        line = f"line {mark.line + 1}" if mark else ""
        problem = getattr(broken, "problem", None) or "not YAML"
        raise InputError(str(path), line, problem, "write `key: value` lines") from None
    if not isinstance(document, dict):
        raise InputError(str(path), "", "is not a mapping of sections", "write `key: value` lines")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    field, equals, text = override.partition("=")
    keys = field.split(".")
    if not equals or not all(keys):
        raise InputError(
            "command line", override, "is not an override", "write it as section.key=value"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError("command line", field, f"{text!r} is not YAML", "quote it") from None
    for key in keys[:-1]:
        inner = document.setdefault(key, {})
        if not isinstance(inner, dict):
            raise InputError("command line", field, f"{key} is not a section", "shorten the path")
        document = inner
    document[keys[-1]] = value


def _explain(where: str, schema: type[BaseModel], error: ErrorDetails) -> InputError:
    keys = [str(key) for key in error["loc"]]
    section, description = _locate(schema, keys)
    field = ".".join(keys)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], section.model_fields, n=1)
        remedy = (
            f"did you mean {close[0]}?"
            if close
            else f"known keys are {', '.join(section.model_fields)}"
        )
        return InputError(where, field, "there is no such key", remedy)
    if error["type"] == "missing":
        return InputError(where, field, "is missing", f"give {description}")
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error" and not isinstance(error["input"], str):
        problem, _, remedy = message.partition("; ")
        return InputError(where, field, problem, remedy or f"see the section {field}")
    if error["type"] == "value_error":
        return InputError(where, field, message, f"give {description}")
    found = error["input"]
    problem = f"{found!r} is refused ({message[0].lower()}{message[1:]})"
    return InputError(where, field, problem, f"give {description}")


def _locate(schema: type[BaseModel], keys: Sequence[str]) -> tuple[type[BaseModel], str]:
    """The innermost section on the way to a field, and the field's description."""
    section, description = schema, "a value"
    for key in keys:
        info = section.model_fields.get(key)
        if info is None:
            continue
        description = " ".join((info.description or key).split())
        inner = _section_of(info.annotation)
        if inner is not None:
            section = inner
    return section, description


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _section_of(argument)
        if found is not None:
            return found
    return None
