"""Text, then token ids of the same tokenizer, through a whole run, on a folder and on S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from perennial.corpora import read_manifest
from perennial.store import open_store
from tests.support.cli import perennial, perennial_json
from tests.support.id_files import megatron, write_all
from tests.support.small_tokenizers import byte_level_json
from tests.support.tiny_run import tiny_run, write_run, write_texts

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_a_stage_of_token_ids_is_trained_measured_reported_and_verified(
    store_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    if not open_store(store_url).is_local:
        env |= request.getfixturevalue("s3_server").environment()
    tokenizer_file = tmp_path / "tokenizer.json"
    tokenizer_file.write_text(json.dumps(byte_level_json(300)))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    document = tiny_run(tmp_path, store_url)
    document["tokenizer"] = {"path": str(tokenizer_file)}
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["corpora"] |= {"read": {"code": {"tokens": {"tokenizer": "0" * 64}}}}
    run_file = write_run(tmp_path, document)
    texts = write_texts(tmp_path)
    code = [json.loads(line)["text"] for line in texts["code"].read_text().splitlines()]
    ids = [each.ids for each in tokenizer.encode_batch(code) if each.ids]
    end = tokenizer.token_to_id("<|endoftext|>") or 0
    perennial("land", run_file, "help", texts["help"], env=env)
    perennial("land", run_file, "code", *write_all(tmp_path / "ids", megatron(ids, end)), env=env)
    assert "the ids are of 000000" in perennial("run", run_file, env=env, code=2)
    fingerprint = json.loads(open_store(store_url).read("tokenizer/manifest.json"))["fingerprint"]
    document["corpora"]["read"]["code"]["tokens"] = {"tokenizer": fingerprint, "vocabulary": 304}
    run_file = write_run(tmp_path, document)
    done = perennial_json("run", run_file, env=env)
    assert done["trained"] == 1
    losses = done["matrix"]["stages"][-1]["losses"]
    assert losses["code"]["bits_per_byte"] is None
    assert 0 < losses["code"]["nats_per_token"] < 7
    assert losses["help"]["bits_per_byte"] > 0
    manifest = read_manifest(open_store(store_url), "code")
    assert manifest.counts.check().documents == len(ids)
    assert (manifest.engine, manifest.counts.quarantined) == ("ids", {})
    perennial("status", run_file, env=env)
    perennial("report", run_file, env=env)
    assert perennial_json("release", run_file, env=env)["samples"]
    proof = perennial_json("verify", run_file, env=env)
    assert (proof["holds"], proof["findings"]) == (True, [])
