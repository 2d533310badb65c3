"""YAML of the project's files: a mapping in which no key is written twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from perennial.errors import InputError, join_errors


class _CheckedLoader(yaml.SafeLoader):
    """Reads plain values, and keeps which keys were written a second time, with their lines."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.repeated: list[tuple[str, int, int]] = []

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping; YAML itself lets a later key silently replace an earlier one."""
        first: dict[Hashable, int] = {}
        if isinstance(node, yaml.MappingNode):
            for key_node, _ in node.value:
                # `<<` takes over another mapping's keys, which a key beside it may replace.
                if key_node.tag == "tag:yaml.org,2002:merge":
                    continue
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if isinstance(key, Hashable) and key in first:
                    self.repeated.append((str(key), first[key], line))
                elif isinstance(key, Hashable):
                    first[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        InputError: there is no such file, it is not YAML, or keys of it are written twice.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        problem, remedy = "there is no such file", "give a run file's path"
        raise InputError(str(path), "", problem, remedy, code="file-missing") from None
    except (OSError, UnicodeDecodeError) as broken:
        problem, remedy = f"cannot be read ({broken})", "give a UTF-8 file"
        raise InputError(str(path), "", problem, remedy, code="file-unreadable") from None
    if not isinstance(document, dict):
        problem, remedy = "is not a mapping of sections", "write `key: value` lines"
        raise InputError(str(path), "", problem, remedy, code="yaml-invalid")
    return document


def parse_yaml(text: str, where: str, field: str = "") -> Any:
    """Return the value of a YAML text.

    Args:
        text: the YAML.
        where: name of the file, for errors.
        field: the field that the text is the value of; "" for a whole file.

    Raises:
        InputError: it is not YAML, or has a mapping with a key that is written twice.
    """
    try:
        loader = _CheckedLoader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        place = field or (f"line {mark.line + 1}" if mark else "")
        said = getattr(broken, "problem", None) or "not YAML"
        problem = f"{text!r} is not YAML" if field else said
        remedy = "quote it" if field else "write `key: value` lines"
        raise InputError(where, place, problem, remedy, code="yaml-invalid") from None
    if loader.repeated:
        raise join_errors(_refuse_repeated(loader, where, field)) from None
    return value


def _refuse_repeated(loader: _CheckedLoader, where: str, field: str) -> Iterator[InputError]:
    for key, first, line in sorted(set(loader.repeated), key=lambda repeated: repeated[2]):
        place = field or f"line {line}"
        problem = f"the key {key} is there already" + ("" if field else f", in line {first}")
        yield InputError(where, place, problem, "keep one of the two", code="key-repeated")
