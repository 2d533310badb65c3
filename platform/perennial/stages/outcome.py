"""What the ledger says a run has achieved: matrix, rates, tokens, pictures. Mostly pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from perennial.corpora import load_tokenizer
from perennial.evaluation import HeldoutLoss, LossMatrix
from perennial.evaluation import measure as measure_losses
from perennial.schedules import from_dict
from perennial.stages.history import History
from perennial.stages.history import read_history as history_of
from perennial.stages.jobs import order_of
from perennial.stages.machine import RunState, Stage
from perennial.stages.workspace import Workspace
from perennial.training.checkpoint import latest_step

if TYPE_CHECKING:
    from perennial.evaluation.pictures import RatePoint, StageTokens
    from perennial.evaluation.style import Picture
    from perennial.spec import RunSpec

_PROMPTS_PER_CORPUS = 2
_CURVE_POINTS = 600
"""Points of a stage's curve in a picture, at most."""


def matrix(state: RunState) -> LossMatrix:
    """The stage x corpus held-out losses, and those of releases."""
    stages = tuple(
        (stage.name, _losses(state.losses.get(stage.name, {})))
        for stage in state.stages
        if stage.name in state.losses
    )
    releases = tuple((r.name, _losses(r.losses)) for r in state.releases)
    together = {s.name: s.corpora for s in state.stages if len(s.corpora) > 1}
    return LossMatrix(stages, releases, together)


