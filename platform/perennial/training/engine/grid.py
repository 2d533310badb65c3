"""The two dimensions of a worker group: ranks that read rows of their own, and ranks of one group.

`training.tensor_parallel` ranks that follow each other compute a model together, each with a part
of its matrices. They read the same rows, and stand for one worker wherever rows are divided.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch.distributed as dist

from perennial.errors import InputError


@dataclass(frozen=True)
class Grid:
    """The place of a rank.

    rank, world_size: of the process among all workers.
    tensor: number of ranks that compute a model together; 1 where each has a whole one.
    """

    rank: int
    world_size: int
    tensor: int = 1

    @classmethod
    def here(cls, tensor: int) -> Grid:
        """Return the place of this process."""
        return cls(dist.get_rank(), dist.get_world_size(), tensor)

    @property
    def data_rank(self) -> int:
        """Return the number of this rank's group, which says what rows it reads."""
        return self.rank // self.tensor

    @property
    def data_size(self) -> int:
        """Return the number of groups."""
        return self.world_size // self.tensor

    @property
    def leads(self) -> bool:
        """Return whether this is the rank that speaks for its group where ranks are summed."""
        return self.rank % self.tensor == 0

    def check_nodes(self) -> None:
        """Refuse a group that lies on several nodes. A collective.

        Its ranks exchange every layer's activations, which a network between nodes is too slow for.

        Raises:
            InputError: on every rank (`tensor-group-split`).
        """
        if self.tensor == 1:
            return
        nodes: list[str] = [""] * self.world_size
        dist.all_gather_object(nodes, os.environ.get("NODE_RANK", "0"))
        for first in range(0, self.world_size, self.tensor):
            if len(set(nodes[first : first + self.tensor])) > 1:
                raise InputError(
                    "run file",
                    "training.tensor_parallel",
                    f"workers {first} to {first + self.tensor - 1} compute one model together, and "
                    "lie on several nodes",
                    f"give nodes room for a multiple of {self.tensor} workers",
                    code="tensor-group-split",
                )
