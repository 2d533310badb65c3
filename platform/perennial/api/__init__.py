"""The programming interface: one object per run, whose methods are the verbs and return data."""

from perennial.api.open import open_run
from perennial.api.run import Run

__all__ = ["Run", "open_run"]
