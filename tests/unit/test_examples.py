"""The examples that need no training: they run as they are."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from perennial.config import load_run
from perennial.sources.places import find_files
from tests.support.old_store import unpack_old_store

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ModuleType]:
    """Return a function that imports an example by its path, for the time of the test."""

    def import_example(path: Path) -> ModuleType:
        monkeypatch.syspath_prepend(path.parent)
        return importlib.import_module(path.stem)

    return import_example


def test_inspect_store_prints_the_matrix(
    load: Callable[[Path], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = unpack_old_store(tmp_path)
    assert load(EXAMPLES / "inspect_store.py").main(str(old.folder)) == 0
    assert "stage,00-help,help" in capsys.readouterr().out


def test_continue_has_the_base_and_its_own_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = load_run(EXAMPLES / "continue.yaml")
    base = load_run(Path("pipelines/quickstart.yaml"))
    assert (spec.store, spec.name, spec.model) == (base.store, base.name, base.model)
    assert spec.stages.corpora["news"].replay == 0.1


def test_the_plugin_schedule_is_named_by_its_entry_point(
    load: Callable[[Path], ModuleType],
) -> None:
    project = tomllib.loads((EXAMPLES / "plugin_schedule/pyproject.toml").read_text())["project"]
    module_name, _, class_name = project["entry-points"]["perennial.schedules"][
        "inverse-sqrt"
    ].partition(":")
    module = load(EXAMPLES / "plugin_schedule" / f"{module_name}.py")
    section = getattr(module, class_name)(kind="inverse-sqrt", eta_max=3e-3, eta_min=3e-4, rise=100)
    curve = section.build(first_step=0, steps=500, tokens_per_step=1)
    assert [curve.eta(step) for step in (0, 50, 100, 400, 10**6)] == [
        0.0,
        1.5e-3,
        3e-3,
        1.5e-3,
        3e-4,
    ]
    assert (curve.phase(100), curve.phase(101)) == ("warmup", "cooldown")


def test_the_messy_crawl_has_what_its_guide_names(
    load: Callable[[Path], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert [step.kind for step in load_run(EXAMPLES / "crawl.yaml").corpora.steps] == [
        "language",
        "gopher-quality",
        "gopher-repetition",
        "personal-data",
    ]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(2400)))
    load(EXAMPLES / "messy_crawl.py").main(texts, tmp_path / "crawl")
    placed = find_files([str(tmp_path / "crawl/pages"), str(tmp_path / "crawl/dump")])
    assert [file.name.rpartition("/")[2] for file in placed.files] == [
        "a.warc.wet.gz",
        "c4-train.00000.json.gz",
        "c4-train.00001.json.gz",
    ]
    assert len(placed.left_out) == 3
