"""`perennial status`: what the store says of a run, on one screen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import out, print_json
from perennial.cli.opening import read_run
from perennial.cli.story import HEIGHT, WIDTH, Row, Story, screen

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.evaluation import HeldoutLoss, LossMatrix
    from perennial.runs.state import Stage
    from perennial.sources import SourceStatus


@verb
def status(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Stages, phases, tokens, losses, what is running, what is next. Reads only."""
    from perennial.cli.console import Screen
    from perennial.controller.context import Workspace
    from perennial.controller.loop import todo
    from perennial.controller.source_poller import open_sources, utc_now
    from perennial.runs import summary

    work = Workspace(read_run(run_file, overrides), str(run_file), [Screen()])
    state = work.ledger.read()
    next_steps = todo(work)
    sources = [source.status(utc_now()) for source in open_sources(work)]
    if as_json:
        length = work.spec.corpora.sequence_length
        print_json(
            {
                "store": work.store.url,
                "corpora": summary.told_states(work.store, work.spec, work.state),
                "reasons": {n: c.reason for n, c in state.corpora.items() if c.reason},
                "controller": {"epoch": state.epoch, "name": state.controller},
                "gated": summary.gated(state),
                "trunk": summary.position(work.store, work.state),
                "matrix": summary.matrix(state).to_dict(),
                "tokens": summary.tokens_by_source(state, length),
                "releases": [release.folder for release in state.releases],
                "scores": state.scores,
                "times": _times(work),
                "sources": [asdict(source) for source in sources],
                "next": next_steps,
            }
        )
        return
    size = shutil.get_terminal_size((WIDTH, HEIGHT))
    told = _story(work, str(run_file), sources, next_steps)
    for line in screen(told, max(size.columns, WIDTH), max(size.lines, HEIGHT)):
        out.print(line, markup=False)


def _story(
    work: Workspace, run_file: str, sources: Sequence[SourceStatus], next_steps: Sequence[str]
) -> Story:
    from perennial.runs import summary

    state, told = work.state, summary.matrix(work.state)
    where = summary.position(work.store, work.state)
    standing = (
        f"{where['stage']}, step {where['step']:,}, {where['phase']} phase; losses in nats a token"
        if where
        else "no stage yet"
    )
    rates = [point.eta for point in summary.rate_points(state.stages)]
    return Story(
        head=f"{work.spec.name}: {standing}",
        corpora=told.corpora,
        stages=[_stage_row(work, told, index, stage) for index, stage in enumerate(state.stages)],
        releases=[Row(name, _nats(losses)) for name, losses in told.releases],
        rates=rates,
        rate=f"now {rates[-1]:.2e}" if rates else "",
        notes=[
            *_gate_notes(work),
            *_together_notes(work),
            *_corpus_notes(work),
            *_source_notes(sources),
            *_result_notes(work),
        ],
        places=list(_places(work, run_file, next_steps)),
    )


def _stage_row(work: Workspace, told: LossMatrix, index: int, stage: Stage) -> Row:
    replayed = sum(source.sequences for source in stage.mix.replayed)
    measured = stage.name in work.state.losses
    return Row(
        name=stage.name,
        losses=_nats(dict(told.stages[index][1])) if measured else {},
        own=told.adaptation(index) if measured else None,
        forgetting=told.average_forgetting(index) if measured else None,
        state=_stage_state(work, stage),
        tokens=stage.mix.steps * work.spec.tokens_per_step,
        replay=replayed / (stage.mix.steps * stage.mix.global_batch),
    )


def _stage_state(work: Workspace, stage: Stage) -> str:
    from perennial.runs import summary

    return summary.told_states(work.store, work.spec, work.state)[stage.corpora[0]].split(" ")[0]


def _nats(losses: dict[str, HeldoutLoss] | Any) -> dict[str, float]:
    return {corpus: loss.nats_per_token for corpus, loss in losses.items()}


def _together_notes(work: Workspace) -> Iterator[tuple[str, str]]:
    """The corpora of the stages that train several."""
    for stage in work.state.stages:
        if len(stage.corpora) > 1:
            yield "together", f"{stage.name}: {', '.join(stage.corpora)}"


