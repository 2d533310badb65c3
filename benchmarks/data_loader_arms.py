"""One loader in one process: tokenised rows to int64 torch batches, and what that cost.

Called by `data_loader.py`; prints one JSON object. A peer's arm needs only the peer, torch, numpy
and psutil.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

BATCH_TOKENS = 32_768


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arm", choices=sorted(ARMS))
    parser.add_argument("sequence", type=int)
    parser.add_argument("data")
    parser.add_argument("seconds", type=float, help="a pass is as many epochs as take this long")
    asked = parser.parse_args()
    epoch = ARMS[asked.arm](asked.data, asked.sequence)
    if epoch is None:
        return
    passes = [_measure(epoch, asked.seconds) for _ in range(2)]
    print(json.dumps({"first": passes[0], "second": passes[1]}))


def _measure(epoch: Callable[[], Iterator[torch.Tensor]], seconds: float) -> dict[str, float]:
    """Tokens and CPU of a pass, from before its first batch, over this process tree."""
    before, began, tokens = _cpu_seconds(), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        for batch in epoch():
            assert batch.dtype == torch.int64
            tokens += batch.numel()
    spent, took = _cpu_seconds() - before, time.monotonic() - began
    return {"tokens": tokens, "cpu_seconds": spent, "seconds": took}


def _cpu_seconds() -> float:
    """User and system time of this process, its descendants, and those that they outlived."""
    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def perennial(data: str, sequence: int) -> Any:
    import logging

    import ray

    from perennial.mixture import Source, StageMix
    from perennial.mixture.ray_stream import build_rank_dataset, read_step_batches
    from perennial.mixture.row_reader import CorpusLayout
    from perennial.store import open_store

    layout = CorpusLayout(**json.loads(open_store(data).read("layout.json")))
    batch = BATCH_TOKENS // sequence
    steps = layout.rows // batch
    mix = StageMix("a", steps, batch, (Source("a", steps * batch, 0, layout.rows),))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)

    def batches() -> Iterator[torch.Tensor]:
        dataset = build_rank_dataset(
            open_store(data),
            {"a": layout},
            mix,
            2 * sequence,
            rank=0,
            world_size=1,
            first_step=0,
        )
        tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        for _, tokens in read_step_batches(tables, batch, 0, np.dtype("<u2")):
            yield torch.from_numpy(tokens)

    return batches


def pyarrow_loop(data: str, sequence: int) -> Any:
    import pyarrow.parquet as pq

    from perennial.store import open_store

    store = open_store(data)
    filesystem, base = store.arrow()
    keys = json.loads(store.read("layout.json"))["keys"]

    def batches() -> Iterator[torch.Tensor]:
        for key in keys:
            file = pq.ParquetFile(f"{base}/{key}", filesystem=filesystem)
            for group in range(file.num_row_groups):
                values = file.read_row_group(group)[0].chunk(0).buffers()[1]
                tokens = np.frombuffer(values, dtype="<u2")
                for first in range(0, len(tokens), BATCH_TOKENS):
                    part = tokens[first : first + BATCH_TOKENS].astype(np.int64)
                    yield torch.from_numpy(part.reshape(-1, sequence))

    return batches


def memmap(data: str, sequence: int) -> Any:
    def batches() -> Iterator[torch.Tensor]:
        tokens = np.memmap(Path(data, "tokens.bin"), dtype="<u2", mode="r")
        for first in range(0, len(tokens), BATCH_TOKENS):
            part = tokens[first : first + BATCH_TOKENS].astype(np.int64)
            yield torch.from_numpy(part.reshape(-1, sequence))

    return batches


def mosaicml(workers: int) -> Any:
    def open_arm(data: str, sequence: int) -> Any:
        streaming = import_mosaicml()
        batch = BATCH_TOKENS // sequence
        remote, local = _place(f"{data}/mds")
        dataset = streaming.StreamingDataset(
            remote=remote, local=local, batch_size=batch, shuffle=False
        )
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch,
            num_workers=workers,
            collate_fn=lambda rows: torch.from_numpy(
                np.stack([row["tokens"] for row in rows]).astype(np.int64)
            ),
        )
        return lambda: iter(loader)

    return open_arm


def litdata(workers: int) -> Any:
    def open_arm(data: str, sequence: int) -> Any:
        from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"  # as the tests' server is
        remote, local = _place(f"{data}/litdata")
        dataset = StreamingDataset(
            remote or local,
            cache_dir=local if remote else None,
            item_loader=TokensLoader(block_size=sequence),
            shuffle=False,
        )
        loader = StreamingDataLoader(
            dataset, batch_size=BATCH_TOKENS // sequence, num_workers=workers
        )

        def batches() -> Iterator[torch.Tensor]:
            for tokens in loader:
                yield tokens.to(torch.int64)

        return batches

    return open_arm


def _place(data: str) -> tuple[str | None, str]:
    """A peer's remote and local folder: an S3 url and an empty cache, or none and the folder."""
    if not data.startswith("s3://"):
        return None, data
    cache = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, cache, ignore_errors=True)
    return data, cache


def import_mosaicml() -> Any:
    """mosaicml-streaming without the parts that need torchvision and transformers<5."""

    class Absent(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in (
        "torchvision.datasets",
        "torchvision.transforms.functional",
        "transformers.models.auto.tokenization_auto",
        "transformers.feature_extraction_utils",
        "transformers.tokenization_utils_base",
    ):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:end]), Absent(".".join(parts[:end])))
    import streaming

    return streaming


def write_mds(data: str, sequence: int) -> Any:
    """Not a loader: writes tokens.bin as mosaicml-streaming's shards."""
    streaming = import_mosaicml()
    rows = np.fromfile(Path(data, "tokens.bin"), dtype="<u2").reshape(-1, sequence)
    columns = {"tokens": f"ndarray:uint16:{sequence}"}
    with streaming.MDSWriter(
        out=str(Path(data, "mds")), columns=columns, size_limit=64 << 20
    ) as out:
        for row in rows:
            out.write({"tokens": row})
    return None


def write_litdata(data: str, sequence: int) -> Any:
    """Not a loader: writes tokens.bin as litdata's chunks."""
    from litdata import TokensLoader
    from litdata.streaming.cache import Cache

    rows = np.fromfile(Path(data, "tokens.bin"), dtype="<u2").reshape(-1, sequence)
    cache = Cache(
        str(Path(data, "litdata")),
        chunk_size=32 << 20,
        item_loader=TokensLoader(block_size=sequence),
    )
    for index, row in enumerate(rows):
        cache._add_item(index, torch.from_numpy(row))
    cache.done()
    cache.merge()
    return None


ARMS = {
    "perennial": perennial,
    "pyarrow": pyarrow_loop,
    "memmap": memmap,
    "mosaicml-0": mosaicml(0),
    "mosaicml-1": mosaicml(1),
    "litdata-0": litdata(0),
    "litdata-1": litdata(1),
    "write-mds": write_mds,
    "write-litdata": write_litdata,
}

if __name__ == "__main__":
    main()
