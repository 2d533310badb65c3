"""Names that become folders, and the file names that a corpus may hold."""

from __future__ import annotations

import re

from perennial.errors import InputError

MAX_NAME_CHARACTERS = 64
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")

FORMATS = (".jsonl", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")


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


def file_format(name: str) -> tuple[str, str] | None:
    """(format, compression) of a file by its suffixes, such as (".jsonl", ".gz"); None if unknown.

    Parquet compresses its own pages: a whole Parquet file inside .gz or .zst is unknown, because
    it could not be read without being staged.
    """
    lowered = name.lower()
    compression = next((c for c in COMPRESSIONS if lowered.endswith(c)), "")
    stem = lowered.removesuffix(compression)
    found = next((f for f in FORMATS if stem.endswith(f)), None)
    if found is None or (found == ".parquet" and compression):
        return None
    return found, compression
