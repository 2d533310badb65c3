"""What two documents have in common, estimated from what a few bytes of each remember."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.corpora import IngestSettings, RunTokenizer, land, train_tokenizer
from perennial.corpora.encoders import make_encoder
from perennial.corpora.ingest import near_dedup, shared_text
from perennial.corpora.ingest.near_dedup import (
    BandHasher,
    NearDuplicateIndex,
    compute_minhash,
    write_index,
)
from perennial.corpora.ingest.shared_text import SharedTextIndex, hash_runs
from perennial.corpora.manifest import InputFile
from perennial.store import open_store
from tests.support.passages import PASSAGES, SPACED, staged

WORDS = np.array([f"w{i}" for i in range(2000)])


def similarity(a: str, b: str) -> float:
    """The Jaccard similarity of two texts' runs of 5 words, by its definition."""
    sets = []
    for text in (a, b):
        words = re.findall(r"\w+", text.casefold())
        sets.append({tuple(words[i : i + 5]) for i in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def estimate(a: str, b: str) -> float:
    first, second = compute_minhash(a.encode()), compute_minhash(b.encode())
    assert first is not None
    assert second is not None
    return float(np.mean(first == second))


def test_the_share_of_equal_numbers_estimates_the_similarity() -> None:
    rng, errors = np.random.default_rng(0), []
    for _ in range(100):
        words = rng.choice(WORDS, rng.integers(20, 1500)).tolist()
        other = [rng.choice(WORDS) if rng.random() < 0.03 else word for word in words]
        a, b = " ".join(words), " ".join(other[rng.integers(0, len(words) // 4) :])
        errors.append(estimate(a, b) - similarity(a, b))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.05


def test_case_punctuation_and_white_space_have_no_part() -> None:
    a = "One two, three four five six. Seven eight NINE ten été!"
    b = a.upper().replace(",", " -").replace(" ", "\n\n")
    assert estimate(a, b) == 1
    assert estimate(a, a.replace("four", "4")) < 1


def test_the_order_of_words_matters() -> None:
    words = WORDS[:400]
    assert estimate(" ".join(words), " ".join(words[::-1])) < 0.05


@pytest.mark.parametrize("text", ["", "one two three four", " \n!?"])
def test_fewer_words_than_a_run_have_none(text: str) -> None:
    assert compute_minhash(text.encode()) is None


def test_long_texts_are_taken_in_parts_with_the_same_result() -> None:
    text = " ".join(f"{word} {i % 7}" for i, word in enumerate(np.tile(WORDS, 5)))
    both = compute_minhash((text + " " + text).encode())
    assert both is not None
    found = compute_minhash(text.encode())
    assert found is not None
    # The same runs but for the four that span the seam.
    assert np.count_nonzero(both == found) >= 126


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> RunTokenizer:
    """A tokenizer of 1,000 pieces that was trained on the passages."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "a.txt").write_text("\n\n".join(PASSAGES.values()))
    store = open_store(folder)
    land(store.sub("inbox"), "a", [folder / "a.txt"])
    settings = IngestSettings(sequence_length=8, seed=0)
    return train_tokenizer(store, store.sub("inbox"), "a", 1000, settings)


def find_near(
    folder: Path, tokenizer: RunTokenizer, held: list[str], texts: list[str]
) -> tuple[dict[int, str], NearDuplicateIndex]:
    """The texts that are near duplicates of held-out ones, by the index that was searched."""
    encoder = make_encoder(tokenizer, "tiktoken")
    hasher, staging = BandHasher(tokenizer, encoder), open_store(folder)
    signatures = []
    for documents in (staged(held), staged(texts)):
        ids = encoder.encode_documents(documents.texts())
        signatures.append(hasher.hash_documents(documents.texts(), ids))
    write_index(staging, 0, staged(held), signatures[:1])
    inputs = (InputFile(name="a", size_bytes=1, etag=""),)
    index = NearDuplicateIndex(staging, 1, inputs, 0.8)
    return index.search(staged(texts), signatures[1]), index


def documents_of(language: str, count: int) -> list[str]:
    """Documents of a language: pieces of its passage of 3 to 8 characters, in other orders."""
    chance, text = random.Random(0), PASSAGES[language].replace(" ", "")
    starts, space = range(len(text) - 8), " " if language in SPACED else ""
    return [
        space.join(text[i : i + chance.randint(3, 8)] for i in chance.choices(starts, k=100))
        for _ in range(count)
    ]


@pytest.mark.parametrize("language", PASSAGES)
def test_copies_in_another_spelling_are_found_in_every_script(
    tmp_path: Path, tokenizer: RunTokenizer, language: str
) -> None:
    held, others = np.array(documents_of(language, 122)).reshape(2, 61).tolist()
    kinds = {
        "decomposed": [unicodedata.normalize("NFKD", text) for text in held],
        "soft hyphens": [re.sub(r"(?<=\w)(?=\w)", "\u00ad", text) for text in held],
        "capitals": [text.upper() for text in held],
        "others": others,
    }
    found, _ = find_near(tmp_path, tokenizer, held, [*chain(*kinds.values())])
    counts = Counter([*kinds][row // 61] for row in found)
    assert counts == dict.fromkeys([*kinds][:3], 61)
    assert all(int(detail.split()[-1]) == row % 61 for row, detail in found.items())


def boilerplate(count: int, seed: int) -> list[str]:
    """Documents of 300 words, of which the first half is the same in all."""
    chance = random.Random(seed)
    pieces = documents_of("en", 20)
    same = " ".join(pieces[:2]).split()[:150]
    vocabulary = " ".join(pieces).split()
    return [" ".join([*same, *chance.choices(vocabulary, k=150)]) for _ in range(count)]


def test_copies_among_documents_that_share_boilerplate_are_found(
    tmp_path: Path, tokenizer: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, others = boilerplate(400, 1), boilerplate(100, 2)
    copies = [text.replace(" ", ",\n", 60) for text in held[::-4]]
    read = NearDuplicateIndex._read_minhashes
    asked: list[int] = []

    def counted(index: NearDuplicateIndex, wanted: Any) -> Any:
        asked.append(len(wanted))
        return read(index, wanted)

    monkeypatch.setattr(NearDuplicateIndex, "_read_minhashes", counted)
    found, index = find_near(tmp_path, tokenizer, held, [*copies, *others])
    assert {row: int(detail.split()[-1]) for row, detail in found.items()} == {
        row: 399 - 4 * row for row in range(100)
    }
    assert len(asked) == 1, "one reading for all documents of a batch"
    assert index.partly_compared <= 5
    some = [0, 1, 5, 200, 399]  # read by more than one request, with what is between them
    for number, minhash in zip(some, read(index, np.array(some, dtype=np.uint32)), strict=True):
        expected = compute_minhash(held[number].encode())
        assert expected is not None
        assert np.array_equal(minhash, expected)


def test_the_search_says_where_it_compared_with_some_alone(
    tmp_path: Path, tokenizer: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_dedup, "_RANKED", 20)
    held, others = boilerplate(60, 1), boilerplate(20, 2)
    found, index = find_near(tmp_path, tokenizer, held, [*others, *documents_of("fr", 9)])
    assert not found
    assert 10 <= index.partly_compared <= 20
    alone = find_near(tmp_path / "alone", tokenizer, held[:20], others)[1]
    assert alone.partly_compared == 0


def edited(texts: list[str], changes: int) -> list[str]:
    """The texts with some words changed, behind the half that all share."""
    chance, result = random.Random(3), []
    for text in texts:
        words = text.split()
        for place in chance.sample(range(150, 300), changes):
            words[place] = f"changed{place}"
        result.append(" ".join(words))
    return result


def test_what_is_left_out_by_the_bound_is_like_nothing(
    tmp_path: Path, tokenizer: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, others = boilerplate(200, 1), boilerplate(100, 2)
    accented = [text.replace("e", "\u00e9") for text in held[:20]]
    texts = [*others, *documents_of("fr", 20), *accented]
    for changes in (1, 3, 5, 7, 9):  # similarities of 0.97 to 0.73
        texts += edited(held[20 * changes :][:20], changes)
    held += accented
    found, index = find_near(tmp_path / "a", tokenizer, held, texts)
    assert index._shared._tables, "bands that many share were looked at"
    seen = Counter((row - 140) // 20 for row in found)
    assert [seen[group] for group in range(-7, 3)] == [0] * 6 + [20] * 4
    monkeypatch.setattr(SharedTextIndex, "find_unlike_bands", lambda *given: given[2] < 0)
    monkeypatch.setattr(SharedTextIndex, "find_unlike_pairs", lambda *given: given[2] < 0)
    assert find_near(tmp_path / "b", tokenizer, held, texts)[0] == found


def test_runs_are_those_that_similarity_is_measured_by() -> None:
    texts = ["", "four words are few", "a B c D e a b c d E a", "One, two-three: été ÉTÉ _x1 two"]
    texts += ["word " * 9, " ".join(f"w{number}" for number in range(2000)), "a b c d e"]
    data = [text.encode() for text in texts]
    runs = hash_runs(data, None)
    assert runs.sizes.tolist() == [0, 0, 5, 3, 1, 1996, 1]
    parts = [
        set(runs.values[begin:end].tolist())
        for begin, end in zip(runs.bounds[:-1], runs.bounds[1:], strict=True)
    ]
    assert [*map(len, parts)] == runs.sizes.tolist()
    assert parts[6] < parts[2]
    assert parts[3].isdisjoint(parts[2])
    for text, own in zip(data, parts, strict=True):
        alone = set(hash_runs([text], None).values.tolist())
        assert alone == own, "a run does not depend on the texts around it"
    some = hash_runs(data, 100)
    assert 70 < some.bounds[6] - some.bounds[5] < 130
    assert set(some.values[some.bounds[5] : some.bounds[6]].tolist()) < parts[5]
    assert some.sizes.tolist() == runs.sizes.tolist()


def test_no_table_is_made_for_a_band_that_few_ask_for(
    tmp_path: Path, tokenizer: RunTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_text, "_ASKED", 1)
    held, others = boilerplate(60, 1), boilerplate(4, 2)
    found, index = find_near(tmp_path, tokenizer, held, [*others, held[7]])
    assert [*found] == [4]
    assert not index._shared._tables
