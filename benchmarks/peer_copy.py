"""What a restart of several nodes reads from a store that is slow.

A cluster of NODES nodes on this machine, with a worker each, trains a model whose checkpoints lie
in an S3 server behind a road that lets BYTES a second through, for all clients together. Every
worker is killed after a checkpoint; counted is what the next start reads of it, from its first
request to its last byte. Medians of several restarts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STAGE = "checkpoints/00-help"
_PIECE_BYTES = 1 << 16


class SlowRoad:
    """A road to the server on `upstream`: its answers pass at `bytes_per_second` in all.

    taken: the bytes that passed, by the object that was asked for.
    first, last: seconds on the clock of the first and the last piece of a checkpoint.
    """

    def __init__(self, upstream: int, bytes_per_second: float) -> None:
        self._upstream, self._pace = upstream, bytes_per_second
        self._free_at = 0.0
        self.clear()

    def clear(self) -> None:
        self.taken: Counter[str] = Counter()
        self.first, self.last = 0.0, 0.0

    @contextmanager
    def open(self) -> Iterator[str]:
        """Yield the address of the road, which is closed with the block."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        thread = Thread(target=loop.run_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        asyncio.run_coroutine_threadsafe(self._close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()

    async def _close(self, server: asyncio.Server) -> None:
        server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        server, forth = await asyncio.open_connection("127.0.0.1", self._upstream)
        asked = [""]
        try:
            await asyncio.gather(self._ask(client, forth, asked), self._answer(server, back, asked))
        except OSError:
            pass  # a client that was killed
        finally:
            forth.close()
            back.close()

    async def _ask(
        self, client: asyncio.StreamReader, forth: asyncio.StreamWriter, asked: list[str]
    ) -> None:
        while data := await client.read(_PIECE_BYTES):
            found = re.match(rb"GET (\S*%s/\S+) " % STAGE.encode(), data)
            asked[0] = found[1].decode().partition("?")[0] if found else ""
            forth.write(data)
            await forth.drain()
        forth.close()

    async def _answer(
        self, server: asyncio.StreamReader, back: asyncio.StreamWriter, asked: list[str]
    ) -> None:
        while data := await server.read(_PIECE_BYTES):
            if asked[0]:
                now = time.monotonic()
                self._free_at = max(self._free_at, now) + len(data) / self._pace
                await asyncio.sleep(self._free_at - now)
                self.taken[asked[0]] += len(data)
                self.last = time.monotonic()
                self.first = self.first or self.last
            back.write(data)
            await back.drain()
        back.close()


def _run_document(folder: Path, store: str, nodes: int) -> dict[str, Any]:
    from tests.support.tiny_run import tiny_run

    document = tiny_run(folder, store)
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    document["model"]["config"] |= size | {"num_attention_heads": 8}
    document["corpora"]["sequence_length"] = 32
    document["training"] |= {
        "workers": nodes,
        "global_batch": nodes,
        "micro_batch": 1,
        "checkpoint_every": "4 steps",
        "max_failures": 20,
    }
    document["stages"]["budget"] = "4000 steps"
    return document


def _restart(run: Any, road: SlowRoad, nodes: int) -> dict[str, float]:
    """Kill every worker after a checkpoint; return what the next start reads, by kind."""
    before = run.saved(STAGE)
    run.until(lambda: run.saved(STAGE) > before)
    road.clear()
    for index in range(nodes):
        run.kill("worker", index)
    step = run.saved(STAGE)
    run.until(lambda: run.saved(STAGE) > step)
    kinds: Counter[str] = Counter()
    for key, size in road.taken.items():
        kinds["optimizer" if "/optimizer-" in key else "weights"] += size
    seconds = road.last - road.first
    return {"weights": kinds["weights"], "optimizer": kinds["optimizer"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=40, help="a second, of the store")
    asked = parser.parse_args()
    from tests.support.chaos_run import DisturbedRun
    from tests.support.cli import perennial
    from tests.support.ray_nodes import ray_nodes
    from tests.support.s3_server import CephServer
    from tests.support.tiny_run import write_run, write_texts

    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "ray"))
    print(f"`{' '.join(['python', *sys.argv])}`  ")
    print(f"{versions}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f} at the start\n")
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory(prefix="s3-") as place,  # a short path, for its sockets
        ExitStack() as stack,
    ):
        folder, s3 = Path(scratch), CephServer(Path(place))
        stack.callback(s3.stop)
        road = SlowRoad(s3.port, asked.megabytes * 1e6)
        with road.open() as endpoint:
            variables = s3.environment() | {"AWS_ENDPOINT_URL": endpoint}
            nodes = stack.enter_context(ray_nodes(count=0, environment=variables))
            for number in range(asked.nodes):
                nodes.add(address=f"127.0.0.{number + 2}")
            os.environ |= variables
            os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
            document = _run_document(folder, f"s3://{s3.new_bucket()}/run", asked.nodes)
            run_file = write_run(folder, document)
            perennial("land", run_file, "help", write_texts(folder)["help"])
            with closing(DisturbedRun(run_file, document["store"], nodes)) as run:
                told = [_restart(run, road, asked.nodes) for _ in range(asked.restarts)]
    print(f"{asked.nodes} nodes of one worker, a store of {asked.megabytes:g} MB/s\n")
    print("| read by a restart, MB: weights and metrics | optimizer's state | seconds |")
    print("| --- | --- | --- |")
    middle = {key: statistics.median(row[key] for row in told) for key in told[0]}
    print(f"| {middle['weights'] / 1e6:.1f} | {middle['optimizer'] / 1e6:.1f} "
          f"| {middle['seconds']:.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
