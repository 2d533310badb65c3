"""What one rank finds is known to all of them, so that none waits for another in a collective."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from perennial.errors import Damaged, Unsound

T = TypeVar("T")


def agreed(action: Callable[[], T]) -> T:
    """Run `action` on every rank; what it raises on any of them ends it on all.

    Raises:
        Unsound: any rank found damage.
        RuntimeError: another rank failed otherwise; it raises what failed.
    """
    failure, done = None, []
    try:
        done.append(action())
    except Exception as raised:
        # The others would wait for this rank in the next collective.
        failure = raised
    damage = failure if isinstance(failure, Damaged) else None
    text = None if failure is None else f"{type(failure).__name__}: {failure}"
    of_ranks: list[tuple[Damaged | None, str | None]] = [(None, None)] * dist.get_world_size()
    dist.all_gather_object(of_ranks, (damage, text))
    if failure is not None and damage is None:
        raise failure
    if damages := [of_rank for of_rank, _ in of_ranks if of_rank is not None]:
        raise Unsound(damages)
    for rank, (_, other) in enumerate(of_ranks):
        if other is not None:
            raise RuntimeError(f"worker {rank} failed: {other}")
    return done[0]
