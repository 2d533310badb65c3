"""What a run did, in MLflow, W&B and TensorBoard: a parent run a lineage, child runs of stages.

Nothing here makes training wait or fail: calls put their rows in a bounded queue a service, and a
thread delivers them, waits out a service that is slow or down, and says at the end what is missing.
"""

from perennial.redaction import hide_secrets
from perennial.tracking.destinations import Destination, check_package, tensorboard_in, wandb_in
from perennial.tracking.outbox import Receipt, Status
from perennial.tracking.tracker import (
    TrackedRun,
    Tracker,
    open_tracker,
    page_of_lineage,
    prepare,
)
from perennial.tracking.uris import default_uri, own_uri, ui_command
from perennial.tracking.written_samples import remove_samples

__all__ = [
    "Destination",
    "Receipt",
    "Status",
    "TrackedRun",
    "Tracker",
    "check_package",
    "default_uri",
    "hide_secrets",
    "open_tracker",
    "own_uri",
    "page_of_lineage",
    "prepare",
    "remove_samples",
    "tensorboard_in",
    "ui_command",
    "wandb_in",
]
