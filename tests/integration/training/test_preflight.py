"""Machines are measured by real processes that exchange over gloo."""

from __future__ import annotations

from perennial.training.preflight import measure
from tests.support.gloo import run_on

PLACES = ["a", "a", "b", "c"]


def check_measured() -> None:
    import torch.distributed as dist

    mine = measure(PLACES)
    rank = dist.get_rank()
    assert mine.flops > 1e6
    assert (mine.inside is None) == (PLACES[rank] != "a")
    assert (mine.between is None) == (rank == 1), "the first rank of a machine meets the others"
    assert all(speed is None or speed > 1e3 for speed in mine)


def test_every_rank_measures_its_part() -> None:
    run_on(len(PLACES), check_measured)
