"""`perennial run` and `perennial watch`: train every corpus that has landed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.causes import describe
from perennial.cli.command import (
    AsJson,
    DryRun,
    Overrides,
    Reschedule,
    RunFile,
    TakeOver,
    ending_of,
    open_run,
    print_preview,
)
from perennial.cli.console import (
    log,
    out,
    print_gate,
    print_json,
    print_json_line,
    print_matrix,
    print_tokens,
)
from perennial.errors import Busy, InputError, Superseded

if TYPE_CHECKING:
    from perennial.api.results import TrainingSummary, WatchedLook


Interval = Annotated[
    str,
    typer.Option(
        "--interval", metavar="DURATION", help="Time between two looks: 90s, 10m, 6h, or seconds"
    ),
]
_NUMBER = re.compile(r"\d+(\.\d+)?")
_SHORTEST = 0.1
"""seconds between two looks, at least"""


def run(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    reschedule: Reschedule = False,
    take_over: TakeOver = False,
) -> None:
    """Train and evaluate every stage that is not done yet, in order. Safe to repeat and kill."""
    opened = open_run(run_file, overrides)
    if dry_run:
        print_preview(opened, opened.plan_advance())
        return
    _print_end(opened.advance(reschedule=reschedule, take_over=take_over), run_file, as_json)


def watch(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    reschedule: Reschedule = False,
    take_over: TakeOver = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, then end")] = False,
    interval: Interval = "60s",
    webhook: Annotated[
        int | None,
        typer.Option(
            "--webhook",
            min=1,
            max=65535,
            metavar="PORT",
            help="Look at once whenever an S3 event is posted to this port",
        ),
    ] = None,
) -> None:
    """Pull the sources that are due and poll the inbox: each corpus that lands becomes a stage.

    With --json every look is a line: what was trained, or what kept it from that.
    """
    seconds = read_interval(interval)
    opened = open_run(run_file, overrides)
    if dry_run:
        print_preview(opened, opened.plan_advance())
        return
    if once:
        summary = opened.watch_once(reschedule=reschedule, take_over=take_over)
        _print_end(summary, run_file, as_json)
        return

    said = ""

    def print_look(look: WatchedLook) -> None:
        nonlocal said
        # What is met again at every look is printed once.
        failure, before = _one_line(look.failure), said
        said = failure
        if as_json:
            print_json_line(look_document(look, seconds))
        elif look.summary is not None:
            _print_summary(look.summary, run_file, as_json)
        elif failure == before and failure:
            return
        elif isinstance(look.failure, Busy | Superseded):
            log.print(f"standing by: {failure}", soft_wrap=True, markup=False)
        elif failure:
            log.print(f"perennial: {failure}", soft_wrap=True, markup=False)
        log.print(f"watching {look.inbox}, next look in {seconds:g} s", soft_wrap=True)

    opened.watch(
        print_look,
        interval_seconds=seconds,
        webhook_port=webhook,
        reschedule=reschedule,
        take_over=take_over,
    )


def read_interval(text: str) -> float:
    """Return the seconds of `90s`, `10m`, `6h`, `7d`, or of a plain number of seconds.

    Raises:
        InputError: it is none of these, or less than a tenth of a second.
    """
    from perennial.config.cron import parse_duration

    try:
        seconds = float(text) if _NUMBER.fullmatch(text) else parse_duration(text).total_seconds()
    except ValueError as wrong:
        raise _refuse_interval(str(wrong)) from None
    if seconds < _SHORTEST:
        raise _refuse_interval(f"{text} is less than {_SHORTEST:g} s")
    return seconds


def _refuse_interval(problem: str) -> InputError:
    return InputError(
        "command line", "--interval", problem, "give a time such as 90s, 10m or 6h",
        code="interval-invalid",
    )  # fmt: skip


def look_document(look: WatchedLook, interval_seconds: float) -> dict[str, Any]:
    """Return a look of a watch as a document.

    Args:
        look: what was done at it, or kept it from that.
        interval_seconds: time until the next one.
    """
    failure = None
    if look.failure is not None:
        ending = ending_of(look.failure)
        failure = ending.to_dict() if ending else {"message": _one_line(look.failure)}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "inbox": look.inbox,
        "trained": look.summary.to_dict() if look.summary is not None else None,
        "failure": failure,
        "next_look_seconds": interval_seconds,
    }


def _one_line(failure: Exception | None) -> str:
    return "" if failure is None else str(ending_of(failure) or describe(failure))


def _print_end(summary: TrainingSummary, run_file: str, as_json: bool) -> None:
    """Print a summary; a stage that a gate stopped ends the command with exit code 1."""
    _print_summary(summary, run_file, as_json)
    if summary.gated:
        raise typer.Exit(1)


def _print_summary(summary: TrainingSummary, run_file: str, as_json: bool) -> None:
    if as_json:
        print_json(summary.to_dict())
        return
    if not summary.trained and not summary.gated and not summary.waiting:
        known = ", or holds nothing new" if summary.nothing_new else ""
        out.print(f"nothing to do: every corpus that landed is trained{known}")
    if summary.matrix.stages:
        print_matrix(summary.matrix)
        print_tokens(summary.tokens)
    out.print(f"store     {summary.store}")
    out.print(f"pictures  {summary.store}/report/")
    if summary.gated:
        print_gate(summary.gated, summary.choices)
        return
    for line in summary.waiting:
        out.print(f"waiting   {line}", markup=False)
    out.print(f"next      perennial land {run_file} NAME FILES...   another corpus")
    out.print(f"          perennial release {run_file}               anneal and export the trunk")
    out.print(f"          perennial ui {run_file}                    curves in MLflow")
