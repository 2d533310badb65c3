"""The tokenizer of a GGUF file, with all that the file says of its use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from perennial.corpora import import_tokenizer, read_base_files
from perennial.corpora.release_tokenizer import release_files
from perennial.store import open_store
from perennial.training.model.gguf_file import write_gguf
from tests.support.base_folders import ARCHITECTURES, write_base
from tests.support.small_models import small_model

CHAT = [{"role": "user", "content": "12 tests"}, {"role": "assistant", "content": "pass"}]


@pytest.mark.parametrize(
    ("family", "end", "begin"),
    [
        ("llama3", "<|end_of_text|>", "<|begin_of_text|>"),
        ("mistral", "</s>", "<s>"),
        ("smollm2", "<|endoftext|>", None),
    ],
)
def test_a_release_has_the_special_tokens_and_the_template_of_its_base(
    tmp_path: Path, family: str, end: str, begin: str | None
) -> None:
    base = write_base(tmp_path / "base", family)
    generation = (base / "generation_config.json").read_bytes()
    small_model(ARCHITECTURES[family], vocab_size=600).save_pretrained(base)
    (base / "generation_config.json").write_bytes(generation)
    (tmp_path / "alone").mkdir()
    write_gguf(base, tmp_path / "alone" / "base.gguf", "base")
    store = open_store(tmp_path / "store")
    tokenizer = import_tokenizer(store, tmp_path / "alone" / "base.gguf")
    its = tokenizer.manifest
    assert (its.end_of_document_text, its.begin_of_document_text or None) == (end, begin)
    shutil.rmtree(tmp_path / "alone")
    (tmp_path / "release").mkdir()
    for name, data in release_files(tokenizer, read_base_files(store, tokenizer)).items():
        (tmp_path / "release" / name).write_bytes(data)
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / n) for n in ("release", "base"))
    for field in ("bos_token", "eos_token", "unk_token", "pad_token", "chat_template"):
        assert getattr(ours, field) == getattr(theirs, field), field
    assert ours("12 tests pass").input_ids == theirs("12 tests pass").input_ids
    if theirs.chat_template is not None:
        asked = ours.apply_chat_template(CHAT)
        assert asked["input_ids"] == theirs.apply_chat_template(CHAT)["input_ids"]
