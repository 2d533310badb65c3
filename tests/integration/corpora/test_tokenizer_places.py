"""Tokenizers of several files, read from a folder and from a bucket."""

from __future__ import annotations

import json
from pathlib import Path

from perennial.corpora import read_tokenizer
from perennial.store import open_store
from tests.support.small_tokenizers import byte_level_json


def test_a_vocabulary_is_read_with_its_companions(store_url: str, tmp_path: Path) -> None:
    model = byte_level_json(600)["model"]
    files = {
        "vocab.json": json.dumps(model["vocab"]),
        "merges.txt": "\n".join(" ".join(pair) for pair in model["merges"]),
        "tokenizer_config.json": json.dumps(
            {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
        ),
    }
    store = open_store(store_url)
    local = tmp_path / "local"
    local.mkdir()
    for name, text in files.items():
        store.write(f"models/base/{name}", text.encode())
        (local / name).write_text(text)
    tokenizer = read_tokenizer(f"{store_url}/models/base")
    assert json.loads(tokenizer.json)["normalizer"] == {"type": "NFC"}
    assert tokenizer == read_tokenizer(local)
    assert tokenizer == read_tokenizer(f"{store_url}/models/base/vocab.json")
