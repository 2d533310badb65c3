"""Releases that are copied to a folder, a bucket, or a stand-in for the Hugging Face Hub."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from perennial.config import RunSpec
from perennial.controller.context import Workspace
from perennial.controller.publish import check_empty, check_place, publish
from perennial.corpora import read_tokenizer
from perennial.corpora.release_tokenizer import release_files
from perennial.errors import Altered, InputError
from perennial.evaluation.loss import HeldoutLoss
from perennial.runs.entities import StoredOrigin
from perennial.runs.events import Released, Releasing
from perennial.runs.stage_planner import decide_release
from perennial.runs.state import RunState
from perennial.runs.training_content import FILES as CONTENT
from perennial.runs.training_content import content_files
from perennial.store import open_store
from perennial.training.model.export import export
from tests.support.committed import commit_model
from tests.support.event_factory import AT, imported, releasing, walk
from tests.support.hub_server import receiving_hub
from tests.support.measured_run import measured_run
from tests.support.refusal import refused
from tests.support.small_manifest import small_manifest
from tests.support.small_models import small_model
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run

LOSS = HeldoutLoss("en", 3.25, 1.5, 10, 100, 200, 0.01)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Workspace, Releasing, Released]:
    """Return a run with a release that was exported, measured and scored."""
    own = tiny_run(tmp_path)
    own["release"] = {
        "anneal": "3 steps",
        "license": "apache-2.0",
        "languages": ["en", "fr"],
        "base_model": "org/base",
    }
    spec, state, store = RunSpec.model_validate(own), RunState(), open_store(tmp_path / "store")
    walk(state, "a")
    decided = decide_release(spec, state, state.stages[0], state.stages[0].last_step, None, AT)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level_json(300)))
    files = release_files(read_tokenizer(tmp_path / "tokenizer.json"))
    files["additional_chat_templates/tools.jinja"] = b"{{ tools }}"
    manifests = {"a": small_manifest("a")}
    files |= content_files(spec, state, state.stages[0], decided.step, manifests, decided.mix)
    model = small_model("llama", vocab_size=300)
    export(store, commit_model(store, model, tmp_path / "saved"), "releases/r", files, "A card.")
    released = Released(
        at=AT,
        name=decided.name,
        source=decided.source,
        folder="releases/r",
        steps=3,
        schedule={},
        losses={"en": LOSS},
        samples=[],
    )
    state.scores[decided.name] = [{"task": "arc", "metric": "acc", "value": 0.5}]
    work = SimpleNamespace(
        spec=spec,
        state=state,
        store=store,
        log=lambda _: None,
        manifests=lambda: {"a": small_manifest("a")},
    )
    return cast("Workspace", work), decided, released


Made = tuple[Workspace, Releasing, Released]


def test_a_copy_is_loaded_and_its_card_is_the_hubs_form(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    publish(*made, str(place))
    assert AutoModelForCausalLM.from_pretrained(place, local_files_only=True).num_parameters()
    assert AutoTokenizer.from_pretrained(place, local_files_only=True)("a")["input_ids"]
    assert (place / "additional_chat_templates/tools.jinja").read_text() == "{{ tools }}"
    card = ModelCard.load(place / "README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", ["en", "fr"])
    assert card.data.base_model == "org/base"
    results = {(r.dataset_name, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert results == {
        ("en, held out", "nats-per-token"): 3.25,
        ("en, held out", "bits-per-byte"): 1.5,
        ("arc", "acc"): 0.5,
    }
    assert "| a | " in card.text
    snippet = card.text.partition("```python\n")[2].partition("```")[0]
    assert "digest" in card.text
    shown: list[str] = []
    exec(snippet, {"print": shown.append})
    assert len(shown) == 1


def test_the_card_has_the_losses_beside_those_of_base_and_retraining(
    made: Made, tmp_path: Path
) -> None:
    work, decided, released = made
    union = measured_run(tmp_path / "union", ("en", "zz"))
    own = LOSS
    their = HeldoutLoss("en", 3.0, 1.4, own.documents, own.tokens, own.bytes, 0.1)
    union.ledger.append(releasing(union.state, "whole"))
    union.ledger.append(
        Released(
            at=AT, name="whole", source="c", folder="r", steps=0, schedule={},
            losses={"en": their}, samples=[],
        )
    )  # fmt: skip
    work.spec = work.spec.model_copy(
        update={"evaluation": work.spec.evaluation.model_copy(update={"baseline": union.store.url})}
    )
    base = StoredOrigin(imported(), {"en": replace(own, nats_per_token=4.0)})
    work.state.origins["base"] = base
    publish(work, decided, released, str(tmp_path / "copy"))
    text = (tmp_path / "copy" / "README.md").read_text()
    assert "| corpus | the base | this model | tiny, trained from scratch on all of it |" in text
    assert "| en | 4.000 | 3.250 | 3.000 |" in text
    work.spec = work.spec.model_copy(
        update={
            "evaluation": work.spec.evaluation.model_copy(
                update={"baseline": str(tmp_path / "nowhere")}
            )
        }
    )
    publish(work, decided, released, str(tmp_path / "copy"))
    assert "trained from scratch" not in (tmp_path / "copy" / "README.md").read_text()


def test_a_copy_is_completed_and_anything_else_is_left_alone(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    publish(*made, str(place))
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*.*") if path.is_file()}
    (place / "config.json").unlink()  # as a copy that was stopped
    publish(*made, str(place))
    rewritten = {path.name for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert rewritten == {"config.json", "README.md", *CONTENT}
    (place / "mine.txt").write_text("mine")
    with refused("place-unusable", "--to"):
        publish(*made, str(place))
    assert (place / "mine.txt").read_text() == "mine"
    (place / "mine.txt").unlink()
    (place / "config.json").write_text("{}")
    with refused("place-unusable", "--to"):
        publish(*made, str(place))
    assert (place / "config.json").read_text() == "{}"


def test_a_copy_may_be_one_gguf_file(made: Made, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    publish(*made, str(place), gguf=True)
    publish(*made, str(place), gguf=True)
    name = f"{made[0].spec.name}-{made[1].name}.gguf"
    assert {file.name for file in place.iterdir()} == {"README.md", *CONTENT, name}
    assert AutoModelForCausalLM.from_pretrained(place, gguf_file=name, local_files_only=True)
    card = ModelCard.load(place / "README.md")
    assert "gguf" in card.data.tags
    assert f'Llama("{place}/{name}")' in card.text


def test_an_altered_release_is_not_copied(made: Made, tmp_path: Path) -> None:
    made[0].store.write("releases/r/config.json", b"{}")
    with pytest.raises(Altered):
        publish(*made, str(tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("place", ["hf://org", "hf://datasets/a/b", "hf://", "ftp://a/b", ""])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(InputError) as caught:
        check_place(place)
    assert caught.value.field == "--to"


def test_a_place_that_holds_something_is_refused_before_a_release_is_made(tmp_path: Path) -> None:
    check_empty("hf://org/model")
    check_empty(str(tmp_path / "none"))
    (tmp_path / "mine.txt").write_text("mine")
    with refused("place-unusable", "--to") as caught:
        check_empty(str(tmp_path))
    assert "it holds mine.txt" in str(caught.value)


def test_a_bucket_gets_a_copy_that_its_card_loads(
    made: Made, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"{s3_url}/models/own"
    publish(*made, place)
    publish(*made, place)
    target = open_store(place)
    promised = json.loads(made[0].store.read("releases/r/manifest.json"))["files"]
    assert {entry.key for entry in target.list()} == promised.keys()
    monkeypatch.chdir(tmp_path)
    text = target.read("README.md").decode()
    shown: list[str] = []
    exec(text.partition("```python\n")[2].partition("```")[0], {"print": shown.append})
    assert len(shown) == 1


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_the_hub_gets_a_private_model_in_one_commit(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in takes the place of the Hub, which nothing reaches from a test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with receiving_hub("hf_right") as (address, received):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        publish(*made, "hf://org/own")
        publish(*made, "hf://org/own")
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        with refused("place-unusable", "--to"):
            publish(*made, "hf://org/own")
    assert received.private == {"org/own": True}
    assert received.messages == [f"Release {made[1].name}"] * 2
    files = received.files["org/own"]
    store = made[0].store
    promised = json.loads(store.read("releases/r/manifest.json"))["files"]
    assert files.keys() == promised.keys()
    assert all(
        files[name] == store.read(f"releases/r/{name}") for name in files.keys() - {"README.md"}
    )
    card: dict[str, Any] = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["base_model"] == "org/base"
    assert 'from_pretrained("org/own")' in files["README.md"].decode()
