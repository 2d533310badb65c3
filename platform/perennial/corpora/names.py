"""Names that become folders, and the file names that a corpus may hold."""

from __future__ import annotations

import re

from perennial.errors import InputError

MAX_NAME_CHARACTERS = 64
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")


def check_name(name: str) -> str:
    """The name itself, when it can be a folder of a store; InputError otherwise."""
    if len(name) <= MAX_NAME_CHARACTERS and _NAME.fullmatch(name) and ".." not in name:
        return name
    raise InputError(
        "corpus",
        "name",
        f"{name!r} cannot be a corpus's name",
        f"use at most {MAX_NAME_CHARACTERS} lower-case letters, digits, dashes, underscores and "
        "single dots, beginning and ending with a letter or digit, such as french-2024.1",
    )