def measure(work: Workspace, folder: str, corpora: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Held-out losses of a checkpoint or release, ready for the ledger."""
    work.use_ray()
    losses = measure_losses(
        work.store,
        folder,
        corpora,
        work.spec.corpora.sequence_length,
        work.spec.evaluation.documents,
        references(work.state),
    )
    return {corpus: asdict(loss) for corpus, loss in losses.items()}


def untrained_nats(work: Workspace) -> float:
    """Loss of a model that knows nothing and finds every token of the vocabulary as likely."""
    return math.log(load_tokenizer(work.store).vocabulary)


def references(state: RunState) -> dict[str, str]:
    """By corpus, the checkpoint at the end of its own stage, which forgetting is counted from."""
    trained = [stage for stage in state.stages if stage.name in state.ends]
    return {name: state.ends[stage.name] for stage in trained for name in stage.corpora}


def tokens_by_source(state: RunState, sequence_length: int) -> dict[str, dict[str, Any]]:
    """By stage: `new` tokens in all and by corpus, and `replayed` tokens by corpus."""
    told = {}
    for stage in state.stages:
        trained = state.trained(stage, stage.last_step)
        counts = {corpus: count * sequence_length for corpus, count in trained.items()}
        new = {corpus: counts.pop(corpus) for corpus in stage.corpora}
        told[stage.name] = {"new": sum(new.values()), "new_by_corpus": new, "replayed": counts}
    return told


def gated(state: RunState) -> dict[str, Any] | None:
    """The stage that a gate stopped and its verdicts, or None."""
    stage = state.gated
    if stage is None:
        return None
    verdicts = state.verdicts[stage.name]
    return {"stage": stage.name, "corpora": list(stage.corpora), "verdicts": verdicts}


def read_history(work: Workspace) -> History:
    """How the run's stages went."""
    return history_of(work.store, work.state, work.spec.tokens_per_step)


def rate_points(stages: Sequence[Stage]) -> list[RatePoint]:
    """The trunk's learning rate, thinned out to what a picture can show."""
    from perennial.evaluation.pictures import RatePoint

    points = []
    for stage in stages:
        schedule = from_dict(stage.schedule)
        stride = max(1, stage.mix.steps // _CURVE_POINTS)
        steps = [*range(stage.first_step, stage.last_step, stride), stage.last_step - 1]
        points += [
            RatePoint(step, schedule.eta(step), schedule.phase(step), stage.name) for step in steps
        ]
    return points


def pictures(state: RunState, sequence_length: int, history: History) -> dict[str, Picture]:
    """Pictures of the run by name; none before the first stage was evaluated."""
    from perennial.evaluation import curves
    from perennial.evaluation import pictures as draw

    told = matrix(state)
    if not any(losses for _, losses in told.stages):
        return {}
    sources = stage_tokens(state, sequence_length)
    found = {
        "matrix": draw.loss_heat_map(told),
        "losses": draw.loss_lines(told, sources[: len(told.stages)]),
        "learning-rate": draw.learning_rate(rate_points(state.stages), _branches(state)),
        "tokens": draw.tokens_by_source(sources),
    }
    if len(told.stages) > 1:
        found["transfer"] = draw.learned_and_forgotten(told)
    if history.losses:
        found["train-loss"] = curves.train_loss(history.losses)
    if history.times:
        found["time"] = curves.time_spent(history.times)
    return found


def _branches(state: RunState) -> dict[str, list[tuple[int, float]]]:
    """(step, eta) of every annealed release, by name."""
    branches = {}
    for release in state.releases:
        if release.steps:
            anneal = from_dict(release.schedule)
            first = release.schedule["start_step"]
            steps = range(first, first + release.steps)
            branches[release.name] = [(step, anneal.eta(step)) for step in steps]
    return branches


def stage_tokens(state: RunState, sequence_length: int) -> list[StageTokens]:
    """Tokens by source of every stage."""
    from perennial.evaluation.pictures import StageTokens

    return [
        StageTokens(name, tokens["new_by_corpus"], tokens["replayed"])
        for name, tokens in tokens_by_source(state, sequence_length).items()
    ]


def track(work: Workspace) -> None:
    """Keep the matrix and the pictures in the store and with the lineage's MLflow run."""
    told = matrix(work.state)
    length = work.spec.corpora.sequence_length
    history = read_history(work)
    drawn = pictures(work.state, length, history)
    files = {f"{name}.png": picture.png() for name, picture in drawn.items()} | {
        "times.json": json.dumps([asdict(time) for time in history.times], indent=1).encode(),
        "matrix.json": json.dumps(told.to_dict(untrained_nats(work)), indent=1).encode(),
        "matrix.csv": told.to_csv().encode(),
        "tokens.json": json.dumps(tokens_by_source(work.state, length), indent=1).encode(),
        "spec.json": work.spec.model_dump_json(indent=1).encode(),
    }
    run = work.tracker.parent_run()
    for name, data in files.items():
        work.store.write(f"report/{name}", data)
        run.artifact(data, name)
    for index, (_, losses) in enumerate(told.stages):
        step = work.state.stages[index].last_step
        heldout = {f"heldout/{c}": loss.nats_per_token for c, loss in losses.items()}
        run.log(step, heldout, work.spec.tokens_per_step)
        forgetting = told.average_forgetting(index)
        if forgetting is not None:
            run.log(step, {"forgetting/average": forgetting}, work.spec.tokens_per_step)


def track_stage(work: Workspace, stage: Stage) -> None:
    """Log a stage's losses, scores and samples with its own MLflow run."""
    state = work.state
    run = work.tracker.child(stage.name, run_id=stage.tracking_run)
    scores = score_metrics(state.stage_scores.get(stage.name, []))
    values = heldout_metrics(state.losses[stage.name]) | scores
    run.log(stage.last_step, values, work.spec.tokens_per_step)
    if samples := state.stage_samples.get(stage.name):
        run.artifact(sample_text(samples), "samples.txt")


def sample_text(samples: Sequence[dict[str, Any]]) -> bytes:
    """Samples as plain text."""
    lines = [f"[{s['corpus'] or 'prompt'}] {s['prompt']} ...{s['text']}" for s in samples]
    return "\n\n".join(lines).encode()


def sampling(spec: RunSpec) -> dict[str, Any]:
    """What every stage and release writes: from fixed prompts, so that they compare."""
    tokens = spec.release.sample_tokens
    return {
        "prompts": {"": spec.evaluation.prompts} if tokens else {},
        "prompts_per_corpus": _PROMPTS_PER_CORPUS if tokens else 0,
        "sample_tokens": tokens,
    }


def scores_before(state: RunState, stage: Stage) -> list[dict[str, Any]]:
    """Scores of the checkpoint that a stage started from."""
    start = next((s.name for s in state.stages if state.ends.get(s.name) == stage.start), "")
    return state.stage_scores.get(start, [])


def score_metrics(scores: Sequence[dict[str, Any]]) -> dict[str, float]:
    """MLflow metrics of lm-eval scores, with their standard errors."""
    found: dict[str, float] = {}
    for score in scores:
        if "value" in score:
            key = f"tasks/{score['task']}/{score['metric']}"
            values = {key: score["value"], f"{key}_stderr": score["stderr"]}
            found |= {name: value for name, value in values.items() if value is not None}
    return found


def position(work: Workspace) -> dict[str, Any] | None:
    """Where the trunk stands: stage, step and phase of its last committed checkpoint."""
    if not work.state.stages:
        return None
    stage = work.state.stages[-1]
    step = latest_step(work.store, stage.folder)
    if step is None:
        return {"stage": stage.name, "step": stage.first_step, "phase": "starting"}
    phase = from_dict(stage.schedule).phase(step - 1)
    return {"stage": stage.name, "step": step, "phase": phase}


def told_states(work: Workspace) -> dict[str, str]:
    """What a person reads of each corpus: its state, and how far it is."""
    state, told = work.state, {}
    for name, corpus in state.corpora.items():
        match corpus.state:
            case "training":
                where = position(work) or {}
                told[name] = f"training ({where['phase']}, step {where['step']:,})"
            case "failed":
                when = corpus.next_try or "waits for `retry`"
                told[name] = f"failed (attempt {corpus.attempt} of {corpus.attempts}, next {when})"
            case "passed" | "retired":
                told[name] = _released(state, name) or corpus.state
            case "ready" if not order_of(work.spec).trains(name):
                told[name] = "measured only"
            case other:
                told[name] = other
    return told


def _released(state: RunState, corpus: str) -> str:
    """`releasing` or `released` when the end of a corpus's stage is."""
    stage = state.stage_of(corpus)
    if state.corpora[corpus].state == "retired":
        return ""
    mine = [b.name for b in state.branches.values() if b.source == state.ends[stage.name]]
    if not mine:
        return ""
    return "releasing" if any(name in state.releasing for name in mine) else "released"


def heldout_metrics(losses: dict[str, dict[str, Any]]) -> dict[str, float]:
    """MLflow metrics of held-out losses."""
    nats = {f"heldout/{name}": loss["nats_per_token"] for name, loss in losses.items()}
    bits = {f"heldout_bits_per_byte/{n}": loss["bits_per_byte"] for n, loss in losses.items()}
    return nats | bits


def parameters(spec: RunSpec, stage: Stage) -> dict[str, object]:
    """MLflow parameters of a stage: what decided its result."""
    return {
        "corpus": ", ".join(stage.corpora),
        "first_step": stage.first_step,
        "steps": stage.mix.steps,
        "global_batch": stage.mix.global_batch,
        "sequence_length": spec.corpora.sequence_length,
        "replay": stage.mix.replay.share,
        "optimizer": stage.optimizer,
        "start": stage.start or "random weights",
        **{f"schedule.{name}": value for name, value in stage.schedule.items()},
    }


def _losses(cells: dict[str, dict[str, Any]]) -> dict[str, HeldoutLoss]:
    return {corpus: HeldoutLoss.from_dict(cell) for corpus, cell in cells.items()}
