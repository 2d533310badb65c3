"""Random kills over three stages on S3 storage with faults; the run ends as if undisturbed.

`PERENNIAL_CHAOS_KILLS` says how many kills, `PERENNIAL_CHAOS_REPORT` to which file the table of
times goes.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.chaos_run import DisturbedRun
from tests.support.cli import perennial
from tests.support.faulty_proxy import Road, bumpy, smooth
from tests.support.ray_nodes import Nodes, ray_nodes
from tests.support.s3_server import CephServer, S3Server
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(3 * 3600)]

KILLS = int(os.environ.get("PERENNIAL_CHAOS_KILLS", "30"))
REPORT = os.environ.get("PERENNIAL_CHAOS_REPORT")
STEPS = max(60, 12 * KILLS)
"""Of a stage: enough to train while checkpoints are stored, with a new one between two kills."""
FAULTY_SHARE = 0.05
SEED = 11

Victim = Literal["worker", "node", "driver", "gateway"]
Moment = Literal["step", "upload", "start"]


@dataclass
class Chaos:
    """Kills at random of random things, and how long the run takes to get on after each."""

    run: DisturbedRun
    server: CephServer
    seconds: dict[Victim, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dice = random.Random(SEED)
        self._moment: Moment = "start"

    def strike(self) -> None:
        """Wait for a random moment, kill, and wait for the next checkpoint."""
        victim: Victim = self._dice.choice(("worker", "worker", "node", "driver", "gateway"))
        # Two kills before any progress at most: more are a reason to give up.
        quiet: tuple[Moment, ...] = ("step", "upload")
        self._moment = self._dice.choice(quiet if self._moment == "start" else (*quiet, "start"))
        before = self._progress()
        self.run.until(lambda: self._is(self._moment, before))
        before, began = self._progress(), time.monotonic()
        index = self._dice.randrange(len(self.run.nodes))
        if victim == "gateway":
            self.server.kill_gateway()
            self.server.start_gateway()
        else:
            self.run.kill(victim, index)
        if self._moment != "start":
            self.run.until(lambda: self._progress() > before or self.run.ended())
            self.seconds.setdefault(victim, []).append(time.monotonic() - began)

    def _is(self, moment: Moment, before: tuple[int, int]) -> bool:
        if moment == "start":
            return bool(self.run.workers())
        if moment == "step":
            return self._progress() > before
        folder = self._folder()
        return folder is not None and self.run.uploading(folder)

    def _folder(self) -> str | None:
        stages = Ledger(self.run.store).read().stages
        return stages[-1].folder if stages else None

    def _progress(self) -> tuple[int, int]:
        stages = Ledger(self.run.store).read().stages
        return len(stages), self.run.saved(stages[-1].folder) if stages else -1


@pytest.fixture
def road(s3_server: S3Server) -> Iterator[Road]:
    with Road(s3_server.port).open() as road:
        yield road


@pytest.fixture
def nodes(s3_server: S3Server, road: Road) -> Iterator[Nodes]:
    """Two nodes whose workers reach the bucket over the road only."""
    environment = {**s3_server.environment(), "AWS_ENDPOINT_URL": road.endpoint}
    with ray_nodes(count=2, environment=environment) as nodes:
        yield nodes


def test_i4_i9_a_run_under_random_kills_ends_like_the_undisturbed_one(
    s3_server: S3Server, s3_url: str, road: Road, nodes: Nodes, tmp_path: Path
) -> None:
    if not isinstance(s3_server, CephServer):
        pytest.skip("moto forgets its data when it is killed")
    calm, calm_seconds = _calm(nodes, s3_url, tmp_path / "calm")
    folder = tmp_path / "chaos"
    run_file = _land_three(folder, f"{s3_url}-chaos")
    road.fate = bumpy(FAULTY_SHARE, SEED)
    began = time.monotonic()
    with closing(_start(run_file, f"{s3_url}-chaos", nodes)) as run:
        chaos = Chaos(run, s3_server)
        for _ in range(KILLS):
            chaos.strike()
        run.end()
    seconds = time.monotonic() - began
    road.fate = smooth
    spoilt = road.fates.total() - road.fates["pass"]
    state = Ledger(run.store).read()
    state.validate()
    assert [c.event_kinds.count("started") for c in state.corpora.values()] == [1, 1, 1]
    assert _ends(run.store) == _ends(calm)
    perennial("verify", run_file)
    _report(chaos.seconds, calm_seconds, seconds, spoilt)


def _calm(nodes: Nodes, url: str, folder: Path) -> tuple[Store, float]:
    """The same run undisturbed, and how long it took."""
    run_file = _land_three(folder, url)
    began = time.monotonic()
    with closing(_start(run_file, url, nodes)) as run:
        run.end()
    return run.store, time.monotonic() - began


def _start(run_file: Path, url: str, nodes: Nodes) -> DisturbedRun:
    tracking = f"sqlite:///{run_file.parent}/mlflow.db"
    return DisturbedRun(run_file, url, nodes, MLFLOW_TRACKING_URI=tracking)


def _land_three(folder: Path, url: str) -> Path:
    """A run file with three corpora landed, one after the other by name."""
    run: dict[str, Any] = tiny_run(folder, store=url)
    run["model"]["config"] |= {"hidden_size": 128, "intermediate_size": 512}
    run["stages"]["budget"] = f"{STEPS} steps"
    folder.mkdir()
    run_file = write_run(folder, run)
    texts = write_texts(folder)
    more = sorted(Path(json.__file__).parent.parent.glob("[c-d]*.py"))
    texts["more"] = folder / "more.jsonl"
    lines = [json.dumps({"text": part}) for p in more for part in p.read_text().split("\n\n\n")]
    texts["more"].write_text("\n".join(lines) + "\n")
    for name in sorted(texts):
        perennial("land", run_file, name, texts[name])
    return run_file


def _ends(store: Store) -> dict[str, dict[str, str]]:
    """The digests of the tensors at the end of each corpus's stage."""
    return {
        stage.corpora[0]: {
            name: entry.sha256
            for name, entry in checkpoint.read_manifest(
                store, checkpoint.folder_of(stage.folder, stage.last_step)
            ).files.items()
            if name.endswith(".safetensors")
        }
        for stage in Ledger(open_store(store.url)).read().stages
    }


