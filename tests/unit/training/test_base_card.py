"""Licence and languages of a base's card: taken over where they are such, else named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perennial.config import RunSpec
from perennial.config.training import ModelSpec
from perennial.runs.card_metadata import describe_model
from perennial.runs.state import RunState
from perennial.runs.training_content import content_page, summarize_content
from perennial.store import open_store
from perennial.training.model.base_card import BaseCard, parse_base_card, read_base_card
from perennial.training.model.initial import import_model
from tests.support.event_factory import imported, walk
from tests.support.small_manifest import small_manifest
from tests.support.small_models import small_model
from tests.support.tiny_run import tiny_run

_OTHER = {"license": "other", "license_name": "own-1.0", "license_link": "https://example.org/l"}


@pytest.mark.parametrize(
    ("matter", "card"),
    [
        ("license: mit\nlanguage: [en, no]", BaseCard(license="mit", languages=("en", "no"))),
        ("license: [mit]\r\nlanguage: pt-BR", BaseCard(license="mit", languages=("pt-BR",))),
        (yaml.safe_dump(_OTHER), BaseCard.model_validate(_OTHER)),
        ("license: mit\nlicense_link: https://example.org", BaseCard(license="mit")),
        (
            "license: other\nlicense_link: LICENSE.txt",
            BaseCard(license="other", ignored=("license_link of its README.md",)),
        ),
        (
            "license: [a, b]\nlanguage: [de, '<b>', {x: y}]",
            BaseCard(
                languages=("de",),
                ignored=("license of its README.md", "language of its README.md"),
            ),
        ),
        ("license: &a [*a]", BaseCard(ignored=("its front matter is no YAML",))),
        ("license: !!python/object/apply:os.getcwd []", None),
        ("[" * 1200, BaseCard(ignored=("its front matter is no YAML",))),
        ("- a", BaseCard(ignored=("its front matter names no fields",))),
        ("tags: [x]", None),
        ("", None),
    ],
)
def test_front_matter_is_read_as_plain_text(matter: str, card: BaseCard | None) -> None:
    assert parse_base_card(f"---\n{matter}\n---\n# A model\n") == card


def test_a_card_without_front_matter_says_nothing(tmp_path: Path) -> None:
    assert read_base_card(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("# A model\n\n---\nlicense: mit\n---\n")
    assert read_base_card(str(tmp_path)) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\n---\n\xff")
    assert read_base_card(str(tmp_path / "model.gguf")) == BaseCard(license="mit")
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert read_base_card(str(tmp_path)) in (None, BaseCard(ignored=(
        "its README.md cannot be read (Is a directory)",)))  # fmt: skip


def test_an_import_keeps_what_the_card_says(tmp_path: Path) -> None:
    base = tmp_path / "base"
    small_model("gpt_neox", vocab_size=300).save_pretrained(base)
    store = open_store(tmp_path / "store")
    assert "card" not in import_model(store, ModelSpec(path=str(base)), 300, 0, 16).model_dump()
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    store = open_store(tmp_path / "other")
    kept = import_model(store, ModelSpec(path=str(base)), 300, 0, 16)
    assert kept.card == BaseCard(license="mit")
    assert kept == import_model(store, ModelSpec(path=str(base)), 300, 0, 16)


def _described(state: RunState, folder: Path, **sections: object) -> dict[str, object]:
    spec = RunSpec.model_validate(tiny_run(folder) | sections)
    return dict(yaml.safe_load("\n".join(describe_model(spec, state, ["a"], [])[1:-1])))


def test_a_release_has_the_licence_of_its_base_unless_the_run_file_names_one(
    tmp_path: Path,
) -> None:
    state = RunState()
    known = BaseCard.model_validate(_OTHER | {"languages": ("en",)})
    state.apply(imported().model_copy(update={"card": known}))
    walk(state, "a")
    corpora = {"sequence_length": 128, "about": {"a": {"languages": ["fr", "en"]}}}
    theirs = _described(state, tmp_path, corpora=corpora)
    assert {name: theirs[name] for name in _OTHER} == _OTHER
    assert theirs["language"] == ["en", "fr"]
    named = {"release": {"license": "mit", "languages": ["de"]}}
    ours = _described(state, tmp_path, **named)
    assert (ours["license"], ours["language"]) == ("mit", ["de"])
    assert "license_name" not in ours
    spec = RunSpec.model_validate(tiny_run(tmp_path))
    manifests = {"a": small_manifest("a")}
    record = summarize_content(spec, state, state.stages[0], 10, manifests)
    assert (record["base"]["license"], record["base"]["languages"]) == ("own-1.0", ["en"])
    assert "(licence own-1.0; languages en)" in content_page(record)
