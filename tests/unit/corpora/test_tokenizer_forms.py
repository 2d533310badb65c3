"""Forms of tokenizers besides tokenizer.json: read with their own ids, or refused with the way."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import import_protobuf

from perennial.corpora import RunTokenizer, import_tokenizer, load_tokenizer, read_tokenizer
from perennial.corpora.byte_bpe import _GPT2_SPLIT, byte_alphabet
from perennial.corpora.encoders import TokenizersEncoder, choose_encoder
from perennial.errors import InputError
from perennial.store import open_store
from tests.support.refusal import refused
from tests.support.small_tokenizers import byte_level_json

TEXTS = ["one two  three", "été 日本語 🎉\n\tx", "", "a </s> b", "<|endoftext|>", "  12345 don't"]


def write_pair(folder: Path, **config: Any) -> dict[str, Any]:
    """Write a vocab.json and a merges.txt; return the tokenizer.json of the same."""
    folder.mkdir(parents=True, exist_ok=True)
    content = byte_level_json(600)
    merges = [" ".join(pair) for pair in content["model"]["merges"]]
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return content


def ids_of(tokenizer: RunTokenizer, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in TokenizersEncoder(tokenizer).encode(texts)]


def test_a_vocabulary_with_its_merges_is_gpt2s(tmp_path: Path) -> None:
    content = write_pair(tmp_path / "pair")
    tokenizer = read_tokenizer(tmp_path / "pair")
    whole = Tokenizer.from_str(json.dumps(content))
    whole.encode_special_tokens = True
    assert ids_of(tokenizer, TEXTS) == [whole.encode(text).ids for text in TEXTS]
    assert tokenizer.manifest.end_of_document_text == "<|endoftext|>"
    assert tokenizer.vocabulary == 600
    assert choose_encoder(tokenizer, TEXTS) == "tiktoken"
    store = open_store(tmp_path / "store")
    assert import_tokenizer(store, tmp_path / "pair" / "vocab.json") == load_tokenizer(store)


def test_what_was_converted_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path / "pair")
    store = open_store(tmp_path / "store")
    first = import_tokenizer(store, tmp_path / "pair")

    def convert(*_: object) -> str:
        raise AssertionError("it is converted again")

    monkeypatch.setattr("perennial.corpora.tokenizer_files.read_as_json", convert)
    assert import_tokenizer(store, tmp_path / "pair" / "vocab.json") == first
    assert import_tokenizer(store, tmp_path / "pair", "<|endoftext|>") == first
    merges = (tmp_path / "pair" / "merges.txt").read_text().splitlines()
    (tmp_path / "pair" / "merges.txt").write_text("\n".join(merges[:-1]))
    with pytest.raises(InputError, match="it is converted again"):
        import_tokenizer(store, tmp_path / "pair")


def test_a_tokenizer_json_is_not_converted_and_its_manifest_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(byte_level_json()))
    manifest = import_tokenizer(open_store(tmp_path / "store"), path).manifest
    assert "conversion" not in manifest.model_dump()


def test_a_vocabulary_with_its_merges_is_split_as_its_folder_says(tmp_path: Path) -> None:
    write_pair(tmp_path, tokenizer_class="Qwen2Tokenizer", eos_token="<|endoftext|>")
    content = json.loads(read_tokenizer(tmp_path).json)
    assert content["normalizer"] == {"type": "NFC"}
    assert content["pre_tokenizer"]["pretokenizers"][0]["type"] == "Split"


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    folder = tmp_path / "folder"
    write_pair(folder, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    with refused("tokenizer-unreadable"):
        read_tokenizer(folder)
    assert not ran.exists()


def sentencepiece(kind: int, pieces: list[tuple[str, float, int]], **settings: Any) -> bytes:
    proto = import_protobuf().ModelProto()
    for piece, score, type_ in pieces:
        proto.pieces.add(piece=piece, score=score, type=type_)
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.unk_id = 0
    proto.trainer_spec.byte_fallback = settings.get("byte_fallback", False)
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.escape_whitespaces = True
    proto.normalizer_spec.remove_extra_whitespaces = settings.get("squeeze", False)
    data: bytes = proto.SerializeToString()
    return data


NORMAL, UNKNOWN, CONTROL, DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
BYTES = [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]


def spelled(tokenizer: RunTokenizer, text: str) -> list[str]:
    names = Tokenizer.from_str(tokenizer.json)
    (ids,) = ids_of(tokenizer, [text])
    return [str(names.id_to_token(number)) for number in ids]


def test_a_sentencepiece_bpe_merges_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    merged = [("ab", -1.0, NORMAL), ("▁ab", -2.0, NORMAL), ("▁a", -3.0, NORMAL)]
    letters = [(letter, -9.0, NORMAL) for letter in "▁abs<>/"]
    data = sentencepiece(2, [*SPECIAL, *BYTES, *merged, *letters], byte_fallback=True)
    (tmp_path / "tokenizer.model").write_bytes(data)
    tokenizer = read_tokenizer(tmp_path)
    assert (tokenizer.end_of_document, tokenizer.vocabulary) == (2, 269)
    assert spelled(tokenizer, "ab ab a  b") == ["▁ab", "▁ab", "▁a", "▁", "▁", "b"]
    assert spelled(tokenizer, "é\n") == ["▁", "<0xC3>", "<0xA9>", "<0x0A>"]
    assert spelled(tokenizer, "</s>") == ["▁", "<", "/", "s", ">"]
    assert choose_encoder(tokenizer, ["ab"]) == "tokenizers"
    assert tokenizer.build().decode(ids_of(tokenizer, ["ab é"])[0]) == "ab é"


def test_a_sentencepiece_unigram_takes_the_likeliest_pieces(tmp_path: Path) -> None:
    pieces = [("▁", -3.0, NORMAL), ("a", -3.0, NORMAL), ("b", -3.0, NORMAL), ("▁ab", -4.0, NORMAL)]
    pieces += [(letter, -8.0, NORMAL) for letter in "</>s"] + [("<sep>", 0.0, DEFINED)]
    (tmp_path / "spiece.model").write_bytes(sentencepiece(1, [*SPECIAL, *pieces], squeeze=True))
    tokenizer = read_tokenizer(tmp_path / "spiece.model")
    assert tokenizer.manifest.end_of_document_text == "</s>"
    assert spelled(tokenizer, "ab  ba ") == ["▁ab", "▁", "b", "a"]
    assert spelled(tokenizer, "a</s>") == ["▁", "a", "<", "/", "s", ">"]
    assert spelled(tokenizer, "b☃") == ["▁", "b", "<unk>"]


def test_a_tekken_has_the_ids_of_its_ranks_after_the_special_tokens(tmp_path: Path) -> None:
    model, alphabet = byte_level_json(600)["model"], byte_alphabet()
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(alphabet[c] for c in left + right) for left, right in model["merges"]]
    names = ["<unk>", "<s>", "</s>", "[INST]"]
    content: dict[str, Any] = {
        "config": {
            "pattern": _GPT2_SPLIT,
            "default_vocab_size": len(tokens) + 10,
            "default_num_special_tokens": 10,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate([*tokens, b"above the vocabulary"])
        ],
        "special_tokens": [
            {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
        ],
    }
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    tokenizer = read_tokenizer(tmp_path)
    assert (tokenizer.end_of_document, tokenizer.vocabulary) == (2, len(tokens) + 10)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    direct = tiktoken.Encoding("t", pat_str=_GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    expected = [[rank + 10 for rank in direct.encode_ordinary(text)] for text in TEXTS]
    assert ids_of(tokenizer, TEXTS) == expected
    assert choose_encoder(tokenizer, TEXTS) == "tiktoken"
    del content["special_tokens"]
    (tmp_path / "tekken.json").write_text(json.dumps(content))
    with refused("tokenizer-needs-conversion") as told:
        read_tokenizer(tmp_path)
    assert "save_pretrained" in str(told.value)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tokenizer-needs-conversion"),
        ("qwen.tiktoken", b"IQ== 0\nIg== 1\n", "tokenizer-needs-conversion"),
        ("tokenizer.model", sentencepiece(3, SPECIAL), "tokenizer-needs-conversion"),
        ("tokenizer.model", b"", "tokenizer-needs-conversion"),
        ("tokenizer.model", b"\x80\x04cos\nsystem\n", "tokenizer-unreadable"),
        ("tekken.json", b'{"config": {}, "vocab": []}', "tokenizer-unreadable"),
        ("vocab.json", b'{"a": 0}', "tokenizer-unreadable"),
    ],
)
def test_what_cannot_be_read_says_how_it_can(
    tmp_path: Path, name: str, content: bytes, code: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(code):
        read_tokenizer(tmp_path / name)


def test_a_tokenizer_json_comes_before_other_forms(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level_json(400)))
    assert read_tokenizer(tmp_path).vocabulary == 400
    with refused("file-missing") as missing:
        read_tokenizer(tmp_path / "none")
    assert "tekken.json" in missing.value.remedy