def _report(
    seconds: dict[Victim, list[float]], calm_seconds: float, chaos_seconds: float, spoilt: int
) -> None:
    """What the kills cost, as a table."""
    kills = f"{KILLS} kills"
    rows = [
        f"`PERENNIAL_CHAOS_KILLS={KILLS} PERENNIAL_CHAOS_REPORT=benchmarks/results/chaos.md "
        "python -m pytest -m long tests/e2e/test_chaos.py`",
        "",
        f"ray {version('ray')}, deepspeed {version('deepspeed')}, torch {version('torch')}; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end; "
        f"three stages of {STEPS} steps, a checkpoint every 5, two workers on two nodes; "
        f"{FAULTY_SHARE:.0%} of S3 requests spoilt ({spoilt} in all). The weights at the end of "
        "every stage are those of the undisturbed run to the bit.",
        "",
        "killed | in mid-step or mid-upload | median seconds to the next checkpoint | longest",
        "--- | --- | --- | ---",
        *(
            f"{victim} | {len(found)} | {statistics.median(found):.0f} | {max(found):.0f}"
            for victim, found in sorted(seconds.items())
        ),
        "",
        "run | seconds | goodput (undisturbed time / time)",
        "--- | --- | ---",
        f"undisturbed | {calm_seconds:.0f} | 1",
        f"{kills} | {chaos_seconds:.0f} | {calm_seconds / chaos_seconds:.3f}",
        "",
        f"A kill cost {(chaos_seconds - calm_seconds) / KILLS:.0f} seconds on average, faults of "
        "storage included: at one kill an hour that is a goodput of "
        f"{1 - (chaos_seconds - calm_seconds) / KILLS / 3600:.3f}.",
    ]
    print("\n".join(rows))
    if REPORT:
        Path(REPORT).write_text("\n".join(rows) + "\n")
