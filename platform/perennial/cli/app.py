"""The `perennial` command: every verb, in the order of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from perennial.cli.command import as_command
from perennial.cli.data.land import land
from perennial.cli.data.repair import repair
from perennial.cli.data.track import track
from perennial.cli.decide.corpus import accept, hold, refuse, retire, retry, unretire
from perennial.cli.decide.erase import erase
from perennial.cli.decide.release import promote
from perennial.cli.decide.store import fork, gc, move
from perennial.cli.decide.trunk import rewind
from perennial.cli.decide.upgrade import upgrade
from perennial.cli.look.compare import compare
from perennial.cli.look.doctor import doctor
from perennial.cli.look.explain import explain
from perennial.cli.look.plan import plan
from perennial.cli.look.report import report
from perennial.cli.look.simulate import simulate
from perennial.cli.look.status import status
from perennial.cli.look.trace import trace
from perennial.cli.look.ui import ui
from perennial.cli.look.verify import verify
from perennial.cli.run.evaluate import evaluate
from perennial.cli.run.ingest import ingest
from perennial.cli.run.init import init
from perennial.cli.run.quickstart import quickstart
from perennial.cli.run.release import release
from perennial.cli.run.run import run, watch
from perennial.cli.run.study import study
from perennial.cli.run.tune import tune
from perennial.version import __version__

app = typer.Typer(
    name="perennial",
    help="Keeps a language model in training for as long as data keeps arriving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

PANELS: dict[str, list[Callable[..., None]]] = {
    "Begin": [init, quickstart, explain, doctor],
    "Before compute": [plan, simulate, tune],
    "Train": [land, run, watch, status, ingest],
    "Release and measure": [release, evaluate, report, compare],
    "Many runs": [study],
    "Decide about a corpus": [hold, retry, accept, refuse, retire, unretire],
    "Day two": [rewind, promote, fork, move, gc, erase, upgrade],
    "Check and track": [verify, repair, trace, ui, track],
}
"""Verbs in the order of work, by their panel in `perennial --help`."""

for _panel, _verbs in PANELS.items():
    for _verb in _verbs:
        app.command(_verb.__name__, rich_help_panel=_panel)(as_command(_verb))


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
