"""Seconds to a peer's first batch at a position, in a process of its own; see `data_resume.py`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_loader_arms import import_mosaicml

SEQUENCE = 1024
BATCH = 32


def main() -> None:
    peer, data, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    open_loader = {"mosaicml": _mosaicml, "litdata": _litdata}[peer](data, rows)
    began = time.monotonic()
    batch = next(iter(open_loader()))
    took = time.monotonic() - began
    wanted = (rows + np.arange(BATCH)) % 50_000
    assert (np.asarray(batch)[:, 0] == wanted).all(), "the peer is at another position"
    print(took)


def _mosaicml(data: Path, rows: int) -> Any:
    streaming = import_mosaicml()

    def open_loader() -> Any:
        dataset = streaming.StreamingDataset(
            local=str(data / "mds"), batch_size=BATCH, shuffle=False, num_canonical_nodes=1
        )
        dataset.load_state_dict(dataset.state_dict(rows, True) | {"epoch": 0})
        return torch.utils.data.DataLoader(
            dataset,
            batch_size=BATCH,
            collate_fn=lambda found: np.stack([row["tokens"] for row in found]),
        )

    return open_loader


def _litdata(data: Path, rows: int) -> Any:
    from litdata import StreamingDataset, TokensLoader

    def open_loader() -> Any:
        dataset = StreamingDataset(
            str(data / "litdata"), item_loader=TokensLoader(block_size=SEQUENCE), shuffle=False
        )
        dataset.load_state_dict(dataset.state_dict(rows, num_workers=0, batch_size=BATCH))
        return torch.utils.data.DataLoader(dataset, batch_size=BATCH)

    return open_loader


if __name__ == "__main__":
    main()
