"""The verbs, and what every verb has in common: files, overrides, JSON, exit codes."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ParamSpec

import typer

from perennial import __version__
from perennial.cli.console import answers_alone
from perennial.errors import PerennialError, Terminated

P = ParamSpec("P")

app = typer.Typer(
    name="perennial",
    help="Keeps a language model in training for as long as data keeps arriving.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunFile = Annotated[
    Path, typer.Argument(metavar="RUN_FILE", help="The run file, such as pipelines/quickstart.yaml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value ...]", help="Fields that replace the file's"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved run file and what would be done")
]


def verb(function: Callable[P, None]) -> Callable[P, None]:
    """Register a verb whose failures end in a line and an exit code: 2 input, 143 SIGTERM, 1."""

    @app.command(name=function.__name__.replace("_", "-"))
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with answers_alone():
                function(*args, **kwargs)
        except KeyboardInterrupt:
            _fail("stopped; the same command goes on from the last checkpoint", 1)
        except SystemExit as ended:
            if ended.code not in (
                signal.SIGTERM,
                Terminated.exit_code,
            ):  # Ray's handler, and the trainer's
                raise
            _fail(
                "stopped; the same command goes on from the last checkpoint", Terminated.exit_code
            )
        except Terminated as ended:
            _fail(str(ended), ended.exit_code)
        except PerennialError as failed:
            _fail(str(failed), failed.exit_code)

    return wrapped


def _fail(line: str, code: int) -> None:
    print(f"perennial: {' '.join(line.split())}", file=sys.stderr)
    raise typer.Exit(code)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


from perennial.cli import (  # noqa: E402 - the verbs register themselves with `app`
    compare,
    decide,
    evaluate,
    ingest,
    land,
    plan,
    release,
    report,
    run,
    simulate,
    status,
    track,
    tune,
    ui,
    verify,
)

__all__ = [
    "app",
    "compare",
    "decide",
    "evaluate",
    "ingest",
    "land",
    "plan",
    "release",
    "report",
    "run",
    "simulate",
    "status",
    "track",
    "tune",
    "ui",
    "verify",
]
