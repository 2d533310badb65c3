"""`perennial tune`: search settings of the next stage, or layers of a smaller model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from perennial.cli.command import AsJson, DryRun, Overrides, open_run
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.search.layer_results import LayerSearchResult
    from perennial.search.results import LawSummary, SearchResult, SearchTrial

TuningFile = Annotated[
    Path,
    typer.Argument(metavar="TUNING_FILE", help="The tuning file, such as tuning/quickstart.yaml"),
]
Output = Annotated[
    Path | None, typer.Option("--output", help="A local folder for the advice and the picture")
]


def tune(
    tuning_file: TuningFile,
    overrides: Overrides = None,
    output: Output = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Search settings of the next stage or layers of a smaller model; print advice."""
    from perennial.config import load
    from perennial.config.search import TuningSpec
    from perennial.search.layer_results import LayerSearchResult

    spec = load(tuning_file, TuningSpec, overrides or ())
    run = open_run(spec.run, None)
    if dry_run:
        print_json(run.plan_tune(spec, tuning_file).to_dict())
        return
    result = run.tune(spec, tuning_file, output)
    if as_json:
        print_json(result.to_dict())
        return
    if isinstance(result, LayerSearchResult):
        _print_children(result)
        return
    _print_trials(result, run.spec.schedule.rate_field or "eta")
    if result.law is not None:
        _print_law(result.law)
    cost = result.cost
    out.print(
        f"cost      {cost.trained_tokens:,} tokens: {cost.share:.0%} of the stage that it "
        f"advises, {cost.of_budget:.0%} of all trials at the whole budget",
        markup=False,
    )
    for advice in result.advice:
        out.print(f"{advice.taste:9} {result.trials[advice.trial].name}", markup=False)
        out.print(f"          {advice.command}", markup=False)


def _print_trials(result: SearchResult, rate: str) -> None:
    varied = [
        name
        for name in ("weighting", "anneal")
        if len({getattr(trial.point, name) for trial in result.trials}) > 1
    ]
    title = f"{result.search}: nats per token, less is better, with 95% intervals"
    table = Table(title=title, title_justify="left")
    for column in (rate, "replay", *varied, "tokens", *result.objectives, "front"):
        table.add_column(column, justify="right")
    for i, trial in enumerate(result.trials):
        point = trial.point
        table.add_row(
            f"{point.eta:.4g}",
            f"{point.replay:.1%}",
            *(getattr(point, name) or "-" for name in varied),
            f"{trial.tokens:,}",
            _value(trial, 0, ".3f"),
            _value(trial, 1, "+.3f"),
            _mark(result, i, trial),
        )
    out.print(table)


def _mark(result: SearchResult, i: int, trial: SearchTrial) -> str:
    """Return a trial's place, and the share of the bootstrap in which it is on the front."""
    if not trial.finished:
        return "stopped"
    place = "knee" if i == result.knee else "front" if trial.on_front else "beaten"
    return f"{place} {trial.front_share:.0%}"


def _value(trial: SearchTrial, objective: int, form: str) -> str:
    text = f"{trial.values[objective]:{form}}"
    if trial.low is None or trial.high is None:
        return text
    return f"{text} ± {(trial.high[objective] - trial.low[objective]) / 2:.3f}"


def _print_law(law: LawSummary) -> None:
    errors = " and ".join(f"{error:.3f}" for error in law.errors)
    out.print(
        f"law       predicts left-out trials to {errors} nats per token "
        f"({len(law.held_out)} measurements)",
        markup=False,
    )


def _print_children(result: LayerSearchResult) -> None:
    """Print the children of an Inheritune search, the smallest at parity, and what it cost."""
    reference, cost = result.reference, result.cost
    title = f"{result.search}: held-out nats per token, with 95% intervals of what is above"
    table = Table(title=title, title_justify="left")
    for column in ("begins with", "layers", "parameters", "tokens", "FLOPs", "loss", "above"):
        table.add_column(column, justify="right")
    table.add_row(
        "reference",
        f"{reference.layers}",
        f"{reference.parameters:,}",
        f"{reference.tokens:,}",
        f"{reference.flops:.3g}",
        f"{reference.loss:.3f}",
        "",
    )
    for child in result.children:
        table.add_row(
            child.init,
            f"{child.layers}",
            f"{child.parameters:,}",
            f"{child.tokens:,}",
            f"{child.flops:.3g}",
            f"{child.loss:.3f}",
            f"{child.above:+.3f} ({child.low:+.3f} to {child.high:+.3f})",
        )
    out.print(table)
    out.print(
        f"cost      {cost.trained_tokens:,} tokens, {cost.flops:.3g} FLOPs: {cost.share:.2f} times "
        f"the reference's training; {cost.random_flops:.3g} of them for random weights",
        markup=False,
    )
    if result.smallest is None:
        out.print(
            "parity    none of these; try more layers (inheritune.last, below "
            f"{reference.layers}), or a margin (inheritune.margin)",
            markup=False,
        )
        return
    smallest = result.children[result.smallest]
    out.print(
        f"parity    {smallest.layers} of {reference.layers} layers: "
        f"{smallest.parameters / reference.parameters:.0%} of the parameters",
        markup=False,
    )
    out.print(f"          {result.command}", markup=False)
