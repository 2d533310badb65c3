"""The run file: schema, overrides, resolved form."""

from perennial.spec.amounts import AmountValue, parse_amount
from perennial.spec.load import load, load_run, parse
from perennial.spec.run import RunSpec, Section

__all__ = ["AmountValue", "RunSpec", "Section", "load", "load_run", "parse", "parse_amount"]
