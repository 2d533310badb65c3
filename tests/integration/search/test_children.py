"""Children of a stored model: what they begin with, and that nothing is made or trained twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from perennial.audit.children import check_starts
from perennial.config import RunSpec, parse
from perennial.config.search import Child, TuningSpec
from perennial.controller.context import Workspace
from perennial.errors import InputError, Superseded
from perennial.runs import events
from perennial.runs.search_state import start_key
from perennial.runs.stage_planner import decide_stage
from perennial.search.children import ChildBench
from perennial.search.layer_search import plan_layer_search
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from perennial.training.checkpoint.manifest import folder_of
from perennial.training.model.child import ChildStart, child_sizes, write_child
from perennial.training.model.config import stored_model
from tests.support.committed import commit_folder, commit_model
from tests.support.event_factory import AT, event_of
from tests.support.refusal import refused
from tests.support.small_models import small_model
from tests.support.tiny_run import tiny_run, write_run

KEY = "searches/s/starts/child"


def _reference(**settings: Any) -> Any:
    return small_model("gpt_neox", num_hidden_layers=4, **settings)


def _written(store: Store, start: ChildStart, folder: Path) -> Any:
    write_child(store, KEY, start, "child")
    manifest = checkpoint.read_manifest(store, KEY)
    folder.mkdir()
    checkpoint.download(store, KEY, manifest, manifest.files, folder)
    return stored_model(folder)


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_inherited_child_has_the_references_own_weights_in_fp32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    store, reference = open_store(tmp_path / "store"), _reference().to(dtype)
    (tmp_path / "model").mkdir()
    key = commit_model(store, reference, tmp_path / "model")
    child = _written(store, ChildStart(2, key), tmp_path / "child")
    theirs = reference.float().state_dict()
    assert child.config.num_hidden_layers == 2
    assert child.dtype == torch.float32
    for name, tensor in child.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_grown_child_has_the_smaller_ones_weights_and_the_references_next_blocks(
    tmp_path: Path,
) -> None:
    store, reference = open_store(tmp_path / "store"), _reference()
    (tmp_path / "model").mkdir()
    key = commit_model(store, reference, tmp_path / "model")
    (tmp_path / "small").mkdir()
    smaller = small_model("gpt_neox", num_hidden_layers=2, initializer_range=0.5)
    smaller.save_pretrained(tmp_path / "small")
    trained = commit_folder(store, tmp_path / "small", key=folder_of("branches/tune-s-a", 12))
    child = _written(store, ChildStart(3, key, grown_from=trained), tmp_path / "child")
    mine, theirs = smaller.state_dict(), reference.state_dict()
    for name, tensor in child.state_dict().items():
        assert torch.equal(tensor, mine.get(name, theirs[name])), name
    assert any("layers.2." in name for name in child.state_dict())


def test_random_weights_follow_the_seed_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    models = []
    for number, seed in enumerate((5, 5, 6)):
        store = open_store(tmp_path / f"store{number}")
        key = commit_model(store, _reference(), tmp_path / "model")
        models.append(_written(store, ChildStart(2, key, seed=seed), tmp_path / f"child{number}"))
    assert _equal(models[0], models[1])
    assert not _equal(models[0], models[2])


def test_a_child_that_was_half_written_is_written_again_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    store = open_store(tmp_path / "store")
    (tmp_path / "model").mkdir()
    start = ChildStart(2, commit_model(store, _reference(), tmp_path / "model"))
    write_child(store, KEY, start, "child")
    manifest = store.read(f"{KEY}/manifest.json")
    kept = {entry.key: store.read(entry.key) for entry in store.list(KEY)}
    store.remove(f"{KEY}/manifest.json")
    store.write(f"{KEY}/model.safetensors", b"half")
    write_child(store, KEY, start, "child")
    assert {entry.key: store.read(entry.key) for entry in store.list(KEY)} == kept
    store.write(f"{KEY}/config.json", b"{}")  # once it is committed, nothing writes it again
    write_child(store, KEY, start, "child")
    assert store.read(f"{KEY}/config.json") == b"{}"
    assert store.read(f"{KEY}/manifest.json") == manifest


def test_a_model_that_cannot_be_cut_is_refused_from_its_configuration_alone() -> None:
    assert [s.layers for s in child_sizes(_reference().config, [1, 3])] == [1, 3]
    with pytest.raises(InputError) as refusal:
        child_sizes(_reference().config, [5])
    assert refusal.value.code == "layers-unavailable"


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    """A run that has trained `a` with four layers, as far as its ledger and checkpoint say."""
    document = tiny_run(tmp_path)
    run_file = write_run(tmp_path, document)
    work = Workspace(parse(document, RunSpec, ""), str(run_file), [])
    work.ledger.append(events.Opened(at=AT, spec=work.spec.model_dump(mode="json")))
    for kind in ("landed", "ingesting", "ready"):
        work.ledger.append(event_of(kind, work.state, "a"))
    begun = decide_stage(work.spec, work.state, "a", AT, "", reschedule=False)
    work.ledger.append(begun)
    (tmp_path / "model").mkdir()
    _reference().save_pretrained(tmp_path / "model")
    key = folder_of(f"checkpoints/{begun.stage}", 12)
    end = commit_folder(work.store, tmp_path / "model", key=key)
    work.ledger.append(events.Trained(at=AT, corpus="a", checkpoint=end, step=12))
    for kind in ("evaluating", "evaluated", "passed"):
        work.ledger.append(event_of(kind, work.state, "a"))
    return work


def _bench(work: Workspace, claim: int = 1) -> ChildBench:
    bench = ChildBench(
        "t.yaml", "s", work.spec, work.state, 4, (2, 2), {}, reference_loss=3.0, claim=claim
    )
    work.ledger.append(
        events.Searching(at=AT, name="s", corpus="a", source=bench.source, spec={}, claim=claim)
    )
    return bench


def _measured(work: Workspace, bench: ChildBench, child: Child) -> events.Branched:
    decided = bench.branched(child)
    work.ledger.append(decided)
    end = folder_of(f"branches/{decided.trial}", 12)
    work.ledger.append(
        events.Tried(
            at=AT, trial=decided.trial, step=12, checkpoint=end, trained_steps=12,
            values={"loss": 3.5, "above": 0.5}, losses={},
        )
    )  # fmt: skip
    return decided


def test_what_the_ledger_has_of_a_child_is_not_trained_again(work: Workspace) -> None:
    bench = _bench(work)
    _measured(work, bench, Child(2, "inherited"))
    before = work.ledger.next
    # No Ray runs here: whatever would be trained or measured would fail.
    assert bench.measure(Child(2, "inherited"), 12) == {"loss": 3.5, "above": 0.5}
    work.ledger.read()
    assert work.ledger.next == before
    work.state.validate()


def test_a_search_for_layers_that_was_taken_over_writes_nothing_more(work: Workspace) -> None:
    bench = _bench(work)
    _bench(work, claim=2)
    with pytest.raises(Superseded, match="took search s over"):
        bench.measure(Child(2, "inherited"), 12)


def test_a_measured_child_whose_beginning_is_gone_or_another_is_found(work: Workspace) -> None:
    bench = _bench(work)
    decided = _measured(work, bench, Child(2, "inherited"))
    key = start_key(decided)
    assert [f.key for f in check_starts(work.store, work.state).findings] == [
        f"{key}/manifest.json"
    ]
    write_child(work.store, key, bench.start_of(Child(2, "inherited")), decided.trial)
    starts = check_starts(work.store, work.state)
    assert starts.findings == []
    for name, file in starts.files.items():
        assert hashlib.sha256(work.store.read(name)).hexdigest() == file.sha256
    work.store.write(f"{key}/manifest.json", b"{")
    assert check_starts(work.store, work.state).findings[0].problem == "cannot be read"


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"after": "00-a@12"}, "reference-not-first", "after"),
        ({"inheritune": {"first": 4}}, "children-too-large", "inheritune.first"),
        ({"inheritune": {"last": 4}}, "children-too-large", "inheritune.last"),
        ({"concurrent": 90}, "machine-too-small", "concurrent"),
    ],
)
def test_a_search_for_layers_that_cannot_be_is_refused(
    work: Workspace, changes: dict[str, Any], code: str, field: str
) -> None:
    document = {"name": "s", "run": "run.yaml", "inheritune": {}} | changes
    with refused(code, field):
        plan_layer_search(work, "t.yaml", parse(document, TuningSpec, "t.yaml"))


def test_a_plan_names_the_children_and_the_most_that_they_train(work: Workspace) -> None:
    document = {"name": "s", "run": "run.yaml", "inheritune": {"first": 1}, "seeds": 2}
    plan = plan_layer_search(work, "t.yaml", parse(document, TuningSpec, "t.yaml")).to_dict()
    assert [child["layers"] for child in plan["children"]] == [1, 3]
    assert (plan["layers"], plan["steps"]) == (4, 12)
    assert plan["most_tokens"] == 2 * 2 * 2 * 12 * 1024
    limited = work.spec.model_copy(
        update={"limits": work.spec.limits.model_validate({"search_tokens": "10k tokens"})}
    )
    work = Workspace(limited, work.where)
    work.refresh()
    with refused("search-too-large", "inheritune"):
        plan_layer_search(work, "t.yaml", parse(document, TuningSpec, "t.yaml"))
