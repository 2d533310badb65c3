"""What a run did, in MLflow: one parent run a lineage, one child run a stage, release or trial.

Nothing here makes training wait or fail: calls put their rows in a bounded queue, and a thread
delivers them, waits out an MLflow that is slow or down, and says at the end what is missing.
"""

from perennial.redaction import hide_secrets
from perennial.tracking.outbox import Receipt, Status
from perennial.tracking.tracker import TrackedRun, Tracker, open_tracker, prepare
from perennial.tracking.uris import default_uri, own_uri, ui_command

__all__ = [
    "Receipt",
    "Status",
    "TrackedRun",
    "Tracker",
    "default_uri",
    "hide_secrets",
    "open_tracker",
    "own_uri",
    "prepare",
    "ui_command",
]
