"""Which sequences are trained at which step, and the stream that delivers them."""

from perennial.mixture.plan import (
    Source,
    StageMix,
    branch_mix,
    seen_sequences,
    stage_mix,
    trained_sequences,
    truncate_mix,
)
from perennial.mixture.policies import REPLAY_POLICIES, CorpusHistory, ReplayPolicy
from perennial.mixture.replay import PolicyName, ReplayRule, ReplaySpec

__all__ = [
    "REPLAY_POLICIES",
    "CorpusHistory",
    "PolicyName",
    "ReplayPolicy",
    "ReplayRule",
    "ReplaySpec",
    "Source",
    "StageMix",
    "branch_mix",
    "seen_sequences",
    "stage_mix",
    "trained_sequences",
    "truncate_mix",
]
