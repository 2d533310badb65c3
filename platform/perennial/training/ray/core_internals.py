"""Adapters around names that Ray Core keeps private, for processes that need not import Ray Train.

Written for Ray 2.60, as `internals` is.
"""

from __future__ import annotations

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

__all__ = ["HEAD_NODE_RESOURCE_NAME", "is_actor_alive"]


def is_actor_alive(actor_id: str) -> bool:
    """Return whether the cluster knows an actor that is not dead. Raises when it cannot be asked.

    The public State API asks Ray's dashboard, which need not run; this asks the cluster itself.
    """
    actor = ray._private.state.actors(actor_id)
    return bool(actor) and actor["State"] != "DEAD"
