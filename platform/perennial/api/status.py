"""The state of a run, read from its store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perennial.controller.decisions import choices
from perennial.controller.loop import todo
from perennial.controller.source_poller import open_sources, utc_now
from perennial.evaluation.kept_samples import find_undrawn
from perennial.report.compare import baseline_gap
from perennial.report.compared_run import read_run
from perennial.runs import summary
from perennial.runs.history import StageTime, goodput
from perennial.runs.lease import read_heartbeat
from perennial.runs.ledger import moment
from perennial.runs.transitions import ON_THE_TRUNK
from perennial.training.machines import read_machines

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.evaluation import LossMatrix
    from perennial.evaluation.budget import MeanForgetting
    from perennial.evaluation.compare import Gap
    from perennial.evaluation.scores import Score
    from perennial.runs.state import RunState, Stage
    from perennial.runs.unattended.replay_share import ShareDecision
    from perennial.sources import SourceStatus
    from perennial.training.machines import MachineRecord


@dataclass(frozen=True)
class StageStatus:
    """A stage of the trunk.

    Attributes:
        corpora: those that it trains.
        state: of its corpora, such as `passed`.
        tokens: of the whole stage.
        replay: share of its sequences that are replayed, 0 to 1.
        share_decision: why, where the share was measured.
        losses: held-out nats per token by corpus; empty before its evaluation.
        adaptation: loss on its own corpora; None before its evaluation.
        forgetting: mean rise of the loss on earlier corpora, with its error and over how many;
            None without one.
    """

    name: str
    corpora: tuple[str, ...]
    state: str
    tokens: int
    replay: float
    losses: Mapping[str, float]
    adaptation: float | None
    forgetting: MeanForgetting | None
    share_decision: ShareDecision | None


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes:
        name: of the run.
        store: URL of its store.
        inbox: URL of its inbox.
        has_own_inbox: the inbox is not a folder of the store.
        corpora: state of each corpus, with how far it is.
        reasons: why a corpus is in its state, where the ledger has a reason.
        pending: corpora that have no stage yet, or whose stage failed.
        epoch, controller: number and name of the controller that took charge last.
        held: the process that is in charge now, with its last heartbeat; "" without one.
        gated: the stage that a gate stopped, with its verdicts; None without one.
        choices: commands that decide about that stage, each with its effect.
        trunk: stage, step and phase of the last checkpoint; None before the first stage.
        matrix: held-out losses of the last stages on every corpus, and of each stage before them
            on its own corpora; and of the last releases.
        earlier: number of the trunk's stages before those that are shown.
        stages: the last stages of the trunk.
        rates: learning rates over the trunk's life, evenly spaced.
        tokens: by stage, new and replayed tokens by corpus.
        releases: keys of the releases' folders.
        scores: lm-eval scores by release.
        times: where the time of each stage went, as of the last evaluation.
        goodput: share of the time in steps that count; None where it is not known.
        gap: to the baseline of the run file; None without one.
        saved: share of the compute of retraining at every arrival that was not spent; None without
            a baseline.
        undrawn: by corpus, the user's function that did not draw the last samples, and why.
        sources: the run file's sources.
        machines: what the last day has shown of machines that workers were on, by Ray's id.
        next: what `run` would do.
    """

    name: str
    store: str
    inbox: str
    has_own_inbox: bool
    corpora: Mapping[str, str]
    reasons: Mapping[str, str]
    pending: Sequence[str]
    epoch: int
    controller: str
    held: str
    gated: Mapping[str, Any] | None
    choices: Sequence[tuple[str, str]]
    trunk: Mapping[str, Any] | None
    matrix: LossMatrix
    earlier: int
    stages: Sequence[StageStatus]
    rates: Sequence[float]
    tokens: Mapping[str, Mapping[str, Any]]
    releases: Sequence[str]
    scores: Mapping[str, Sequence[Score]]
    times: Sequence[StageTime]
    goodput: float | None
    gap: Gap | None
    saved: float | None
    undrawn: Mapping[str, str]
    sources: Sequence[SourceStatus]
    machines: Mapping[str, MachineRecord]
    next: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "store": self.store,
            "corpora": self.corpora,
            "reasons": self.reasons,
            "controller": {"epoch": self.epoch, "name": self.controller, "held": self.held},
            "gated": self.gated,
            "trunk": self.trunk,
            "earlier_stages": self.earlier,
            "matrix": self.matrix.to_dict(),
            "tokens": self.tokens,
            "shares": {
                stage.name: asdict(stage.share_decision)
                for stage in self.stages
                if stage.share_decision is not None
            },
            "releases": list(self.releases),
            "scores": self.scores,
            "undrawn": self.undrawn,
            "gap": None if self.gap is None else self.gap.to_dict(),
            "saved": self.saved,
            "times": [asdict(time) for time in self.times[self.earlier :]],
            "sources": [asdict(source) for source in self.sources],
            "machines": {
                name: {**asdict(record), "speed": record.speed and record.speed._asdict()}
                for name, record in self.machines.items()
            },
            "next": list(self.next),
        }


