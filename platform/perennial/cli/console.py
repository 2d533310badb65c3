"""Output of the verbs: progress on stderr, tables and next steps on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Table

from perennial.cli.log_lines import for_screen, write_line
from perennial.controller.observer import RunObserver
from perennial.training.metrics import progress_text

if TYPE_CHECKING:
    from perennial.controller.observer import ObservedRun
    from perennial.evaluation import HeldoutLoss, LossMatrix
    from perennial.evaluation.scores import Score
    from perennial.sources import SourceStatus
    from perennial.training.job import Job
    from perennial.training.ray.progress_actor import Progress

PLAIN_LINE_SECONDS = 5.0
_LANDED_SHOWN = 3
_BAD_SHOWN = 5
_MEASURED_STEPS = 2
"""Steps that a speed is computed from, at least: the first one also pays for what is made once."""

# Without markup: names of trials and paths may hold brackets.
log = Console(stderr=True, highlight=False, markup=False)
out = Console(highlight=False, soft_wrap=True, markup=False)


class Pace:
    """The speed of a worker group, from the seconds that its workers measured.

    Steps arrive many at a time, the first ones together with the news that the group started: the
    clock of this process says nothing of them.
    """

    def __init__(self) -> None:
        """Begin without a step."""
        self._steps = 0
        self._tokens = 0
        self._seconds = 0.0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add finished steps."""
        self._steps += len(rows)
        self._tokens += sum(row["batch_tokens"] for row in rows)
        self._seconds += sum(sum(row["seconds"].values()) for row in rows)

    def show(self, steps_left: int) -> str:
        """Return speed and time left, for the progress line; "" before enough was measured.

        Args:
            steps_left: optimizer steps until the job ends.
        """
        if self._steps < _MEASURED_STEPS or not self._seconds:
            return ""
        left = int(steps_left * self._seconds / self._steps)
        speed = f"{self._tokens / self._seconds:,.0f} tokens/s"
        return f"  {speed}  {left // 60}:{left % 60:02d} left"


class ProgressScreen(RunObserver):
    """An observer that draws one live line on a terminal, and plain lines elsewhere."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._pace = Pace()
        self._printed_at = 0.0
        self._phase = ""

    def message(self, text: str) -> None:
        """Print one line."""
        if not for_screen():
            write_line(text)
            return
        # Without markup: names of trials and paths may hold brackets.
        log.print(text, style="bold", soft_wrap=True, markup=False)

    def job_began(self, work: ObservedRun, job: Job) -> None:
        """Print the job that starts, and draw its progress."""
        self.message(
            f"training {job.name}: steps {job.first_step:,} to {job.last_step:,}, "
            f"{job.mix.steps * job.tokens_per_step:,} tokens, {job.training.workers} workers "
            "(starting them takes some seconds)"
        )
        self._phase = ""
        if log.is_terminal and for_screen():
            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}"),
                console=log,
            )
            self._task = self._bars.add_task(job.name, total=job.mix.steps, status="starting")
            self._bars.start()

    def job_progressed(self, work: ObservedRun, job: Job, progress: Progress) -> None:
        """Show steps, phase, loss, learning rate, speed and time left."""
        for step, world_size in progress.started:
            self._pace = Pace()
            if step > job.first_step:
                group = "1 worker goes" if world_size == 1 else f"{world_size} workers go"
                self.message(f"{job.name}: {group} on from step {step:,}")
        if not progress.rows:
            return
        row = progress.rows[-1]
        self._pace.add(progress.rows)
        status = self._status(job, row)
        if self._bars is not None and self._task is not None:
            self._bars.update(
                self._task,
                completed=row["step"] - job.first_step,
                status=status,
                description=job.name,
            )
        elif (
            row["phase"] != self._phase or time.monotonic() - self._printed_at > PLAIN_LINE_SECONDS
        ):
            if for_screen():
                log.print(f"{job.name}  {status}", soft_wrap=True)
            else:
                known = {name: value for name, value in row.items() if name != "seconds"}
                write_line(f"{job.name}  {status}", "info", job=job.name, **known)
            self._printed_at = time.monotonic()
        self._phase = row["phase"]

    def _status(self, job: Job, row: dict[str, Any]) -> str:
        return (
            f"{row['phase']:8} step {row['step'] - job.first_step:,}/{job.mix.steps:,}  "
            f"{progress_text(row)}{self._pace.show(job.last_step - row['step'])}"
        )

    def job_ended(self, work: ObservedRun, job: Job) -> None:
        """Print that the job is done."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        self.message(f"trained {job.name}")


@contextmanager
def stdout_for_answers() -> Iterator[None]:
    """Keep stdout for what this module prints: Ray writes there of nodes and workers that died."""
    out.file = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        out.file = None  # type: ignore[assignment]


