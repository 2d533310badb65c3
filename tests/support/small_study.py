"""A study small enough for tests: two arms that share their first stage, two seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from perennial import corpora
from perennial.config import load
from perennial.config.study import StudySpec
from perennial.store import open_store
from perennial.study.plan import Study, resolve
from tests.support.tiny_run import tiny_run, write_texts

PAPER = {"number": "+0.00", "source": "table 2"}


def small_study(folder: Path) -> dict[str, Any]:
    """A study file's document: more replay against less, with a release of each."""
    return {
        "name": "small",
        "about": "Does more replay forget less?",
        "place": str(folder / "place"),
        "run": str(folder / "run.yaml"),
        "seeds": [3, 5],
        "arms": {
            "quarter": {"about": "25% replay", "releases": {"short": {}}},
            "half": {"overrides": {"replay.share": 0.5}},
        },
        "claims": [
            {
                "says": "half forgets less",
                "arm": "half",
                "against": "quarter",
                "measure": "forgetting/help",
                "at_most": 0.0,
                "paper": PAPER,
            },
            {
                "says": "an anneal lowers the loss",
                "arm": "quarter/short",
                "against": "quarter",
                "at_most": 0.0,
            },
        ],
    }


def write_study(folder: Path, document: dict[str, Any] | None = None) -> Path:
    """The study file, beside its base run file; its corpora have landed."""
    run = tiny_run(folder) | {"inbox": str(folder / "inbox")}
    run["training"] |= {"workers": 1, "micro_batch": 8}
    run["release"]["sample_tokens"] = 0
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    if not (folder / "inbox").exists():
        for name, file in write_texts(folder).items():
            corpora.land(open_store(folder / "inbox"), name, [file])
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(document or small_study(folder), sort_keys=False))
    return path


def read_study(path: Path) -> Study:
    """The study of a file."""
    return resolve(path, load(path, StudySpec))
