"""`perennial status`: the state of a run, on one screen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, Overrides, RunFile, open_run
from perennial.cli.console import out, print_json
from perennial.cli.look.status_screen import (
    ENDLESS,
    HEIGHT,
    WIDTH,
    Row,
    StatusScreen,
    render_lines,
)

if TYPE_CHECKING:
    from perennial.api.status import RunStatus
    from perennial.evaluation import HeldoutLoss
    from perennial.sources import SourceStatus

Note = tuple[str, str]
"""a label of one word, and a text"""

_PARTS_SHOWN = 5
_LAST = 20
"""stages that are read, so that what this costs does not grow with the trunk"""


def status(
    run_file: RunFile,
    overrides: Overrides = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every stage and every line, in place of one screen")
    ] = False,
    with_bytes: Annotated[
        bool, typer.Option("--bytes", help="List the whole store, and show its bytes by kind")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show stages, phases, tokens, losses, what is running, what is next. Reads only."""
    run = open_run(run_file, overrides)
    state = run.read_status(None if every else _LAST)
    sizes = run.measure_bytes() if with_bytes else {}
    if as_json:
        print_json(state.to_dict() | ({"bytes": sizes} if with_bytes else {}))
        return
    size = shutil.get_terminal_size((WIDTH, HEIGHT))
    height = ENDLESS if every else max(size.lines, HEIGHT)
    for line in render_lines(_screen(state, run_file), max(size.columns, WIDTH), height):
        out.print(line, markup=False)
    for kind, count in sizes.items():
        out.print(f"bytes     {kind:12} {count:>20,}", markup=False)
    if with_bytes:
        out.print(f"next      perennial gc {run_file} --dry-run   what can be let go")


def _screen(state: RunStatus, run_file: str) -> StatusScreen:
    trunk = state.trunk
    position = (
        f"{trunk['stage']}, step {trunk['step']:,}, {trunk['phase']} phase; losses in nats a token"
        if trunk
        else "no stage yet"
    )
    return StatusScreen(
        head=f"{state.name}: {position}",
        corpora=state.matrix.corpora,
        stages=[
            Row(
                name=stage.name,
                losses=stage.losses,
                own=stage.adaptation,
                forgetting=None if stage.forgetting is None else stage.forgetting.nats_per_token,
                state=stage.state,
                tokens=stage.tokens,
                replay=stage.replay,
            )
            for stage in state.stages
        ],
        origins=[_measured_row(name, losses) for name, losses in state.matrix.origins],
        releases=[_measured_row(name, losses) for name, losses in state.matrix.releases],
        others=list(_retrained(state)),
        earlier=state.earlier,
        rates=state.rates,
        rate=f"now {state.rates[-1]:.2e}" if state.rates else "",
        reasons=[
            *_gate_notes(state),
            *(note for name, note in _corpus_notes(state) if name in state.reasons),
            *(_source_note(source) for source in state.sources if source.problem),
            *(
                ("machine", record.describe())
                for record in state.machines.values()
                if record.left_out
            ),
        ],
        notes=[
            *_shared_stage_notes(state),
            *_drawn_notes(state),
            *_share_notes(state),
            *_part_notes(state),
            *(note for name, note in _corpus_notes(state) if name not in state.reasons),
            *(_source_note(source) for source in state.sources if not source.problem),
            *_result_notes(state),
            *_machine_notes(state),
        ],
        places=list(_places(state, run_file)),
    )


def _measured_row(name: str, losses: Mapping[str, HeldoutLoss]) -> Row:
    return Row(name, {corpus: loss.nats_per_token for corpus, loss in losses.items()})


def _retrained(state: RunStatus) -> Iterator[Row]:
    """Yield the row of the run file's baseline."""
    if state.gap is not None:
        theirs = state.gap.theirs
        yield _measured_row(f"retrained: {theirs.run}", theirs.losses)


def _gate_notes(state: RunStatus) -> Iterator[Note]:
    for verdict in state.gated["verdicts"] if state.gated else ():
        if verdict["gate"] == "finite":
            yield "stopped", f"{verdict['subject']}: {verdict['reason']}"
        elif not verdict["holds"]:
            value = "not measured" if verdict["value"] is None else f"{verdict['value']:+.3f}"
            error = "" if verdict["stderr"] is None else f" ± {verdict['stderr']:.3f}"
            bound = f"{verdict['gate']} of {verdict['subject']} is {verdict['bound']:g}"
            reason = f" ({verdict['reason']})" if verdict["reason"] else ""
            stage = state.gated["stage"] if state.gated else ""
            yield "stopped", f"{stage}: {value}{error}, {bound}{reason}"
    if state.gated and state.gated["response"]:
        yield "stopped", state.gated["response"]


def _shared_stage_notes(state: RunStatus) -> Iterator[Note]:
    for stage in state.stages:
        if len(stage.corpora) > 1:
            yield "together", f"{stage.name}: {', '.join(stage.corpora)}"


