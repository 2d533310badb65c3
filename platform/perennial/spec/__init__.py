"""The run file: schema, overrides, resolved form."""

from perennial.spec.amounts import AmountValue, parse_amount
from perennial.spec.load import load, load_run, parse
from perennial.spec.run import RunSpec
from perennial.spec.section import Section
from perennial.spec.sources import SourceSpec

__all__ = [
    "AmountValue",
    "RunSpec",
    "Section",
    "SourceSpec",
    "load",
    "load_run",
    "parse",
    "parse_amount",
]
