"""Which sequences are trained at which step, and the stream that delivers them."""

from perennial.mixture.plan import (
    Source,
    StageMix,
    branch_mix,
    cut,
    seen_sequences,
    stage_mix,
    trained_sequences,
)
from perennial.mixture.replay import ReplayRule

__all__ = [
    "ReplayRule",
    "Source",
    "StageMix",
    "branch_mix",
    "cut",
    "seen_sequences",
    "stage_mix",
    "trained_sequences",
]
