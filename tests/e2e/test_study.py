"""A study whose processes are killed goes on, and its table is what its runs came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from subprocess import Popen

import psutil
import pytest

from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.study.record import read_record, read_spent
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.ray_nodes import kill_tree
from tests.support.small_study import small_study, write_study

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]

NAMES = [f"{arm}/seed-{seed}" for seed in (3, 5) for arm in ("quarter", "half")]


@pytest.fixture
def started() -> Iterator[Callable[..., Popen[str]]]:
    """Starts commands, and ends those that a failed test leaves."""
    processes: list[Popen[str]] = []

    def begin(*words: object) -> Popen[str]:
        processes.append(start(*words))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            kill_tree(psutil.Process(process.pid))
            process.communicate()


def test_a_killed_study_goes_on_and_its_table_is_right(
    tmp_path: Path, started: Callable[..., Popen[str]]
) -> None:
    path = write_study(tmp_path)
    place = open_store(tmp_path / "place" / "runs")
    stores = {name: place.sub(name) for name in NAMES}

    # First the study's own process alone: those of its runs end by themselves.
    first = started("study", path, "--jobs", "2")
    _until(lambda: _has_checkpoint(stores["quarter/seed-3"]), first)
    runs = psutil.Process(first.pid).children()
    first.kill()
    first.communicate()
    assert runs
    _until(lambda: not any(_lives(run) for run in runs), None)

    # Then all processes at once, while an arm branches off another.
    second = started("study", path, "--jobs", "2")
    _until(lambda: bool(read_spent(stores["half/seed-3"])), second)
    kill_tree(psutil.Process(second.pid))
    second.communicate()

    document = perennial_json("study", path, "--jobs", "2")
    assert {run["state"] for run in document["runs"]} == {"done"}
    page = (tmp_path / "place" / "study.md").read_text()
    _check_table(document, page, stores)

    for seed in (3, 5):
        record = read_record(stores[f"half/seed-{seed}"])
        assert record is not None
        assert (record.donor, record.shared) == (f"quarter/seed-{seed}", 1)
        assert record.digest == document["digest"]
    for store in stores.values():
        perennial("verify", store.url)
    _check_weights(tmp_path, stores["half/seed-3"])

    before = {name: Ledger(store).read() for name, store in stores.items()}
    assert perennial_json("study", path)["results"] == document["results"]
    assert {name: Ledger(store).read() for name, store in stores.items()} == before


def _check_table(document: dict[str, object], page: str, stores: dict[str, Store]) -> None:
    results = document["results"]
    assert isinstance(results, dict)
    for arm, model in (("quarter", None), ("quarter/short", "release"), ("half", None)):
        for seed in (3, 5):
            state = Ledger(stores[f"{arm.partition('/')[0]}/seed-{seed}"]).read()
            losses = state.losses["01-code"] if model is None else state.releases[0].losses
            mean = fmean(loss.nats_per_token for loss in losses.values())
            assert set(losses) == {"help", "code"}
            assert results[arm]["average"][str(seed)] == pytest.approx(mean)
        values = results[arm]["average"].values()
        row = next(line for line in page.splitlines() if line.startswith(f"| {arm} |"))
        assert f"| {fmean(values):.3f} ± " in row
    assert len(small_study(Path())["claims"]) == len(document["claims"])  # type: ignore[arg-type]


def _check_weights(folder: Path, store: Store) -> None:
    """The arm alone, undisturbed and from scratch, ends with the same weights."""
    alone = folder / "alone"
    overrides = ["name=small-half", f"store={alone}", "seed=3", "replay.share=0.5"]
    perennial("run", folder / "run.yaml", *overrides)
    ends = [Ledger(each).read().ends["01-code"] for each in (open_store(alone), store)]
    files = [
        checkpoint.read_manifest(each, end).files["model.safetensors"].sha256
        for each, end in zip((open_store(alone), store), ends, strict=True)
    ]
    assert files[0] == files[1]


def _has_checkpoint(store: Store) -> bool:
    return bool(checkpoint.committed_steps(store, "checkpoints"))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _until(holds: Callable[[], bool], process: Popen[str] | None) -> None:
    """Wait for a condition; fail with what the process said when it ends before."""
    end = time.monotonic() + 900
    while not holds():
        if process is not None and process.poll() is not None:
            pytest.fail(f"the study ended early: {process.communicate()[1][-4000:]}")
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)  # polling a condition