def _drawn_notes(state: RunStatus) -> Iterator[Note]:
    """Yield over how many corpora the last forgetting is, where a budget left some out."""
    means = [(stage.name, stage.forgetting) for stage in state.stages if stage.forgetting]
    for name, mean in means[-1:]:
        if mean.measured < mean.of:
            yield "forgot", f"{name}: {mean.describe()} earlier corpora; the others were not drawn"


def _part_notes(state: RunStatus) -> Iterator[Note]:
    """Yield what the last stage takes of the parts of each corpus that has any."""
    for stage, tokens in list(state.tokens.items())[-1:]:
        for corpus, parts in tokens.get("parts", {}).items():
            total = max(1, sum(parts.values()))
            largest = sorted(parts, key=parts.__getitem__, reverse=True)
            shown = [f"{part or 'no domain'} {parts[part] / total:.1%}" for part in largest]
            more = f" and {len(shown) - _PARTS_SHOWN} more" if len(shown) > _PARTS_SHOWN else ""
            yield "parts", f"{stage}: {corpus}: {', '.join(shown[:_PARTS_SHOWN])}{more}"


def _share_notes(state: RunStatus) -> Iterator[Note]:
    """Yield why the last stage replays as much as it does, where that was measured."""
    for stage in state.stages[-1:]:
        if stage.share_decision is not None:
            yield "replay", f"{stage.name}: {stage.share_decision.describe()}"


def _corpus_notes(state: RunStatus) -> Iterator[tuple[str, Note]]:
    """Yield by name the corpora that the table of stages does not show, or whose stage failed."""
    for name in state.pending:
        reason = f": {state.reasons[name]}" if name in state.reasons else ""
        yield name, ("corpus", f"{name} {state.corpora[name]}{reason}")


def _source_note(source: SourceStatus) -> Note:
    parts = [
        source.problem,
        f"next {source.next_due[:16].replace('T', ' ')} UTC" if source.next_due else "",
        f"{source.waiting_bytes:,} bytes wait" if source.waiting_bytes else "",
        f"landed {', '.join(source.landed[-2:])}" if source.landed else "",
        f"watermark {source.watermark}" if source.watermark else "",
    ]
    return "source", f"{source.name}: {'; '.join(filter(None, parts)) or 'nothing yet'}"


def _result_notes(state: RunStatus) -> Iterator[Note]:
    from perennial.report.compare_tables import change_text

    for scores in list(state.scores.values())[-1:]:
        measured = [score for score in scores if "value" in score]
        texts = [f"{score['task']} {score['metric']} {score['value']:.3f}" for score in measured]
        if len(measured) < len(scores):
            texts.append(f"{len(scores) - len(measured)} not run")
        yield "tasks", ", ".join(texts)
    for corpus, problem in state.undrawn.items():
        yield "samples", f"of {corpus} are not drawn: {problem}"
    if state.goodput is not None:
        restarts = [time.restarts for time in state.times if time.restarts is not None]
        again = f", {sum(restarts)} restarts" if len(restarts) == len(state.times) else ""
        yield "goodput", f"{state.goodput:.0%} of the time in steps that count{again}"
    gap = state.gap
    if gap is not None and gap.average is not None:
        same = gap.ours.tokens == gap.theirs.tokens
        at = "as many tokens" if same else f"{gap.theirs.tokens:,} tokens"
        saved = "" if state.saved is None else f"; {state.saved:.0%} less compute"
        yield "gap", f"{change_text(gap.average)} to {gap.theirs.run} with {at}{saved}"


def _machine_notes(state: RunStatus) -> Iterator[Note]:
    """Yield machines on which workers failed or lag, and how fast the others are."""
    from perennial.training.machines import describe_speed, stragglers

    used = [record for record in state.machines.values() if not record.left_out]
    lagging = stragglers({rank: s for record in used for rank, s in record.pace.items()})
    for record in used:
        if record.failures or not lagging.keys().isdisjoint(record.pace):
            yield "machine", record.describe()
    speeds = [record.speed for record in used if record.speed is not None]
    if speeds:
        by_flops = sorted(speeds, key=lambda speed: speed.flops)
        slowest, fastest = describe_speed(by_flops[0]), describe_speed(by_flops[-1])
        yield "machines", f"from {slowest}; to {fastest}" if len(speeds) > 1 else slowest


def _places(state: RunStatus, run_file: str) -> Iterator[Note]:
    is_empty = not state.stages and not state.next
    yield "store", f"{state.store}   (no run in it yet)" if is_empty else state.store
    if state.held:
        yield "held", f"by {state.held}"
    if state.has_own_inbox:
        yield "inbox", state.inbox
    for folder in state.releases[-1:]:
        yield "release", f"{state.store}/{folder}"
    for command, _ in state.choices:
        yield "next", command
    for step in state.next[:1]:
        more = f" (and {len(state.next) - 1} more)" if len(state.next) > 1 else ""
        yield "next", f"{step}: perennial run {run_file}{more}"
    if not state.choices and not state.next:
        yield "next", f"perennial land {run_file} NAME FILES..."
    if state.stages:
        yield "see", f"perennial report {run_file}   (or ui)"
