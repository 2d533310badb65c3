"""Files that every node needs, read from the store once: each node reads a part for all of them.

A restart of many nodes would otherwise ask the store for the same weights once a node. Here each
node reads its share of the files and sends them to the others over the group's own network (NCCL
from GPU to GPU, gloo between CPUs), in pieces, so that no rank holds more than one of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from perennial.store import Store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.agreement import agreed
from perennial.training.checkpoint.manifest import CheckpointManifest

_PIECE_BYTES = 64 << 20


def is_first_of_node() -> bool:
    """Return whether this rank is the one that fetches files for the ranks of its node."""
    return int(os.environ["LOCAL_RANK"]) == 0


def copy_to_nodes(
    store: Store, key: str, manifest: CheckpointManifest, names: Collection[str], folder: Path
) -> None:
    """Copy files of a checkpoint to a folder on every node. A collective.

    Args:
        store: the run's store.
        key: of the checkpoint.
        manifest: of it.
        names: the files.
        folder: local folder of the first rank of a node; the others' stay as they are.

    Raises:
        Unsound: a file is missing or altered in the store.
        RuntimeError: a file was altered on its way between nodes.
    """
    first = is_first_of_node()
    marks: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(marks, first)
    leaders = [rank for rank, mark in enumerate(marks) if mark]
    shares = divide({name: manifest.files[name].size_bytes for name in names}, len(leaders))
    own = shares[leaders.index(dist.get_rank())] if first else []
    agreed(lambda: checkpoints.download(store, key, manifest, own, folder))
    if len(leaders) == 1:
        return
    group: Any = dist.new_group(leaders)
    altered: list[str] = []
    if first:
        for leader, share in zip(leaders, shares, strict=True):
            for name in share:
                digest = _send(folder / name, manifest.files[name].size_bytes, leader, group)
                if digest not in (None, manifest.files[name].sha256):
                    altered.append(name)
        dist.destroy_process_group(group)
    agreed(lambda: _check(altered))


def divide(sizes: Mapping[str, int], parts: int) -> list[list[str]]:
    """Return files in parts of about equal bytes: the largest first, to the part with least."""
    shares: list[list[str]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        shares[least].append(name)
        loads[least] += sizes[name]
    return shares


def _send(path: Path, size_bytes: int, source: int, group: Any) -> str | None:
    """Send a file from rank `source` to the others; return the digest of what this rank received.

    A collective of the group's ranks; None on the source.
    """
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    piece = torch.empty(min(_PIECE_BYTES, size_bytes), dtype=torch.uint8, device=device)
    sends, digest = dist.get_rank() == source, hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb" if sends else "wb") as file:
        for at in range(0, size_bytes, _PIECE_BYTES):
            part = piece[: min(_PIECE_BYTES, size_bytes - at)]
            if sends:
                data = bytearray(file.read(len(part)))
                part.copy_(torch.frombuffer(data, dtype=torch.uint8))
            dist.broadcast(part, source, group)
            if not sends:
                received = part.cpu().numpy().data
                digest.update(received)
                file.write(received)
    return None if sends else digest.hexdigest()


def _check(altered: list[str]) -> None:
    if altered:
        raise RuntimeError(f"{altered[0]} was altered on its way from the node that read it")
