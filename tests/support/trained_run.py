"""A whole run that end-to-end tests share: each verb a process of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perennial.store import Store, open_store
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import tiny_run, write_run, write_texts

STEPS = 60


@dataclass(frozen=True)
class Lineage:
    """Two stages, a release and its evaluation, each verb a process of its own."""

    folder: Path
    run_file: Path
    store: Store
    after_first: Path
    first_run: Any
    release: Any
    evaluation: Any


def document(folder: Path) -> dict[str, Any]:
    """The run file of the lineage, for a store in `folder`."""
    task = Path(__file__).parents[2] / "pipelines" / "tasks" / "continuation"
    run = tiny_run(folder)
    run["stages"]["budget"] = f"{STEPS} steps"
    run["evaluation"] |= {"documents": 12, "tasks": [str(task)], "trunk_tasks": True}
    run["evaluation"]["prompts"] = ["import"]
    run["gates"] = {"tasks": {str(task): {"max_drop": 1.0}}}
    return run


@pytest.fixture(scope="session")
def lineage(tmp_path_factory: pytest.TempPathFactory, ray_head: dict[str, str]) -> Lineage:
    """One for the whole session: it takes a minute or two."""
    folder = tmp_path_factory.mktemp("lineage")
    run_file = write_run(folder, document(folder))
    texts = write_texts(folder)
    perennial("land", run_file, "help", texts["help"])
    first_run = perennial_json("run", run_file, env=ray_head)
    after_first = folder / "after-first"
    shutil.copytree(folder / "store", after_first)
    perennial("land", run_file, "code", texts["code"])
    perennial("watch", run_file, "--once", env=ray_head)
    release = perennial_json("release", run_file, env=ray_head)
    evaluation = perennial_json("evaluate", run_file, env=ray_head)
    store = open_store(folder / "store")
    return Lineage(folder, run_file, store, after_first, first_run, release, evaluation)
