"""Amounts that say their unit: `2%`, `500 steps`, `4M tokens`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_PATTERN = re.compile(r"^\s*(\d+(?:[._]\d+)*)\s*([kMBT]?)\s*(%|steps?|tokens?)\s*$")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class AmountValue:
    """A number of optimizer steps, a number of tokens, or a percentage of a total."""

    number: Fraction
    unit: Literal["steps", "tokens", "percent"]
    text: str

    def steps(self, total_steps: int, tokens_per_step: int) -> int:
        """This amount in whole optimizer steps, rounded down.

        total_steps: what 100% means here.
        tokens_per_step: tokens in one global batch.
        """
        if self.unit == "steps":
            return int(self.number)
        if self.unit == "tokens":
            return int(self.number / tokens_per_step)
        return int(self.number * total_steps / 100)

    def __str__(self) -> str:
        return self.text


def parse_amount(value: Any) -> AmountValue:
    """Read `2%`, `500 steps` or `4M tokens` (k, M, B, T); a bare number has no unit and is refused.

    Raises ValueError that says what an amount looks like.
    """
    if isinstance(value, AmountValue):
        return value
    match = _PATTERN.match(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not an amount with its unit")
    digits, scale, unit = match.groups()
    number = Fraction(digits.replace("_", "")) * _SCALE[scale]
    kind: Literal["steps", "tokens", "percent"] = (
        "percent" if unit == "%" else "steps" if unit.startswith("step") else "tokens"
    )
    if kind == "percent" and scale:
        raise ValueError(f"{value!r} scales a percentage")
    return AmountValue(number, kind, " ".join(value.split()))


Amount = Annotated[
    AmountValue,
    BeforeValidator(parse_amount),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": _PATTERN.pattern}),
]
