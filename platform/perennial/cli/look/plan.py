"""`perennial plan`: what a run will do and cost, before any compute."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from perennial.cli.command import AsJson, Overrides, RunFile, check_output, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.api.results import RunPlan
    from perennial.planning.plan import Plan, SourcePlan

_WIDTH = 72
_HEIGHT = 6
"""Characters of the learning rate's curve in a terminal."""
_MEMORY = ("weights", "gradients", "optimizer", "activations", "temporaries")


def plan(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    mfu: Annotated[
        float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the peak that is reached")
    ] = 0.4,
    peak_tflops: Annotated[
        float, typer.Option("--peak-tflops", min=0.1, help="Peak TFLOP/s of one GPU")
    ] = 312.0,
    gpu_memory: Annotated[
        float | None,
        typer.Option("--gpu-memory", min=0.1, help="GiB of one GPU; refuse what cannot fit"),
    ] = None,
    workers_per_node: Annotated[
        int,
        typer.Option("--workers-per-node", min=1, help="Workers that share a node"),
    ] = 8,
    reschedule: Annotated[
        bool, typer.Option("--reschedule", help="Plan with another schedule than the trunk's")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the learning rate into this PNG file")
    ] = None,
) -> None:
    """Predict steps, tokens by source, rates, memory and time before compute. Reads only.

    MFU and peak give the time on GPUs until the run has measured its own speed (312 TFLOP/s: A100).
    """
    from perennial.planning.plan import Hardware

    check_output(picture, "--picture")
    run = open_run(run_file, overrides)
    memory = None if gpu_memory is None else int(gpu_memory * 2**30)
    hardware = Hardware(peak_tflops * 1e12, mfu, memory, workers_per_node)
    planned = run.plan(hardware, reschedule=reschedule)
    if picture is not None:
        run.draw_rates(planned, picture)
    if as_json:
        print_json(planned.to_dict())
        return
    _print_model(planned.plan)
    if planned.plan.stages:
        _print_stages(planned.plan)
    else:
        _print_unknown(planned.plan)
        out.print("stages      none to come: no corpus has landed that is not trained")
    if planned.state.stages:
        _print_rates(planned)
    _print_memory(planned.plan)
    _print_end(planned.plan, run_file)


def _print_model(plan: Plan) -> None:
    size = plan.model
    out.print(
        f"model       {size.parameters:,} parameters, "
        f"{size.without_embeddings:,} without embeddings"
    )
    out.print(
        f"            {size.layers} layers of {size.hidden:,}, vocabulary {size.vocabulary:,}; "
        f"{plan.flops_per_token:.4g} FLOPs a token"
    )


def _print_stages(plan: Plan) -> None:
    table = Table(title="stages to come", title_justify="left")
    for column in ("stage", "size", "steps", "tokens", "time", "GPU-hours"):
        table.add_column(column, justify="left" if column in ("stage", "size") else "right")
    for stage in plan.stages:
        left = "" if stage.steps_left == stage.steps else f", {stage.steps_left:,} left"
        table.add_row(
            stage.stage,
            stage.basis,
            f"{stage.steps:,}{left}",
            f"{stage.tokens:,}",
            "unknown" if stage.seconds is None else _duration(stage.seconds),
            "-" if stage.gpu_hours is None else f"{stage.gpu_hours:,.1f}",
        )
    out.print(table)
    _print_sources(plan)
    _print_unknown(plan)


def _print_unknown(plan: Plan) -> None:
    for name in plan.unknown:
        out.print(f"unknown     {name}: its size is known once it is ingested, or by a budget")


def _print_sources(plan: Plan) -> None:
    table = Table(title="tokens by source", title_justify="left")
    for column in ("stage", "source", "tokens", "epochs", "epochs so far"):
        table.add_column(column, justify="left" if column in ("stage", "source") else "right")
    for stage in plan.stages:
        _add_sources(table, stage.stage, stage.sources, stage.corpora)
    _add_sources(table, "release", plan.annealed, [source.corpus for source in plan.annealed])
    out.print(table)
    for stage in plan.stages:
        if stage.displaced_tokens:
            out.print(
                f"{stage.stage}: replay takes the place of {stage.displaced_tokens:,} tokens "
                f"of {' and '.join(stage.corpora)}"
            )
        if stage.split:
            out.print(f"{stage.stage}: of the replay, {stage.split}")
        if stage.share_reason:
            out.print(f"{stage.stage}: replay share {stage.share_reason}")


def _add_sources(
    table: Table, name: str, sources: Sequence[SourcePlan], new: Sequence[str]
) -> None:
    for source in sources:
        table.add_row(
            name,
            source.name if source.corpus in new else f"{source.name} (replayed)",
            f"{source.tokens:,}",
            f"{source.epochs:.4f}",
            f"{source.epochs_so_far:.4f}",
        )
        name = ""


