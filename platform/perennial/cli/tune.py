"""`perennial tune`: what should the next stage use?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

from perennial.cli.app import AsJson, DryRun, Overrides, verb
from perennial.cli.console import log, out, print_json
from perennial.cli.opening import workspace
from perennial.config.search import Point, TuningSpec

if TYPE_CHECKING:
    from perennial.controller.context import Workspace
    from perennial.search.begin import Search
    from perennial.search.results import Outcome
    from perennial.search.space import Space
    from perennial.search.trials import Bench
    from perennial.search.tune_runner import Rounds
    from perennial.tracking import Run, Tracker

TuningFile = Annotated[
    Path,
    typer.Argument(metavar="TUNING_FILE", help="The tuning file, such as tuning/quickstart.yaml"),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="A local folder for the advice and the picture")
]


@verb
def tune(
    tuning_file: TuningFile,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Search rate, replay and anneal of the next stage; the front, and advice for three tastes."""
    from perennial.config import load
    from perennial.search.begin import begin, plan_search
    from perennial.search.space import space_of

    spec = load(tuning_file, TuningSpec, overrides or ())
    with workspace(Path(spec.run), ()) as work:
        search = plan_search(work, str(tuning_file), spec, ingest=not dry_run)
        space = space_of(spec, search.here)
        _check_space(search.bench, space)
        if dry_run:
            print_json({"spec": spec.model_dump(mode="json"), **_told(search, space)})
            return
        work.use_ray()
        bench = begin(work, spec, search)
        log.print(f"search {spec.name}: trials of {bench.steps:,} steps off {bench.source}")
        rounds = _run(work, spec, search, bench, space)
        found = _found(work, spec, search, bench, space, rounds)
        _command(work, spec, search, found, output)
        _keep(work, found, output)
    if as_json:
        print_json(found)
        return
    _print(found, bench.rate)


def _check_space(bench: Bench, space: Space) -> None:
    """Every corner is a stage that can be; InputError before anything is trained."""
    for point in space.grid():
        bench.run_spec(point)


def _told(search: Search, space: Space) -> dict[str, Any]:
    bench = search.bench
    return {
        "source": bench.source,
        "corpus": bench.corpus,
        "old": list(bench.old),
        "rungs": list(search.rungs),
        "stage_steps": search.stage_steps,
        "points": [point.name for point in space.grid()],
    }


def _run(work: Workspace, spec: TuningSpec, search: Search, bench: Bench, space: Space) -> Rounds:
    """Every trial that the searcher asks for; what was measured before is not trained again."""
    from perennial.search.tune_runner import Trials, run_search

    trials = Trials(bench, spec.concurrent, spec.seeds, _say)
    earlier = [
        trial.branched.point
        for trial in work.state.searches.of(spec.name).values()
        if trial.branched.source == bench.source
    ]
    begun = [point for point in earlier if not point.seed and space.holds(point)]
    return run_search(trials, spec, space, search.rungs, work.spec.tokens_per_step, begun)


def _say(line: str) -> None:
    log.print(line, soft_wrap=True, markup=False)


def _found(
    work: Workspace, spec: TuningSpec, search: Search, bench: Bench, space: Space, rounds: Rounds
) -> dict[str, Any]:
    """The search's result, from what the ledger and the store have of its trials."""
    from perennial.search.results import Setting, result

    work.ledger.read()
    setting = Setting(
        search=spec.name,
        corpus=bench.corpus,
        after=bench.origin.stages[-1].name,
        source=bench.source,
        step=bench.first_step,
        rate=bench.rate,
        objectives=(spec.objectives[0], spec.objectives[1]),
        before=_documents(work, bench.source, bench.old),
        steps=bench.steps,
        stage_steps=search.stage_steps,
        tokens_per_step=work.spec.tokens_per_step,
        seed=spec.seed,
    )
    first = rounds[search.rungs[0]]
    outcomes = [_outcome(work, spec, bench, rounds, point) for point in first]
    return result(setting, space, outcomes)


def _outcome(
    work: Workspace, spec: TuningSpec, bench: Bench, rounds: Rounds, point: Point
) -> Outcome:
    from perennial.search.results import Outcome

    trials = [
        work.state.searches.trials[bench.branched(replace(point, seed=seed)).trial]
        for seed in range(spec.seeds)
    ]
    by_steps = {steps: told[point] for steps, told in rounds.items() if point in told}
    last = [trial.at(bench.first_step + max(by_steps)) for trial in trials]
    checkpoints = tuple(tried.checkpoint for tried in last if tried is not None)
    corpora = (bench.corpus, *bench.old)
    return Outcome(
        point=point,
        by_steps=by_steps,
        trained_steps=sum(trial.trained_steps for trial in trials),
        folder=trials[0].folder,
        checkpoints=checkpoints,
        documents=tuple(_documents(work, checkpoint, corpora) for checkpoint in checkpoints),
    )


def _documents(work: Workspace, checkpoint: str, corpora: Sequence[str]) -> dict[str, Any]:
    """Nats and tokens `(documents, 2)` by corpus."""
    import numpy as np

    from perennial.evaluation.cache import kept_losses

    kept = {corpus: kept_losses(work.store, checkpoint, corpus) for corpus in corpora}
    return {
        corpus: np.array([(loss.nats, loss.tokens) for loss in losses])
        for corpus, losses in kept.items()
        if losses
    }


