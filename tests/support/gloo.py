"""Real processes that can talk to each other (gloo), and a group of this process alone."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import start_processes

_IMPORTED_ONCE = ["deepspeed", "transformers", "ray.train", "ray.data", "safetensors.torch"]
"""What ranks import, which takes seconds; a server imports it once and forks every rank."""


@pytest.fixture(scope="session")
def group_of_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, for engines that a test builds itself."""
    import torch.distributed as dist

    ranks = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
    place: Path = tmp_path_factory.mktemp("group") / "store"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ranks.items():
            patch.setenv(name, value)
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def run_on(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` on every rank; an exception on any rank fails the caller."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(_IMPORTED_ONCE)
    arguments = (world_size, port, dict(os.environ), function, arguments)
    start_processes(  # type: ignore[no-untyped-call]
        _rank, args=arguments, nprocs=world_size, start_method="forkserver"
    )


def _rank(
    rank: int,
    world_size: int,
    port: int,
    environment: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    # The server's environment is that of the first call.
    os.environ.clear()
    os.environ |= environment
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    try:
        function(*arguments)
        dist.barrier()  # nobody leaves while another still needs it
    finally:
        dist.destroy_process_group()
