"""`perennial upgrade`: what the installed software makes of the trunk's last steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perennial.cli.command import AsJson, DryRun, Overrides, RunFile, open_run, print_preview
from perennial.cli.console import out, print_json

if TYPE_CHECKING:
    from perennial.audit.upgrade import StackComparison


def upgrade(
    run_file: RunFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Take the trunk's last steps again under the installed software, and record what differs."""
    run = open_run(run_file, overrides)
    if dry_run:
        print_preview(run, run.plan_upgrade())
        return
    done = run.upgrade()
    if as_json:
        print_json(done.to_dict())
    else:
        _print_comparison(done, run_file)


def _print_comparison(done: StackComparison, run_file: str) -> None:
    length = "1 step" if done.steps == 1 else f"{done.steps:,} steps"
    source = done.source or "the run's beginning"
    out.print(f"steps     {length} from {source} to {done.checkpoint}", markup=False)
    if not done.before:
        out.print("before    not recorded: it was trained by an earlier version")
        out.print(f"now       {', '.join(map(' '.join, done.after.items()))}", markup=False)
    else:
        out.print(f"changes   {', '.join(done.changes) or 'none'}", markup=False)
    if done.same:
        out.print("same      every weight and the optimizer's state, bit by bit")
    else:
        worst = max(done.losses, key=lambda its: abs(its.after - its.before), default=None)
        place = f", at step {worst.step:,}: {worst.before:.6f}, {worst.after:.6f}" if worst else ""
        out.print(f"loss      differs by at most {done.loss:.2g} nats per token{place}")
        out.print(
            f"weights   differ by at most {done.largest:.2g}, by {done.relative:.2g} of their norm"
        )
    if not done.is_rounding:
        out.print(
            "notice    other orders of adding up do not make so much; find out which version does "
            "before the trunk goes on"
        )
    out.print(f"next      perennial run {run_file}   go on under this software", markup=False)
