"""Encode events as objects of the ledger, and decode them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from perennial.errors import NewerSchema
from perennial.runs.events import Event
from perennial.store.stored_json import parse_json

SCHEMA = 3
"""Version of the ledger's format; an event without one is of version 1. In version 2 a stage may
have several new corpora: `mix.corpora` in place of `mix.corpus`. In version 3 each event carries
the digest of the one before."""
_CHAINED = 3
"""the first version with digests"""

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


@dataclass(frozen=True)
class LedgerEntry:
    """One object of the ledger.

    before: SHA-256 of the bytes of the entry before, "" in the first; None in an entry of a
        version without digests.
    """

    event: Event
    before: str | None


def decode(data: bytes) -> LedgerEntry:
    """Return the entry in one ledger object.

    Raises:
        NewerSchema: its format is one that this version does not know.
        ValueError: it is no event; the text names the first field that is wrong.
    """
    document = parse_json(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    schema = document.pop("schema", 1)
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise NewerSchema(f"its schema is {schema!r}, this version knows up to {SCHEMA}")
    before = document.pop("before", None) if schema >= _CHAINED else None
    if schema >= _CHAINED and not isinstance(before, str):
        raise ValueError("before: it has no digest of the entry before it")
    try:
        return LedgerEntry(_EVENT.validate_python(document), before)
    except ValidationError as invalid:
        raise ValueError(_first_problem(invalid)) from None


def _first_problem(invalid: ValidationError) -> str:
    """Return the first error of a document; our own validators say the whole by themselves."""
    error = invalid.errors()[0]
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    field = ".".join(str(key) for key in error["loc"][1:])
    return f"{field}: {error['msg']}" if field else error["msg"]


def encode(event: Event, before: str = "") -> bytes:
    """Return the ledger object of one event.

    Args:
        event: the event.
        before: SHA-256 of the bytes of the entry before it; "" for the first.

    Raises:
        ValueError: a number in it is not finite. JSON has no such numbers, and an entry can never
            be changed.
    """
    document = {"schema": SCHEMA, "before": before} | event.model_dump(mode="json")
    return json.dumps(document, indent=1, allow_nan=False).encode()
