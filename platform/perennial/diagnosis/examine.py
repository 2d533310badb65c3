"""Look at everything that a run needs, one thing after the other; nothing is started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perennial.controller.context import Workspace
from perennial.controller.ray_cluster import check_fits
from perennial.diagnosis.machine import Diagnosis, judge_machine, read_machine
from perennial.diagnosis.places import (
    document_of,
    examine_address,
    examine_cluster,
    examine_secrets,
    examine_store,
    examine_tracking,
    list_addresses,
    refusal,
)
from perennial.errors import InputError, PerennialError
from perennial.telemetry.mlflow_observer import tracking_places, tracking_uri

if TYPE_CHECKING:
    from perennial.config import RunSpec


def examine(spec: RunSpec | None, where: str = "") -> Iterator[Diagnosis]:
    """Yield what was found, in the order in which a run would need it.

    Args:
        spec: the run file; None to look at the machine and the cluster alone.
        where: path of the run file, for messages.
    """
    address = os.environ.get("RAY_ADDRESS")
    training = spec.training if spec else None
    facts = read_machine()
    yield from judge_machine(facts, training, alone=address is None)
    if training is not None:
        try:
            check_fits(training, facts.cpus)
        except InputError as small:
            yield from refusal("machine", "CPUs", small)
    if address is None:
        yield Diagnosis("cluster", "RAY_ADDRESS", "ok", "not set: a run uses this machine alone")
    else:
        yield from examine_cluster(address, training)
    if spec is not None:
        yield from _examine_run(spec, where)


def _examine_run(spec: RunSpec, where: str) -> Iterator[Diagnosis]:
    yield from examine_secrets(document_of(spec))
    try:
        work = Workspace(spec, where)
    except (PerennialError, OSError) as refused:
        yield from refusal("store", spec.store, refused)
        return
    yield from examine_store(work)
    uri = ""
    try:
        tracking_places(work)  # packages and folders of other services
        if "mlflow" in spec.tracking.to:
            uri = tracking_uri(work)
            yield examine_tracking(uri)
    except InputError as wrong:
        yield from refusal("network", "tracking", wrong)
    known = {*list_addresses(uri)}
    for named in list_addresses(document_of(spec)):
        if named not in known:
            yield examine_address(named)
