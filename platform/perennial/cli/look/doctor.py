"""`perennial doctor`: what is wrong with machine, GPU, cluster, store and network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, Overrides
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.diagnosis.machine import Diagnosis

OptionalRunFile = Annotated[
    str | None, typer.Argument(metavar="[RUN_FILE]", help="A run file, or a run's store, as well")
]


def doctor(
    run_file: OptionalRunFile = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    """Say what is wrong with this machine, its GPUs, cluster, store and network. Starts nothing."""
    from perennial.api.open import diagnose

    diagnoses = diagnose(run_file, overrides or ())
    wrong = sum(its.verdict == "wrong" for its in diagnoses)
    if as_json:
        print_json({"sound": not wrong, "diagnoses": [its.to_dict() for its in diagnoses]})
    else:
        _show(diagnoses)
        again = f"perennial doctor {run_file or ''}".rstrip()
        after = f"perennial plan {run_file}" if run_file else "perennial doctor RUN_FILE"
        out.print(f"next      {again}   when that is mended" if wrong else f"next      {after}")
    if wrong:
        raise typer.Exit(1)


def _show(diagnoses: Sequence[Diagnosis]) -> None:
    width = max(len(its.area) for its in diagnoses)
    for its in diagnoses:
        remedy = f"; {its.remedy}" if its.remedy else ""
        line = f"{its.verdict:<7} {its.area:<{width}} {its.subject}: {its.state}{remedy}"
        style = {"wrong": "red", "notice": "yellow"}.get(its.verdict, "")
        out.print(line, markup=False, soft_wrap=True, style=style)
