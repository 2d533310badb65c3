"""Which sequences are trained at which step, and the stream that delivers them."""

from perennial.mixture.branch import (
    Mixture,
    annealed_corpora,
    branch_mix,
    describe_tokens,
    mixture_suffix,
    read_mixture,
)
from perennial.mixture.groups import group_of
from perennial.mixture.parts import (
    CorpusRows,
    Part,
    apportion_parts,
    list_new,
    name_source,
    rows_of,
    weigh_parts,
)
from perennial.mixture.plan import (
    History,
    Source,
    StageMix,
    TrunkUse,
    known_corpora,
    seen_by_part,
    seen_sequences,
    stage_mix,
    trained_by_part,
    trained_sequences,
    truncate_mix,
)
from perennial.mixture.policies import REPLAY_POLICIES, CorpusHistory, ReplayPolicy
from perennial.mixture.replay import AUTO, PolicyName, ReplayRule, ReplaySpec, ShareOrAuto

__all__ = [
    "AUTO",
    "REPLAY_POLICIES",
    "CorpusHistory",
    "CorpusRows",
    "History",
    "Mixture",
    "Part",
    "PolicyName",
    "ReplayPolicy",
    "ReplayRule",
    "ReplaySpec",
    "ShareOrAuto",
    "Source",
    "StageMix",
    "TrunkUse",
    "annealed_corpora",
    "apportion_parts",
    "branch_mix",
    "describe_tokens",
    "group_of",
    "known_corpora",
    "list_new",
    "mixture_suffix",
    "name_source",
    "read_mixture",
    "rows_of",
    "seen_by_part",
    "seen_sequences",
    "stage_mix",
    "trained_by_part",
    "trained_sequences",
    "truncate_mix",
    "weigh_parts",
]
