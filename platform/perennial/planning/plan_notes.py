"""What a plan says in words: of its corpora, of how it begins, of its replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from perennial import corpora
from perennial.config.stage_settings import stage_settings
from perennial.controller.context import Workspace
from perennial.mixture import AUTO, StageMix
from perennial.planning.growth_forecast import growth_notes
from perennial.runs.stage_planner import explain_rewarming, warn_of_start
from perennial.runs.state import Stage
from perennial.runs.unattended.replay_share import ShareRule
from perennial.schedules import from_dict
from perennial.training.cost_model import ModelSize

if TYPE_CHECKING:
    from perennial.config import RunSpec


def notes_on_corpora(work: Workspace, stages: Sequence[Stage], size: ModelSize) -> Iterator[str]:
    """Yield what new corpora bring, and what packing did to those that are ingested.

    Args:
        work: the run.
        stages: those to come.
        size: of the model.
    """
    known, new = work.state.corpora, [name for stage in stages for name in stage.corpora]
    yield from growth_notes(work, new, size)
    for name in new:
        if name in known and known[name].sequences:
            manifest = corpora.read_manifest(work.store, name)
            if manifest.counts.cut_documents or manifest.counts.padding_tokens:
                yield f"{name}: {manifest.describe_packing()}"


def notes_on_start(spec: RunSpec, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Return notes on how a trunk that is not begun treats the model that it starts from."""
    if not stages or stages[0].after:
        return ()
    mix, schedule = stages[0].mix, from_dict(stages[0].schedule)
    return (*warn_of_start(spec, mix, schedule), *explain_rewarming(spec, schedule))


def replay_split(mix: StageMix) -> str:
    """Return the parts of the replayed tokens by corpus, and their rule; "" for a single one."""
    replayed = Counter[str]()
    for source in mix.replayed:
        replayed[source.corpus] += source.sequences
    if len(replayed) < 2:
        return ""
    parts = ", ".join(f"{name} {n / replayed.total():.1%}" for name, n in replayed.items())
    rule = mix.replay
    minimum = f", at least {rule.minimum:.0%} each" if rule.minimum else ""
    return f"{parts} (weighting {rule.weighting}{minimum})"


def share_reason(work: Workspace, stage: Stage) -> str:
    """Return why the replay share of a stage is what it is; "" where the file says it."""
    if stage.share_decision is not None:
        return stage.share_decision.describe()
    begun = stage.name in [known.name for known in work.state.stages]
    first = work.state.corpora.get(stage.corpora[0])
    share = stage_settings(work.spec, stage.corpora[0], first.replay if first else None)
    if begun or share.replay.share != AUTO or not stage.mix.replayed:
        return ""
    rule = ShareRule()
    return (
        f"decided when the stage begins, between {rule.weak_share:.0%} and "
        f"{rule.strong_share:.0%}; it is planned with the latter"
    )
