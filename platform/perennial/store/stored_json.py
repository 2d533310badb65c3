"""Parse the JSON of a stored object, whatever it holds."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes | str) -> Any:
    """Return the value of a JSON document.

    Raises:
        ValueError: it is none, or is nested more deeply than can be read.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
