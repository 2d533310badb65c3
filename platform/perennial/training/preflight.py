"""Measure a worker group's machines before they train: matrix products, and all-reduce.

Every rank runs `measure`, when the process group has been made. One slow machine makes all slow,
and a bandwidth of all ranks does not say which: so each machine also exchanges with two neighbours,
one after the other, and counts by the better of the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist

from perennial.training.machines import MachineSpeed

_TIMEOUT = timedelta(minutes=2)
_TIMES = 3
# By kind of device: the side of a square matrix and its type, and the bytes of an all-reduce.
_PRODUCT = {"cuda": (8192, torch.bfloat16), "cpu": (512, torch.float32)}
_EXCHANGE_BYTES = {"cuda": 256 << 20, "cpu": 4 << 20}


class RankSpeed(NamedTuple):
    """A rank's measurements; bandwidths in bytes a second, None where it took no part."""

    flops: float
    inside: float | None
    between: float | None


def measure(machines: Sequence[str]) -> RankSpeed:
    """Measure this rank's machine, together with all ranks.

    Args:
        machines: by rank, the machine of its worker.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rank = dist.get_rank()
    mine = [r for r, machine in enumerate(machines) if machine == machines[rank]]
    inside = _bandwidth(mine, device) if len(mine) > 1 else None
    met = [_bandwidth(pair, device) for pair in neighbours(machines) if rank in pair]
    return RankSpeed(_product(device), inside, max(met, default=None))


def neighbours(machines: Sequence[str]) -> list[list[int]]:
    """Return pairs of ranks, one of each machine, in which each machine meets one or two others.

    Pairs that share no rank exchange at once: first every other pair of a chain of machines, then
    the others, then the two ends, where they did not meet.

    Args:
        machines: by rank, the machine of its worker.
    """
    leaders = [machines.index(machine) for machine in dict.fromkeys(machines)]
    chain = [list(pair) for pair in pairwise(leaders)]
    ends = [[leaders[0], leaders[-1]]] if len(leaders) > 2 else []
    return [*chain[::2], *chain[1::2], *ends]


def combine(measured: Sequence[RankSpeed], machines: Sequence[str]) -> Mapping[str, MachineSpeed]:
    """Return the speed of each machine: that of its slowest rank, and of its best exchange."""
    speeds = {}
    for machine in dict.fromkeys(machines):
        own = [m for m, place in zip(measured, machines, strict=True) if place == machine]
        speeds[machine] = MachineSpeed(
            min(rank.flops for rank in own),
            min((rank.inside for rank in own if rank.inside is not None), default=None),
            max((rank.between for rank in own if rank.between is not None), default=None),
        )
    return speeds


def _product(device: torch.device) -> float:
    """Return the operations a second of a matrix product, the best of a few."""
    side, dtype = _PRODUCT[device.type]
    left, right = torch.ones(2, side, side, dtype=dtype, device=device)
    return 2 * side**3 / _best_seconds(lambda: left @ right, device)


def _bandwidth(ranks: Sequence[int], device: torch.device) -> float:
    """Return the bus bandwidth of an all-reduce among ranks; 0 where it fails."""
    group = dist.new_group(list(ranks), timeout=_TIMEOUT, use_local_synchronization=True)
    data = torch.ones(_EXCHANGE_BYTES[device.type], dtype=torch.uint8, device=device)
    try:
        seconds = _best_seconds(lambda: dist.all_reduce(data, group=group), device)
    except RuntimeError:
        return 0.0
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group(group)
    return 2 * (len(ranks) - 1) / len(ranks) * data.numel() / seconds


def _best_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few calls; the first one does not count."""
    best = float("inf")
    for number in range(_TIMES + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:
            best = min(best, time.perf_counter() - began)
    return best
