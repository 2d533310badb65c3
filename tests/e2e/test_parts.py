"""A corpus in parts through a whole run, on a folder and on S3: plan, stages, replay, verify."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import SEQUENCE_LENGTH, tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def _mixed(folder: Path) -> Path:
    """Both small corpora as the parts of one."""
    path = folder / "mixed.jsonl"
    with path.open("w") as stream:
        for name, file in write_texts(folder).items():
            for line in file.read_text().splitlines():
                stream.write(json.dumps(json.loads(line) | {"source": name}) + "\n")
    return path


def test_a_run_takes_exactly_the_weights_of_a_corpus_and_replays_what_was_seen(
    store_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    if not open_store(store_url).is_local:
        env |= request.getfixturevalue("s3_server").environment()
    document = tiny_run(tmp_path, store_url)
    document["corpora"] |= {"read": {"mixed": {"domain_field": "source", "parts": "domain"}}}
    document["stages"] |= {"corpora": {"mixed": {"weights": {"help": 3, "code": 1, "more": 1}}}}
    document["training"] |= {"workers": 1, "micro_batch": 8}
    run_file = write_run(tmp_path, document)
    perennial("land", run_file, "mixed", _mixed(tmp_path), env=env)
    told = perennial("run", run_file, code=2, env=env)
    assert "stages.corpora.mixed.weights: it has no part 'more'" in told
    assert "'help': 0." in told
    document["stages"]["corpora"]["mixed"]["weights"] = {"help": 3, "code": 1}
    run_file = write_run(tmp_path, document)
    planned = perennial_json("plan", run_file, env=env)["stages"][0]["sources"]
    tokens = {s["part"]: s["tokens"] // SEQUENCE_LENGTH for s in planned}
    assert tokens == {"help": 72, "code": 24}
    perennial("land", run_file, "again", write_texts(tmp_path)["help"], env=env)
    status = perennial_json("run", run_file, env=env)
    assert status["trained"] == 2
    first, second = Ledger(open_store(store_url)).read().stages
    rows = {part.part: part.first for part in first.mix.sources}
    assert rows == {"code": 0, "help": first.mix.sources[0].extent}
    for step in range(first.mix.steps):
        pair = zip(first.mix.count_taken(step), first.mix.count_taken(step + 1), strict=True)
        assert [after - before for before, after in pair] == [2, 6]
    replayed = {source.part: source.sequences for source in second.mix.replayed}
    assert replayed == {"help": 18, "code": 6}
    shown = perennial_json("status", run_file, env=env)["tokens"]
    assert shown[first.name]["parts"]["mixed"] == {
        part: count * SEQUENCE_LENGTH for part, count in tokens.items()
    }
    assert "mixed: help 75.0%, code 25.0%" in perennial("status", run_file, env=env)
    proof = perennial_json("verify", run_file, env=env)
    assert (proof["holds"], proof["findings"]) == (True, [])