def _keep(work: Workspace, found: dict[str, Any], output: Path | None) -> None:
    """The result, its picture and the advice: in the store, in MLflow, and in a local folder."""
    from perennial.report.figures.pareto import pareto
    from perennial.search.results import place
    from perennial.telemetry.mlflow_observer import mlflow_of

    files = {
        "result.json": json.dumps(found, indent=1).encode(),
        "pareto.png": pareto(found).png(),
        **{
            f"{each['taste']}.yaml": yaml.safe_dump(each["fragment"], sort_keys=False).encode()
            for each in found["advice"]
        },
    }
    tracker = mlflow_of(work).tracker(work)
    run = tracker.child(f"tune-{found['search']}", params=_params(found))
    for name, data in files.items():
        work.store.write(place(found["search"], name), data)
        run.artifact(data, name)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(data)
    run.log(0, {f"cost/{name}": float(value) for name, value in found["cost"].items()})
    run.finish()
    for trial in found["trials"]:
        _track(work, tracker, run, found, trial)


def _command(
    work: Workspace, spec: TuningSpec, search: Search, found: dict[str, Any], output: Path | None
) -> None:
    """Say, of each piece of advice, which command follows it."""
    for each in found["advice"]:
        eta = found["trials"][each["trial"]]["point"]["eta"]
        insist = " --reschedule" if search.bench.is_whole and eta != search.here.eta else ""
        if output is not None:
            part = str(output / f"{each['taste']}.yaml")
        elif work.store.is_local:
            part = f"{work.store.url}/{each['file']}"
        else:
            part = " ".join(_overrides(each["fragment"]))
        each["command"] = f"perennial run {spec.run} {part}{insist}"


def _overrides(fragment: dict[str, Any], above: str = "") -> list[str]:
    """A fragment as the words of a command line."""
    words = []
    for key, value in fragment.items():
        name = f"{above}{key}"
        words += _overrides(value, f"{name}.") if isinstance(value, dict) else [f"{name}={value}"]
    return words


def _params(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("corpus", "after", "source", "objectives")}


def _track(
    work: Workspace, tracker: Tracker, parent: Run, found: dict[str, Any], trial: dict[str, Any]
) -> None:
    """A trial's run under its search's: what it tried, its curve, and what was measured."""
    from perennial.runs.metrics import stored_rows

    name = f"tune-{found['search']}/{trial['name']}"
    run = tracker.child(name, params=trial["point"], parent=parent)
    length = work.spec.tokens_per_step
    run.log_rows(stored_rows(work.store, trial["folder"], length))
    step = found["step"] + trial["steps"]
    run.log(step, dict(zip(found["objectives"], trial["values"], strict=True)))
    run.tag("front", str(trial["on_front"]))
    run.finish()


def _print(found: dict[str, Any], rate: str) -> None:
    varied = [
        name
        for name in ("weighting", "anneal")
        if len({trial["point"][name] for trial in found["trials"]}) > 1
    ]
    title = f"{found['search']}: nats per token, less is better, with 95% intervals"
    table = Table(title=title, title_justify="left")
    for column in (rate, "replay", *varied, "tokens", *found["objectives"], "front"):
        table.add_column(column, justify="right")
    for i, trial in enumerate(found["trials"]):
        point = trial["point"]
        table.add_row(
            f"{point['eta']:.4g}",
            f"{point['replay']:.1%}",
            *(point[name] or "-" for name in varied),
            f"{trial['tokens']:,}",
            _value(trial, 0, ".3f"),
            _value(trial, 1, "+.3f"),
            _mark(found, i, trial),
        )
    out.print(table)
    _print_law(found["law"])
    cost = found["cost"]
    out.print(
        f"cost      {cost['trained_tokens']:,} tokens: {cost['share']:.0%} of the stage that it "
        f"advises, {cost['of_budget']:.0%} of all trials at the whole budget",
        markup=False,
    )
    for each in found["advice"]:
        out.print(f"{each['taste']:9} {found['trials'][each['trial']]['name']}", markup=False)
        out.print(f"          {each['command']}", markup=False)


def _mark(found: dict[str, Any], i: int, trial: dict[str, Any]) -> str:
    """Where a trial stands, and the share of the bootstrap in which it is on the front."""
    if not trial["finished"]:
        return "stopped"
    place = "knee" if i == found["knee"] else "front" if trial["on_front"] else "beaten"
    return f"{place} {trial['front_share']:.0%}"


def _value(trial: dict[str, Any], k: int, form: str) -> str:
    told = f"{trial['values'][k]:{form}}"
    if trial["low"] is None:
        return told
    return f"{told} ± {(trial['high'][k] - trial['low'][k]) / 2:.3f}"


def _print_law(law: dict[str, Any] | None) -> None:
    if law is None:
        return
    errors = " and ".join(f"{error:.3f}" for error in law["errors"])
    out.print(
        f"law       predicts left-out trials to {errors} nats per token "
        f"({len(law['held_out'])} measurements)",
        markup=False,
    )
