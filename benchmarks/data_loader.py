"""Tokenised shards to torch batches: tokens per CPU-second, beside the limits and the peers.

Every arm runs in a process of its own and gives int64 batches of 32,768 tokens in the main process;
CPU is that of its whole process tree (Ray's daemons and workers included), imports and `ray.init`
excluded. A pass is as many epochs as take `--seconds`. "First" is a process's first pass, worker
start included; "second" is the steady state. Arms are interleaved over `--rounds`; medians.

The limits are a bare pyarrow loop over the same shards and a numpy memmap of the same tokens. With
`--s3` the shards and the peers' files are in the tests' S3 server; its CPU does not count. A peer
keeps what it fetched in a local cache, which is empty at first, so that only its first epoch is
from S3; this project and pyarrow keep nothing and read every epoch from S3.

The peers live in an environment of their own:

    python -m venv PEERS
    PEERS/bin/pip install torch==2.13.0 numpy psutil lightning-utilities boto3 Brotli \\
        python-snappy zstd xxhash requests tifffile obstore pillow catalogue tqdm filelock
    PEERS/bin/pip install --no-deps mosaicml-streaming==0.13.0 litdata==0.2.76
    python benchmarks/data_loader.py --peers PEERS/bin/python

(mosaicml-streaming pins transformers<5 and numpy<2.2 for parts that are not used here.)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

LIMITS = ("memmap", "pyarrow")
PEERS = ("mosaicml-0", "mosaicml-1", "litdata-0", "litdata-1")
SHARD_TOKENS = 32 << 20
SHARDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", help="python of the peers' environment; none are run without")
    parser.add_argument("--sequences", type=int, nargs="+", default=[256, 1024, 2048])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--s3", action="store_true", help="the tests' S3 server instead of a folder"
    )
    asked = parser.parse_args()
    results: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        server = _s3_server(Path(scratch)) if asked.s3 else None
        limits = LIMITS[1:] if asked.s3 else LIMITS  # nobody maps an object of S3
        arms = [*limits, "perennial", *(PEERS if asked.peers else ())]
        try:
            for sequence in asked.sequences:
                data = _write(Path(scratch, str(sequence)), sequence, asked.peers, server)
                for _ in range(asked.rounds):
                    for arm in arms:
                        python = asked.peers if arm in PEERS else sys.executable
                        measured = _run(python, arm, sequence, data, asked.seconds)
                        results[arm, sequence].append(measured)
        finally:
            if server is not None:
                server.stop()
    _print(arms, asked, results)


def _write(folder: Path, sequence: int, peers: str | None, server: Any) -> str:
    """The same random tokens in every form; eight shards of ours share one file's bytes."""
    from perennial.corpora.packing import RowFile, rows_per_group
    from perennial.store import open_store

    folder.mkdir()
    store = open_store(f"s3://{server.new_bucket()}/bench" if server else str(folder))
    tokens = np.random.default_rng(0).integers(0, 50_000, SHARD_TOKENS, dtype="<u2")
    rows = tokens.reshape(-1, sequence)
    keys = [f"shard-{number:05d}.parquet" for number in range(SHARDS)]
    for key in keys if server else keys[:1]:
        with store.open(key, "wb") as stream:
            file = RowFile(stream, sequence, 2)
            for first in range(0, len(rows), rows_per_group(sequence, 2)):
                file.write(rows[first : first + rows_per_group(sequence, 2)])
            file.close()
    for key in [] if server else keys[1:]:
        os.link(folder / keys[0], folder / key)
    layout = {"keys": keys, "shard_rows": [len(rows)] * SHARDS}
    store.write("layout.json", json.dumps(layout).encode())
    tokens[: SHARD_TOKENS // 2].tofile(folder / "tokens.bin")
    if peers:
        for writer in ("write-mds", "write-litdata"):
            _arm(peers, writer, sequence, str(folder), 0)
    if server:
        for file in (f for part in ("mds", "litdata") for f in (folder / part).rglob("*.*")):
            store.upload(file, str(file.relative_to(folder)))
    return store.url


def _run(python: str, arm: str, sequence: int, data: str, seconds: float) -> dict[str, Any]:
    measured: dict[str, Any] = json.loads(_arm(python, arm, sequence, data, seconds))
    return measured


def _arm(python: str, arm: str, sequence: int, data: str, seconds: float) -> str:
    command = [python, str(Path(__file__).with_name("data_loader_arms.py"))]
    command += [arm, str(sequence), data, str(seconds)]
    environment = dict(os.environ, PYTHONWARNINGS="ignore")
    environment.pop("PYTHONPATH", None)
    if python == sys.executable:
        environment["PYTHONPATH"] = str(ROOT / "platform")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def _s3_server(scratch: Path) -> Any:
    from tests.support.s3_server import CephServer, MotoServer, _has_ceph

    folder = scratch / "s3"
    folder.mkdir()
    server = CephServer(folder) if _has_ceph() else MotoServer(folder)
    # The last one is mosaicml's own name for the first.
    os.environ.update(server.environment(), S3_ENDPOINT_URL=server.endpoint)
    return server


def _print(
    arms: list[str], asked: Any, results: dict[tuple[str, int], list[dict[str, Any]]]
) -> None:
    names = ("ray", "pyarrow", "torch", "numpy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    print(f"`python {' '.join(sys.argv)}`\n")
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end; ", end="")
    print(f"{'S3' if asked.s3 else 'local folder'}; medians of {asked.rounds}.\n")
    columns = [f"{s} {p}" for s in asked.sequences for p in ("first", "second")]
    print("M tokens per CPU-second | " + " | ".join(columns))
    print("--- | " + " | ".join("---" for _ in columns))
    for arm in arms:
        rates = [
            statistics.median(r[p]["tokens"] / r[p]["cpu_seconds"] / 1e6 for r in results[arm, s])
            for s in asked.sequences
            for p in ("first", "second")
        ]
        print(
            f"{arm} | "
            + " | ".join(f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" for rate in rates)
        )


if __name__ == "__main__":
    main()
