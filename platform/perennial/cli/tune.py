"""`perennial tune`: what should the next stage use?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from perennial.cli.app import AsJson, DryRun, Overrides, verb
from perennial.cli.console import log, out, print_json
from perennial.cli.opening import workspace

if TYPE_CHECKING:
    from perennial.stages.workspace import Workspace
    from perennial.tuning.search import Point

TuningFile = Annotated[
    Path,
    typer.Argument(metavar="TUNING_FILE", help="The tuning file, such as tuning/quickstart.yaml"),
]


@verb
def tune(
    tuning_file: TuningFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Search eta_const and the replay share for the next stage; print the points and the front."""
    from perennial.spec import load
    from perennial.spec.tuning import TuningSpec
    from perennial.stages.trials import plan_search
    from perennial.tuning.search import Objectives, losses_before, search

    spec = load(tuning_file, TuningSpec, overrides or ())
    if dry_run:
        print_json({"spec": spec.model_dump(mode="json")})
        return
    with workspace(Path(spec.run), ()) as work:
        plan = plan_search(work, str(tuning_file), spec)
        work.use_ray()
        log.print(f"{len(plan.jobs)} trials off {plan.start}, {plan.jobs[0].mix.steps} steps each")
        documents = work.spec.evaluation.documents
        length = work.spec.corpora.sequence_length
        before = losses_before(work.store, plan.start, plan.old, length, documents)
        goals = Objectives(plan.new, plan.old, documents, before)
        points = search(work.store, plan.jobs, goals, spec.concurrent)
        _track(work, spec.name, points)
        if as_json:
            print_json({"search": spec.name, "points": [asdict(point) for point in points]})
            return
        _print_points(points, plan.new)
        best = min((p for p in points if p.on_front), key=lambda p: p.adaptation + p.forgetting)
        out.print("next      for the best sum of both, run the stage with")
        out.print(
            f"          perennial run {spec.run} --reschedule "
            f"schedule.eta_const={best.eta:g} replay.share={best.replay:.3g}"
        )


def _track(work: Workspace, name: str, points: Sequence[Point]) -> None:
    from perennial.evaluation.pictures import Trial, pareto

    trials = [
        Trial(f"eta {p.eta:g}, replay {p.replay:.0%}", p.adaptation, p.forgetting) for p in points
    ]
    parent = work.tracker.child(f"tune-{name}")
    parent.artifact(pareto(trials).png(), "pareto.png")
    parent.finish()
    for point in points:
        run = work.tracker.child(point.name, params={"eta": point.eta, "replay": point.replay})
        run.log(0, {"adaptation": point.adaptation, "forgetting": point.forgetting})
        run.finish()


def _print_points(points: Sequence[Point], corpus: str) -> None:
    table = Table(title="trials, nats per token, less is better", title_justify="left")
    for column in ("eta_const", "replay", f"loss on {corpus}", "forgetting", "front"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            f"{point.eta:g}",
            f"{point.replay:.1%}",
            f"{point.adaptation:.3f}",
            f"{point.forgetting:+.3f}",
            "*" if point.on_front else "",
        )
    out.print(table)