def _corpus_notes(work: Workspace) -> Iterator[tuple[str, str]]:
    """Corpora that have no stage yet, or whose stage is in trouble."""
    from perennial.runs import summary
    from perennial.runs.transitions import ON_THE_TRUNK

    for name, told in summary.told_states(work.store, work.spec, work.state).items():
        corpus = work.state.corpora[name]
        if corpus.stands_at not in ON_THE_TRUNK or corpus.state == "failed":
            reason = f": {corpus.reason}" if corpus.reason else ""
            yield "corpus", f"{name} {told}{reason}"


def _gate_notes(work: Workspace) -> Iterator[tuple[str, str]]:
    from perennial.runs import summary

    gated = summary.gated(work.state)
    for verdict in gated["verdicts"] if gated else ():
        if not verdict["holds"]:
            value = "not measured" if verdict["value"] is None else f"{verdict['value']:+.3f}"
            error = "" if verdict["stderr"] is None else f" ± {verdict['stderr']:.3f}"
            bound = f"{verdict['gate']} of {verdict['subject']} is {verdict['bound']:g}"
            reason = f" ({verdict['reason']})" if verdict["reason"] else ""
            yield "stopped", f"{gated['stage'] if gated else ''}: {value}{error}, {bound}{reason}"


def _source_notes(sources: Sequence[SourceStatus]) -> Iterator[tuple[str, str]]:
    for source in sources:
        told = [
            f"next {source.next_due[:16].replace('T', ' ')} UTC" if source.next_due else "",
            f"{source.waiting_bytes:,} bytes wait" if source.waiting_bytes else "",
            f"landed {', '.join(source.landed[-2:])}" if source.landed else "",
            f"watermark {source.watermark}" if source.watermark else "",
        ]
        told.insert(0, source.error)
        yield "source", f"{source.name}: {'; '.join(filter(None, told)) or 'nothing yet'}"


def _result_notes(work: Workspace) -> Iterator[tuple[str, str]]:
    from perennial.report.compare import baseline_gap
    from perennial.report.compare_page import number
    from perennial.runs.history import StageTime, goodput

    for scores in list(work.state.scores.values())[-1:]:
        ran = [score for score in scores if "value" in score]
        told = [f"{score['task']} {score['metric']} {score['value']:.3f}" for score in ran]
        told += [f"{len(scores) - len(ran)} not run"] if len(ran) < len(scores) else []
        yield "tasks", ", ".join(told)
    times = [StageTime(**time) for time in _times(work)]
    if (share := goodput(times)) is not None:
        restarts = [time.restarts for time in times if time.restarts is not None]
        again = f", {sum(restarts)} restarts" if len(restarts) == len(times) else ""
        yield "goodput", f"{share:.0%} of the time in steps that count{again}"
    gap = baseline_gap(work.spec, work.store, work.state)
    if gap is not None and gap.average is not None:
        theirs = f"{gap.theirs.run} at {gap.theirs.tokens:,} tokens"
        yield "gap", f"{number(gap.average)} nats per token to {theirs}"


def _times(work: Workspace) -> list[dict[str, Any]]:
    """Where the time of each stage went, as of the last evaluation."""
    try:
        found: list[dict[str, Any]] = json.loads(work.store.read("report/times.json"))
    except FileNotFoundError:
        return []
    return found


def _places(work: Workspace, run_file: str, next_steps: Sequence[str]) -> Iterator[tuple[str, str]]:
    from perennial.controller.decisions import choices

    yield "store", work.store.url
    if work.spec.inbox:
        yield "inbox", work.inbox.url
    for release in work.state.releases[-1:]:
        yield "release", f"{work.store.url}/{release.folder}"
    gated = choices(work.state, run_file)
    for command, _ in gated:
        yield "next", command
    for step in next_steps[:1]:
        more = f" (and {len(next_steps) - 1} more)" if len(next_steps) > 1 else ""
        yield "next", f"{step}: perennial run {run_file}{more}"
    if not gated and not next_steps:
        yield "next", f"perennial land {run_file} NAME FILES..."
    yield "see", f"perennial report {run_file}   (or ui)"
