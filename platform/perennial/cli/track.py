"""`perennial track`: bring MLflow up to what the store knows."""

from __future__ import annotations

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import out, print_json
from perennial.cli.opening import workspace


@verb
def track(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Log the whole run again, to an MLflow that missed a part or lost it. Safe to repeat."""
    from perennial.report.publish import catch_up
    from perennial.telemetry.mlflow_observer import mlflow_of, tracking_uri
    from perennial.tracking import hide_secrets

    with workspace(run_file, overrides) as work:
        stages = catch_up(work, mlflow_of(work).tracker(work))
        uri = hide_secrets(tracking_uri(work))
    if as_json:
        print_json({"tracking": uri, "stages": stages})
        return
    out.print(f"MLflow at {uri} has {len(stages)} stages: {', '.join(stages) or '-'}")
    out.print(f"next   perennial ui {run_file}")