def read_status(work: Workspace, last: int | None = None) -> RunStatus:
    """Return the state of a run; reads only.

    Args:
        work: the run.
        last: number of stages that are shown, counted from the end of the trunk; default all.
    """
    state = work.ledger.read()
    earlier = 0 if last is None else max(0, len(state.stages) - last)
    states = summary.describe_states(work.store, work.spec, state)
    shown = len(state.stages) - earlier
    matrix = summary.matrix(state, shown)
    times = _read_times(work)
    gap = baseline_gap(work.spec, work.store, state)
    costs = None if gap is None else read_run(work.spec, work.store, state)
    return RunStatus(
        name=work.spec.name,
        store=work.store.url,
        inbox=work.inbox.url,
        has_own_inbox=bool(work.spec.inbox),
        corpora=states,
        reasons={name: corpus.reason for name, corpus in state.corpora.items() if corpus.reason},
        pending=list(_pending(state)),
        epoch=state.epoch,
        controller=state.controller,
        held=_read_holder(work, state),
        gated=summary.gated(work.spec, state),
        choices=choices(state, work.where),
        trunk=summary.position(work.store, state),
        matrix=matrix,
        earlier=earlier,
        stages=list(_stages(work, state, matrix, states, earlier)),
        rates=summary.trunk_rates(state.stages),
        tokens=summary.tokens_by_source(state, work.spec.corpora.sequence_length, shown),
        releases=[release.folder for release in state.releases],
        scores=state.scores,
        times=times,
        goodput=goodput(times),
        gap=gap,
        saved=None if costs is None else costs.bill.saved,
        undrawn=_undrawn(state),
        sources=[source.status(utc_now()) for source in open_sources(work)],
        machines=read_machines(work.store, time.time()),
        next=todo(work),
    )


def _read_holder(work: Workspace, state: RunState) -> str:
    beat = read_heartbeat(work.store, state.lease)
    if beat is None or beat.holder.is_gone:
        return ""
    return f"{beat.holder}, last heartbeat {moment(beat.modified.isoformat())}"


def _undrawn(state: RunState) -> dict[str, str]:
    last = [*state.stages[-1:], *state.stages[-2:-1]]  # the last one may not be measured yet
    samples = next((s for x in last if (s := state.stage_samples.get(x.name))), [])
    return find_undrawn([*samples, *(s for r in state.releases[-1:] for s in r.samples)])


def _pending(state: RunState) -> Iterator[str]:
    for name, corpus in state.corpora.items():
        if corpus.stands_at not in ON_THE_TRUNK or corpus.state == "failed":
            yield name


def _stages(
    work: Workspace, state: RunState, matrix: LossMatrix, states: Mapping[str, str], earlier: int
) -> Iterator[StageStatus]:
    for index, stage in enumerate(state.stages[earlier:], start=earlier):
        measured = stage.name in state.losses
        losses = dict(matrix.stages[index][1]) if measured else {}
        yield StageStatus(
            name=stage.name,
            corpora=stage.corpora,
            state=states[stage.corpora[0]].split(" ")[0],
            tokens=stage.mix.steps * stage.mix.global_batch * work.spec.corpora.sequence_length,
            replay=_replay_share(stage),
            losses={corpus: loss.nats_per_token for corpus, loss in losses.items()},
            adaptation=matrix.adaptation(index) if measured else None,
            forgetting=matrix.mean_forgetting(index) if measured else None,
            share_decision=stage.share_decision,
        )


def _replay_share(stage: Stage) -> float:
    replayed = sum(source.sequences for source in stage.mix.replayed)
    return replayed / (stage.mix.steps * stage.mix.global_batch)


def _read_times(work: Workspace) -> list[StageTime]:
    from pydantic import TypeAdapter

    try:
        # The report wrote it and can write it again: what cannot be read is not there.
        return TypeAdapter(list[StageTime]).validate_json(work.store.read("report/times.json"))
    except (FileNotFoundError, ValueError):
        return []
