"""What a stage may replay, and by which share: the run file's rule for it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.config.stage_settings import stage_settings
from perennial.errors import InputError
from perennial.mixture import AUTO, ReplayRule, known_corpora
from perennial.runs.state import RunState
from perennial.runs.unattended.replay_share import ShareDecision

if TYPE_CHECKING:
    from perennial.config import RunSpec


def stage_rule(
    spec: RunSpec, state: RunState, corpus: str, share: float | None = None
) -> ReplayRule:
    """Return the rule of replay of a corpus's stage.

    Args:
        spec: the run file.
        state: the run.
        corpus: the first new one of the stage.
        share: that of the stage; default the one that is set.
    """
    settings = stage_settings(spec, corpus, state.corpora[corpus].replay)
    return ReplayRule.resolve(settings.replay, state.retired, _proxies(spec, state), share)


def replayable(spec: RunSpec, state: RunState, new: Sequence[str]) -> dict[str, int]:
    """Return the sequences that the trunk has seen of each corpus that a stage may replay.

    Args:
        spec: the run file.
        state: the run.
        new: corpora of the stage.
    """
    rule, seen = stage_rule(spec, state, new[0], 0.0), Counter[str]()
    for (corpus, _), known in known_corpora(state.use, rule, rule.retired, new).items():
        seen[corpus] += known.history.seen
    return {corpus: count for corpus, count in seen.items() if count}


def measures_shift(spec: RunSpec, state: RunState, new: Sequence[str]) -> bool:
    """Return whether the replay share of a stage is measured when the stage begins.

    Args:
        spec: the run file.
        state: the run.
        new: corpora of the stage.
    """
    first = new[0]
    share = stage_settings(spec, first, state.corpora[first].replay).replay.share
    return share == AUTO and bool(replayable(spec, state, new))


def decided_share(
    spec: RunSpec, state: RunState, named: Sequence[str], auto: ShareDecision | float | None
) -> float:
    """Return the share that was decided for a stage; 0 where there is nothing to replay."""
    if isinstance(auto, ShareDecision):
        return auto.share
    if auto is not None:
        return auto
    if replayable(spec, state, named):
        raise InputError(
            "run file",
            "replay.share",
            f"it is auto, and the shift before the stage of {named[0]} was not measured",
            "give a number",
            code="share-undecided",
        )
    return 0.0


def _proxies(spec: RunSpec, state: RunState) -> dict[str, int | dict[str, int]]:
    """Return the training sequences of the proxy corpora that are ready, or of their parts."""
    known = {name: state.corpora.get(name) for name in spec.stages.proxies}
    ready = {name: c for name, c in known.items() if c is not None and c.state == "ready"}
    return {name: corpus.parts or corpus.sequences for name, corpus in ready.items()}
