"""The run file: schema, overrides, resolved form."""

from perennial.config.amounts import AmountValue, parse_amount
from perennial.config.base import Section
from perennial.config.load import load, load_run, parse
from perennial.config.run import RunSpec
from perennial.config.sources import SourceSpec

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
