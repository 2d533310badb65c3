"""Decide what follows a stage that broke its gates: more replay, a search, or a user. Pure.

More replay mends forgetting and nothing else: it takes tokens from the new corpus, so that a stage
which learned too little would learn less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from perennial.mixture import known_corpora
from perennial.runs.actions import Answer
from perennial.runs.unattended.gate_search import describe_broken, search_gate
from perennial.runs.unattended.share_search import LEAST_REPLAY, MOST_REPLAY

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.evaluation.gates import Verdict
    from perennial.runs.state import RunState, Stage

_FORGETTING = ("max_forgetting", "tasks.max_drop")
"""gates that more replay can satisfy"""


@dataclass(frozen=True)
class GateResponse:
    """The answer to a stage that a gate stopped.

    corpus: the first of the stage.
    replay: the share of its next try; None where a user must decide.
    reason: why.
    search: the search that answers; "" for none.
    rate: the peak of the next try, where the search varies it.
    taken: whether that try is a trial of the search that becomes the stage.
    """

    corpus: str
    replay: float | None
    reason: str
    search: str = ""
    rate: float | None = None
    taken: bool = False

    @property
    def answer(self) -> Answer | None:
        """Return what the controller does; None where a user must decide."""
        if self.replay is None:
            return None
        if not self.search:
            return "retry-with-more-replay"
        return "take-trial" if self.taken else "search"

    def describe(self) -> str:
        """Return what follows, and why, in one line."""
        if self.replay is None:
            return f"{'no other stage' if self.search else 'no retry'}: {self.reason}"
        peak = "" if self.rate is None else f" and a peak rate of {self.rate:g}"
        how = "a trial" if self.answer == "search" else "again"
        return f"{how} with {self.replay:.0%} replay{peak}: {self.reason}"


def respond_to_gate(spec: RunSpec, state: RunState) -> GateResponse | None:
    """Return what follows for the stage that a gate stopped.

    Args:
        spec: the run file.
        state: the run.

    Returns:
        None where no gate stopped a stage, and where the run file asks for nothing but a stop.
    """
    stage = state.gated
    if stage is None or spec.gates.on_broken == "stop":
        return None
    corpus = stage.corpora[0]
    if spec.gates.on_broken == "search":
        search = search_gate(spec, state, stage)
        point = search.share, search.reason, search.name, search.rate
        return GateResponse(corpus, *point, taken=search.taken)
    broken = [verdict for verdict in state.verdicts[stage.name] if not verdict.holds]
    obstacle = _obstacle_in(state, stage, broken) or _bound_reached(spec, state, stage)
    if obstacle:
        return GateResponse(corpus, None, obstacle)
    share = min(MOST_REPLAY, max(LEAST_REPLAY, 2 * stage.mix.replay.share))
    return GateResponse(corpus, share, f"{stage.name}: {', '.join(map(describe_broken, broken))}")


def _obstacle_in(state: RunState, stage: Stage, broken: list[Verdict]) -> str:
    """Return why more replay would not mend a stage; "" where it may."""
    replayed, rule = {source.corpus for source in stage.mix.replayed}, stage.mix.replay
    if not rule.share:
        before = known_corpora(state.use_before(stage), rule, rule.retired, stage.corpora)
        replayed = {corpus for corpus, _ in before}
    for verdict in broken:
        named = f"{verdict.gate} of {verdict.subject}"
        if verdict.value is None or verdict.gate not in _FORGETTING:
            return f"{named} is nothing that more replay would mend"
        if verdict.gate == "max_forgetting" and verdict.subject not in replayed:
            return f"{named} is broken, and {verdict.subject} is not replayed"
    if not replayed:
        return "there is nothing to replay"
    if stage.mix.unreplayed:
        return "the corpora that it replays are at their replay limit"
    if rule.share >= MOST_REPLAY:
        return f"its replay share is {rule.share:.0%} already"
    return ""


def _bound_reached(spec: RunSpec, state: RunState, stage: Stage) -> str:
    """Return the bound that another try would exceed; "" where there is none."""
    gates, done = spec.gates, state.corpora[stage.corpora[0]].retries
    if done >= gates.max_retries:
        return f"it was trained again {done} of {gates.max_retries} times"
    most = gates.retry_tokens
    if most is not None:
        steps = (done + 1) * stage.steps
        if steps > most.steps(stage.steps, spec.tokens_per_step):
            tokens = steps * spec.tokens_per_step
            return f"its retries would make {tokens:,} tokens, more than {most}"
    return ""
