"""What two documents have in common, estimated from what a few bytes of each remember."""

from __future__ import annotations

import re

import numpy as np
import pytest

from perennial.corpora.ingest.near_dedup import compute_minhash

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
