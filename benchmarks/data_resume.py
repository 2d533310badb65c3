"""Seconds to the first batch after a restart, at steps far apart of a terabyte-scale plan.

The plan is over a corpus of 16,384 x 8 shards of 64 MB (8.8 TB of uint16 tokens); only one shard
exists, under every name that is touched. Every measurement is a process of its own with a fresh
Ray (`ray.init` and imports excluded), because a restarted worker group finds no warm reader. Each
is followed by the floor in another process: Ray Data's own first tiny block. Medians.

The peers (`--peers PYTHON`, an environment as in `data_loader.py`) cannot be given a plan without
its data: they resume in 67 M tokens, in the process that trains, without any start of workers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

SEQUENCE = 1024
BATCH = 32
SHARDS = 1 << 17
SHARD_ROWS = (32 << 20) // SEQUENCE
STEPS = (100, 10_000, 1_000_000, SHARDS * SHARD_ROWS // BATCH - 100)
PEERS = ("mosaicml", "litdata")
PEER_SCRIPTS = ("data_loader_arms.py", "data_resume_peers.py")
PEER_ROWS = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", help="python of the peers' environment; none are run without")
    parser.add_argument("--one", nargs=2, metavar=("STORE", "STEP"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(_seconds(asked.one[0], int(asked.one[1]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        _write(Path(scratch))
        found: dict[int, list[tuple[float, float]]] = {step: [] for step in STEPS}
        for _ in range(asked.rounds):
            for step in STEPS:
                found[step].append((_fresh(scratch, step), _fresh(scratch, -1)))
        peers = _peers(asked.peers, Path(scratch), asked.rounds) if asked.peers else {}
    print(f"`python {' '.join(sys.argv)}`\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "pyarrow", "numpy"))
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the end; ", end="")
    print(f"{SHARDS:,} shards of {SHARD_ROWS:,} rows; medians of {asked.rounds}.\n")
    print("step | first batch, s | floor, s | above the floor, s")
    print("--- | --- | --- | ---")
    for step, pairs in found.items():
        ours, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{step:,} | {ours:.2f} | {floor:.2f} | {ours - floor:+.2f}")
    for (peer, row), seconds in peers.items():
        print(f"{peer}, row {row:,} of {PEER_ROWS:,} | {statistics.median(seconds):.2f} | - | -")


def _peers(python: str, folder: Path, rounds: int) -> dict[tuple[str, int], list[float]]:
    """Seconds of every peer at 10% and 90% of a corpus of its own."""
    numbers = np.arange(PEER_ROWS) % 50_000
    np.repeat(numbers[:, None], SEQUENCE, axis=1).astype("<u2").tofile(folder / "tokens.bin")
    arms, resume = (str(ROOT / "benchmarks" / name) for name in PEER_SCRIPTS)
    for writer in ("write-mds", "write-litdata"):
        _run([python, arms, writer, str(SEQUENCE), str(folder), "0"])
    places = [(peer, PEER_ROWS * tenth // 10) for peer in PEERS for tenth in (1, 9)]
    found: dict[tuple[str, int], list[float]] = {place: [] for place in places}
    for _ in range(rounds):
        for peer, row in places:
            found[peer, row].append(float(_run([python, resume, peer, str(folder), str(row)])))
    return found


def _write(folder: Path) -> None:
    from perennial.corpora.packing import RowFile, rows_per_group

    group, only = rows_per_group(SEQUENCE, 2), folder / "shard.parquet"
    with only.open("wb") as stream:
        file = RowFile(stream, SEQUENCE, 2)
        for first in range(0, SHARD_ROWS, group):
            numbers = np.arange(first, min(first + group, SHARD_ROWS)) % 50_000
            file.write(np.repeat(numbers[:, None], SEQUENCE, axis=1).astype("<u2"))
        file.close()
    for step in STEPS:
        # A step near a shard's end reads on in the next ones.
        for shard in range(step * BATCH // SHARD_ROWS, step * BATCH // SHARD_ROWS + 40):
            name = folder / f"shard-{shard:06d}.parquet"
            if shard < SHARDS and not name.exists():
                os.link(only, name)


def _fresh(store: str, step: int) -> float:
    """Seconds in a process of its own."""
    return float(_run([sys.executable, __file__, "--one", store, str(step)]))


def _run(command: list[str]) -> str:
    environment = dict(os.environ, PYTHONWARNINGS="ignore")
    environment.pop("PYTHONPATH", None)
    if command[0] == sys.executable:
        environment["PYTHONPATH"] = str(ROOT / "platform")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def _seconds(url: str, step: int) -> float:
    """To the first batch at a step; a negative step is the floor."""
    import logging

    import ray
    import ray.data

    from perennial.mixture import Source, StageMix
    from perennial.mixture.ray_stream import build_rank_dataset, read_step_batches
    from perennial.mixture.row_reader import CorpusLayout
    from perennial.store import open_store

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    began = time.monotonic()
    if step < 0:
        block = ray.data.range(1, override_num_blocks=1)
        next(iter(block.iter_batches(batch_size=None, batch_format="pyarrow")))
        return time.monotonic() - began
    # What a worker has at hand is the job; everything after it counts.
    layout = CorpusLayout(
        tuple(f"shard-{shard:06d}.parquet" for shard in range(SHARDS)), (SHARD_ROWS,) * SHARDS
    )
    steps = layout.rows // BATCH
    mix = StageMix("a", steps, BATCH, (Source("a", steps * BATCH, 0, layout.rows),))
    dataset = build_rank_dataset(
        open_store(url), {"a": layout}, mix, 2 * SEQUENCE, rank=0, world_size=1, first_step=step
    )
    tables = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    found, tokens = next(read_step_batches(tables, BATCH, step, np.dtype("<u2")))
    took = time.monotonic() - began
    rows = (step * BATCH + np.arange(BATCH)) % SHARD_ROWS % 50_000
    assert found == step
    assert (tokens == rows[:, None]).all()
    return took


if __name__ == "__main__":
    main()