def _print_rates(planned: RunPlan) -> None:
    table = Table(title="learning rate", title_justify="left")
    for column in ("stage", "phase", "steps", "from", "to"):
        table.add_column(column, justify="left" if column in ("stage", "phase") else "right")
    for phase in planned.plan.phases:
        steps = f"{phase.first_step:,} - {phase.last_step:,}"
        table.add_row(
            phase.stage, phase.phase, steps, f"{phase.eta_first:.3e}", f"{phase.eta_last:.3e}"
        )
    release = planned.release
    if release is not None:
        last = release.start_step + release.steps - 1
        table.add_row(
            "release",
            "anneal",
            f"{release.start_step:,} - {last:,}",
            f"{release.eta_start:.3e}",
            f"{release.eta_min:.3e}",
            style="green",
        )
    out.print(table)
    last_step = planned.state.stages[-1].last_step
    points = [(point.step, point.eta) for point in planned.rates]
    for line in curve(tops(points, last_step, _WIDTH), _HEIGHT):
        out.print(f"  {line}")
    out.print(f"  step 0{f'{last_step:,}':>{_WIDTH - 6}}")


def tops(points: Sequence[tuple[int, float]], steps: int, columns: int) -> list[float]:
    """Return the highest of a curve's values in each column; one without a step has the last value.

    Args:
        points: steps below `steps`, each with its value, in their order.
        steps: number that the columns divide among themselves.
        columns: number of them.
    """
    highest: dict[int, float] = {}
    for step, value in points:
        place = step * columns // steps
        highest[place] = max(highest.get(place, value), value)
    values = [0.0]
    for place in range(columns):
        values.append(highest.get(place, values[-1]))
    return values[1:]


def curve(values: Sequence[float], height: int) -> list[str]:
    """Return values as columns of block characters, the highest one `height` lines high."""
    top = max(values) or 1.0
    eighths = [round(value / top * height * 8) for value in values]
    return [
        "".join(" ▁▂▃▄▅▆▇█"[max(0, min(8, count - 8 * line))] for count in eighths).rstrip()
        for line in reversed(range(height))
    ]


def _print_memory(plan: Plan) -> None:
    title = f"memory of one of {plan.workers} workers, GiB; this run has ZeRO {plan.zero_stage}"
    if plan.tensor_parallel > 1:
        title += f", and {plan.tensor_parallel} workers have one model"
    table = Table(title=title, title_justify="left")
    for column in ("ZeRO", *_MEMORY, "at most"):
        table.add_column(column, justify="right")
    for stage, memory in plan.memory.items():
        table.add_row(
            str(stage),
            *(_gib(getattr(memory, column)) for column in (*_MEMORY, "total")),
            style="bold" if stage == plan.zero_stage else "",
        )
    out.print(table)
    host, disk = plan.host, plan.disk
    title = f"main memory of a node of {host.workers} workers, GiB"
    _print_row(title, host, ("libraries", "training", "snapshot", "start"), host.total)
    title = "disk of that node, for temporary files, GiB"
    _print_row(title, disk, ("snapshot", "left_over", "start"), disk.node)
    title = "store, without corpora, GiB"
    _print_row(title, disk, ("checkpoints", "initial_model"), disk.store)


def _print_row(title: str, space: Any, columns: Sequence[str], total: int) -> None:
    table = Table(title=title, title_justify="left")
    for column in (*columns, "at most"):
        table.add_column(column.replace("_", " "), justify="right")
    table.add_row(*(_gib(getattr(space, column)) for column in columns), _gib(total))
    out.print(table)


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"


def _print_end(plan: Plan, run_file: str) -> None:
    speed = plan.speed
    out.print(
        "speed       unknown: no checkpoint of this run shows it, and no GPUs are stated"
        if speed is None
        else f"speed       {speed.tokens_per_second:,.0f} tokens/s ({speed.source})"
    )
    count = sum(stage.checkpoints for stage in plan.stages)
    out.print(
        f"checkpoint  {plan.checkpoint_bytes:,} bytes; {count:,} of them stay, "
        f"{_bytes(count * plan.checkpoint_bytes)}"
    )
    totals = plan.to_dict()["totals"]
    hours = "" if totals["gpu_hours"] is None else f", {totals['gpu_hours']:,.1f} GPU-hours"
    time = "" if totals["seconds"] is None else f", {_duration(totals['seconds'])}"
    out.print(f"to do       {totals['steps']:,} steps, {totals['tokens']:,} tokens{time}{hours}")
    for note in plan.notes:
        out.print(f"note        {note}")
    more = f"run {run_file}" if plan.stages or plan.unknown else f"land {run_file} NAME FILES..."
    out.print(f"next        perennial {more}", markup=False)


def _bytes(count: int) -> str:
    unit, scale = next(
        ((unit, scale) for unit, scale in (("TB", 1e12), ("GB", 1e9)) if count >= scale),
        ("MB", 1e6),
    )
    return f"{count / scale:,.2f} {unit}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.1f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.1f} days"
