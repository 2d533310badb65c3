"""The summary of training content: what the lineage knows, and the fields for what it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec
from perennial.config.changes import run_fields
from perennial.corpora.manifest import CorpusPart, IngestSettings
from perennial.runs.state import RunState
from perennial.runs.training_content import PAGE, RECORD, content_files, summarize_content
from tests.support.event_factory import BATCH, STEPS, imported, walk
from tests.support.small_manifest import small_manifest
from tests.support.tiny_run import tiny_run

LENGTH = 128
TITLES = (
    "1. General information",
    "1.1 Provider identification",
    "1.2 Model identification",
    "1.3 Modalities, overall training data size and other characteristics",
    "2. List of data sources",
    "2.1 Publicly available datasets",
    "2.2 Private non-publicly available datasets obtained from third parties",
    "2.2.1 Datasets commercially licensed by rightsholders or their representatives",
    "2.2.2 Private datasets obtained from other third parties",
    "2.3 Data crawled and scraped from online sources",
    "2.4 User data",
    "2.5 Synthetic data",
    "2.6 Other sources of data",
    "3. Data processing aspects",
    "3.1 Respect of reservation of rights from text and data mining exception or limitation",
    "3.2 Removal of illegal content",
    "3.3 Other information",
)
"""The template's sections, in its words and order."""
NAMES = ("a", "feed-2025-06-30.2", "never-trained")


@pytest.fixture
def state() -> RunState:
    """Two stages from a stored model; the second one replays a quarter."""
    made = RunState()
    made.apply(imported())
    walk(made, NAMES[0])
    walk(made, NAMES[1])
    return made


def _summarize(state: RunState, folder: Path, **sections: Any) -> dict[str, bytes]:
    spec = RunSpec.model_validate(tiny_run(folder) | sections)
    return content_files(spec, state, state.stages[1], 2 * STEPS, _manifests())


def _manifests() -> dict[str, Any]:
    parts = (CorpusPart(name="news", rows=3, documents=2, remainder_tokens=0),)
    settings = IngestSettings(sequence_length=LENGTH, seed=0, steps=({"kind": "language"},))
    manifests = {name: small_manifest(name) for name in NAMES}
    return manifests | {NAMES[0]: small_manifest(NAMES[0], parts=parts, settings=settings)}


def test_what_is_not_recorded_names_a_field_that_records_it(
    state: RunState, tmp_path: Path
) -> None:
    files = _summarize(state, tmp_path)
    page = files[PAGE].decode()
    fields = set(re.findall(r"\*not recorded\* \(`([\w.-]+)`\)", page))
    known = {field.name for field in run_fields()}
    names = "|".join(re.escape(f"about.{name}.") for name in NAMES)
    plain = {re.sub(names, "about.NAME.", field) for field in fields}
    assert plain <= known, "every one is a field of the run file"
    assert {"release.summary.provider", "release.base_model", "corpora.about.NAME.kind"} <= plain
    assert "release.summary.copyright" in plain
    titles = re.findall(r"^##+ (.*)$", page, re.MULTILINE)
    titles.remove("Corpora whose kind is not recorded")
    assert tuple(titles) == TITLES
    assert json.loads(files[RECORD])["provider"] is None
    assert files == _summarize(state, tmp_path), "the same again"


def test_what_the_lineage_and_the_run_file_know_is_filled_in(
    state: RunState, tmp_path: Path
) -> None:
    about = {
        "a": {"kind": "public", "title": "A corpus", "license": "cc-by-4.0", "languages": ["fr"]},
        "feed-*": {"kind": "crawled", "note": "by the crawler feedbot, which obeys robots.txt"},
    }
    sources = {"feed": {"index": "https://example.org/list?token=s3cret", "schedule": "1d"}}
    corpora = {"sequence_length": LENGTH, "about": about}
    release = {"base_model": "org/base", "summary": {"provider": "Example Ltd, mail@example.org"}}
    files = _summarize(state, tmp_path, corpora=corpora, sources=sources, release=release)
    page, record = files[PAGE].decode(), json.loads(files[RECORD])
    first, feed = record["corpora"]
    assert [first["name"], feed["name"]] == [NAMES[0], NAMES[1]], "what was trained, and no more"
    rows = BATCH * STEPS
    assert first["tokens_trained"] == rows * LENGTH
    assert first["tokens_replayed"] == rows // 4 * LENGTH
    assert feed["tokens_trained"] == rows * 3 // 4 * LENGTH
    assert record["tokens_trained"] + record["tokens_replayed"] == 2 * rows * LENGTH
    assert (first["domains"], first["steps"]) == (["news"], ["language"])
    assert feed["collected"] == "pulled on 2025-06-30"
    assert "s3cret" not in page + files[RECORD].decode()
    assert feed["source"].startswith("https://example.org/list")
    assert "https://huggingface.co/org/base" in page
    public, crawled = page.split("### 2.2")[0], page.split("### 2.3")[1].split("### 2.4")[0]
    assert "**A corpus**" in public
    assert "cc-by-4.0" in public
    assert "feedbot" in crawled
    assert "1 too-long" in crawled
    assert "Example Ltd" in page
    assert "Corpora whose kind is not recorded" not in page


def test_an_anneal_is_counted_with_what_it_replays(state: RunState, tmp_path: Path) -> None:
    spec, stage = RunSpec.model_validate(tiny_run(tmp_path)), state.stages[1]
    plain = summarize_content(spec, state, stage, 2 * STEPS, _manifests())
    more = summarize_content(spec, state, stage, 2 * STEPS, _manifests(), stage.mix)
    assert more["tokens_trained"] == plain["tokens_trained"]
    assert more["tokens_replayed"] == plain["tokens_replayed"] + stage.mix.steps * BATCH * LENGTH
