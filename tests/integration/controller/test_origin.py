"""The base is measured when something is new, each thing once, whoever is killed; models played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.controller import origin
from perennial.controller.context import Workspace
from perennial.controller.origin import measure_origins
from perennial.evaluation import Answers, HeldoutLoss, Questions
from perennial.evaluation.scores import TaskScore
from perennial.runs.event_codec import decode
from perennial.runs.events import Measured
from perennial.runs.ledger import FOLDER
from perennial.store import Log, Store
from perennial.training.model.initial import import_model
from tests.support.event_factory import event_of, imported
from tests.support.small_models import small_model
from tests.support.tiny_run import tiny_run

_MANIFEST = SimpleNamespace(counts=SimpleNamespace(held_out_documents=1000))
"""As much of a corpus's manifest as is read."""


class PlayedModel:
    """Stands in for `examine`: answers with a loss for each corpus, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.tasks: list[tuple[str, ...]] = []
        self.failure: Exception | None = None

    def __call__(self, store: Store, folder: str, questions: Questions) -> Answers:
        if self.failure is not None:
            raise self.failure
        self.asked.append((folder, questions.corpora))
        self.tasks.append(questions.tasks)
        documents = questions.max_documents
        losses = {
            name: HeldoutLoss(name, 1.0, 0.5, documents, 10, 40, 0.1) for name in questions.corpora
        }
        scores = [TaskScore(task, "acc", 0.5, 0.1, "1", 4, asked=task) for task in questions.tasks]
        return Answers(losses, (), tuple(scores))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> PlayedModel:
    model = PlayedModel()
    monkeypatch.setattr(origin, "examine", model)
    return model


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    opened = Workspace(RunSpec.model_validate(tiny_run(tmp_path)), "run.yaml")
    monkeypatch.setattr(opened, "use_ray", lambda: None)
    monkeypatch.setattr(origin, "read_manifest", lambda *_: _MANIFEST)
    opened.take_charge()
    opened.record(imported())
    _ready(opened, "a")
    yield opened
    opened.close()


def _ready(work: Workspace, corpus: str) -> None:
    for kind in ("landed", "ingesting", "ready"):
        work.record(event_of(kind, work.state, corpus))


def _measured(work: Workspace) -> list[set[str]]:
    entries = [decode(data).event for data in Log(work.store, FOLDER).entries().values()]
    return [set(event.losses) for event in entries if isinstance(event, Measured)]


def test_a_corpus_that_lands_later_is_measured_alone(work: Workspace, played: PlayedModel) -> None:
    assert measure_origins(work)
    assert not measure_origins(work)
    _ready(work, "b")
    assert measure_origins(work)
    assert [corpora for _, corpora in played.asked] == [("a",), ("b",)]
    assert _measured(work) == [{"a"}, {"b"}]


def test_the_base_is_scored_on_what_the_trunk_is_and_with_a_release_on_what_that_is(
    work: Workspace, played: PlayedModel
) -> None:
    work.spec.evaluation.__dict__["tasks"] = ("of-releases",)
    work.spec.gates.__dict__["tasks"] = {"of-a-gate": None}
    measure_origins(work)
    assert played.tasks == [("of-a-gate",)]
    measure_origins(work, like_releases=True)
    assert not measure_origins(work)
    assert played.tasks == [("of-a-gate",), ("of-releases",)]
    work.spec.evaluation.__dict__ |= {"tasks": ("of-releases", "another"), "trunk_tasks": True}
    measure_origins(work)
    assert played.tasks[2:] == [("another",)]


def test_more_documents_are_measured_again_to_compare_like_with_like(
    work: Workspace, played: PlayedModel
) -> None:
    measure_origins(work)
    work.spec.evaluation.__dict__["documents"] += 1
    measure_origins(work)
    assert [corpora for _, corpora in played.asked] == [("a",), ("a",)]
    base = work.state.base
    assert base is not None
    assert base.losses["a"].documents == work.spec.evaluation.documents


def test_of_two_that_measure_at_once_one_writes(
    work: Workspace, played: PlayedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*arguments: Any) -> Answers:
        monkeypatch.setattr(origin, "examine", played)
        measure_origins(work)
        return played(*arguments)

    monkeypatch.setattr(origin, "examine", meanwhile)
    measure_origins(work)
    assert _measured(work) == [{"a"}]


def test_a_whole_model_that_cannot_be_measured_stops_nothing(
    work: Workspace, played: PlayedModel
) -> None:
    measure_origins(work)
    work.record(imported("reference"))
    played.failure = MemoryError("it has too many parameters")
    measure_origins(work)
    assert work.state.origins["reference"].losses == {}
    _ready(work, "b")
    with pytest.raises(MemoryError):  # the base itself is what all else is compared with
        measure_origins(work)


def test_a_run_that_an_older_version_began_gets_its_base(
    tmp_path: Path, played: PlayedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model("gpt_neox", vocab_size=300).save_pretrained(tmp_path / "model")
    document = tiny_run(tmp_path) | {"model": {"path": str(tmp_path / "model")}}
    work = Workspace(RunSpec.model_validate(document), "run.yaml")
    monkeypatch.setattr(work, "use_ray", lambda: None)
    monkeypatch.setattr(origin, "read_manifest", lambda *_: _MANIFEST)
    work.take_charge()
    _ready(work, "a")
    measure_origins(work)
    assert work.state.base is None, "nothing was imported yet"
    import_model(work.store, work.spec.model, 300, 0, 16)
    measure_origins(work)
    base = work.state.base
    assert base is not None
    assert (base.imported.path, set(base.losses)) == (str(tmp_path / "model"), {"a"})
    work.close()
