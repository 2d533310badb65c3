"""The run file: schema, overrides, resolved form."""

from perennial.config.load import load, load_run, override_stored_run, parse, read_stored_run
from perennial.config.run import RunSpec
from perennial.config.sources import SourceSpec
from perennial.config.stage_settings import StageSettings, stage_settings
from perennial.fields import AmountValue, Section, parse_amount

__all__ = [
    "AmountValue",
    "RunSpec",
    "Section",
    "SourceSpec",
    "StageSettings",
    "load",
    "load_run",
    "override_stored_run",
    "parse",
    "parse_amount",
    "read_stored_run",
    "stage_settings",
]