def print_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout."""
    json.dump(document, out.file, indent=1)
    out.file.write("\n")


def print_json_line(document: dict[str, Any]) -> None:
    """Print one JSON document on a line of stdout, at once: who reads it may wait for it."""
    json.dump(document, out.file)
    out.file.write("\n")
    out.file.flush()


def print_matrix(matrix: LossMatrix) -> None:
    """Print the stage x corpus matrix, and what every stage gained and lost."""
    table = Table(title="held-out loss, nats per token (bits per byte)", title_justify="left")
    table.add_column("after")
    for corpus in matrix.corpora:
        table.add_column(corpus, justify="right")
    left_out = {matrix.stages[index][0]: matrix.left_out(index) for index in matrix.shown}
    for name, losses in matrix.rows:
        not_drawn = left_out.get(name, ())
        cells = [
            _cell(losses.get(c), "not drawn" if c in not_drawn else "-") for c in matrix.corpora
        ]
        table.add_row(name, *cells, style="green" if name.startswith("release ") else None)
    out.print(table)
    if len(matrix.stages) > 1 or matrix.base:
        _print_transfer(matrix)


def _print_transfer(matrix: LossMatrix) -> None:
    table = Table(title="gained and lost, nats per token", title_justify="left")
    table.add_column("stage")
    table.add_column("adaptation", justify="right")
    table.add_column("forgetting")
    if matrix.base:
        table.add_column("against the base")
    for index in matrix.shown:
        name, losses = matrix.stages[index]
        adaptation = matrix.adaptation(index)
        shown = "-" if adaptation is None else f"{adaptation:.3f}"
        gained = [_changes(matrix.against_base(losses))] if matrix.base else []
        lost = [_changes(matrix.forgetting(index))]
        if name in matrix.draws and (mean := matrix.mean_forgetting(index)) is not None:
            lost.append(f"mean {mean.describe()}")
        table.add_row(name, shown, "; ".join(lost), *gained)
    for name, losses in matrix.releases if matrix.base else ():
        gained = [_changes(matrix.against_base(losses))]
        table.add_row(f"release {name}", "", "", *gained, style="green")
    out.print(table)


def _changes(changes: Mapping[str, float | None]) -> str:
    known = [f"{corpus} {nats:+.3f}" for corpus, nats in changes.items() if nats is not None]
    return ", ".join(known) or "-"


def _cell(loss: HeldoutLoss | None, absent: str) -> str:
    if loss is None:
        return absent
    bits = "" if loss.bits_per_byte is None else f" ({loss.bits_per_byte:.2f})"
    return f"{loss.nats_per_token:.3f}{bits}"


def print_gate(gated: Mapping[str, Any], choices: Sequence[tuple[str, str]]) -> None:
    """Print the numbers of a stage that a gate stopped, and the commands that decide about it."""
    table = Table(title=f"{gated['stage']} is stopped by its gates", title_justify="left")
    for column in ("gate", "of", "measured", "standard error", "bound", ""):
        numeric = column in ("measured", "standard error", "bound")
        table.add_column(column, justify="right" if numeric else "left")
    for verdict in gated["verdicts"]:
        error = verdict["stderr"]
        table.add_row(
            verdict["gate"],
            verdict["subject"],
            "-" if verdict["value"] is None else f"{verdict['value']:.3f}",
            "-" if error is None else f"{error:.3f}",
            f"{verdict['bound']:.3f}",
            "holds" if verdict["holds"] else f"broken {verdict['reason']}".strip(),
        )
    out.print(table)
    if gated["response"]:
        out.print(gated["response"], markup=False)
    out.print("The run is paused. Choose one:")
    for command, effect in choices:
        out.print(f"next      {command}", markup=False)
        out.print(f"          {effect}", markup=False)


def print_tokens(tokens_by_stage: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the tokens by source of every stage."""
    table = Table(title="tokens by source", title_justify="left")
    table.add_column("stage")
    table.add_column("new", justify="right")
    table.add_column("replayed")
    for stage, tokens in tokens_by_stage.items():
        new, replayed = (
            [f"{corpus} {count:,}" for corpus, count in tokens[part].items()]
            for part in ("new_by_corpus", "replayed")
        )
        shown = f"{tokens['new']:,}" if len(new) == 1 else ", ".join(new)
        table.add_row(stage, shown, ", ".join(replayed) or "-")
    out.print(table)


def print_sources(sources: Sequence[SourceStatus]) -> None:
    """Print the state of every source; nothing for a run without one."""
    if not sources:
        return
    table = Table(title="sources", title_justify="left")
    for column in ("source", "next due (UTC)", "last pull", "waiting", "landed", "what is wrong"):
        table.add_column(column)
    for source in sources:
        table.add_row(
            source.name,
            _moment(source.next_due),
            _moment(source.pulled_at),
            f"{source.waiting_bytes:,} bytes" if source.waiting_bytes else "-",
            ", ".join(source.landed[-_LANDED_SHOWN:]) or "-",
            source.problem,
        )
    out.print(table)
    for source in sources:
        for file in source.bad_files[:_BAD_SHOWN]:
            again = f"again at {_moment(file.next_try)} UTC"
            out.print(f"bad file  {source.name}: {file.reason}; {again}", markup=False)
        if source.watermark:
            out.print(f"watermark {source.name}: {source.watermark}", markup=False)


def _moment(text: str) -> str:
    return text[:16].replace("T", " ") or "-"


def print_scores(release: str, scores: Sequence[Score]) -> None:
    """Print lm-eval scores of a release, or why a task was not run.

    Args:
        release: its name.
        scores: one for each task and metric.
    """
    table = Table(title=f"lm-eval on release {release}", title_justify="left")
    for column in ("task", "metric", "score", "standard error", "items"):
        table.add_column(column)
    for score in scores:
        if "reason" in score:
            table.add_row(score["task"], "not run", score["reason"], "", "")
            continue
        error = score["stderr"]
        table.add_row(
            score["task"],
            score["metric"],
            f"{score['value']:.3f}",
            "-" if error is None else f"{error:.3f}",
            str(score["samples"]),
        )
    out.print(table)
