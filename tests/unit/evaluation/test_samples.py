"""Samples of what is no text: what a function of the user's makes of them, and what is kept."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from perennial.evaluation.samples import (
    MOST_BYTES,
    PNG,
    OwnVocabulary,
    Renderer,
    Rendering,
    Sample,
    continue_document,
    describe_undrawn,
)
from perennial.runs.event_codec import decode, encode
from perennial.runs.events import Measured
from perennial.runs.metrics import sample_pictures, sample_text

ME = "tests.unit.evaluation.test_samples"


def draw(ids: Sequence[int], given: int, document: Sequence[int], colour: str = "") -> bytes:
    return PNG + bytes([given, len(ids), len(document)]) + colour.encode()


def write(ids: Sequence[int], given: int, document: Sequence[int]) -> str:
    return f"{given} of {len(document)}"


def fail(ids: Sequence[int], given: int, document: Sequence[int]) -> str:
    raise RuntimeError("no ink")


def make_too_much(ids: Sequence[int], given: int, document: Sequence[int]) -> str:
    return "x" * (MOST_BYTES + 1)


def make_number(ids: Sequence[int], given: int, document: Sequence[int]) -> int:
    return given


def render(name: str, **parameters: Any) -> Rendering:
    return Renderer(f"{ME}:{name}", parameters).render([1, 2, 3], 2, [1, 2, 4, 5])


def test_a_picture_or_a_text_is_kept_with_the_path_and_the_digest_of_the_code() -> None:
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    picture = render("draw", colour="red")
    assert base64.b64decode(picture.png) == PNG + bytes([2, 3, 4]) + b"red"
    assert picture.by == f"{ME}:draw sha256 {digest}"
    assert render("write") == Rendering(f"{ME}:write sha256 {digest}", text="2 of 4")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("fail", "RuntimeError: no ink"),
        ("make_too_much", "65,537 characters"),
        ("make_number", "returned int and neither PNG nor text"),
        ("absent", "AttributeError"),
        ("ME", "no Python source"),
    ],
)
def test_a_function_that_draws_nothing_is_named_and_costs_nothing_else(
    name: str, problem: str
) -> None:
    made = render(name)
    assert (made.png, made.text) == ("", "")
    assert made.by.startswith(f"{ME}:{name}") and problem in made.problem
    assert "cannot be called" in render("write", colour="red").problem
    missing = Renderer("no_such_module:draw", {}).render([1], 1, [1])
    assert missing == Rendering(
        "no_such_module:draw", problem="ModuleNotFoundError: No module named 'no_such_module'"
    )


def samples() -> list[Sample]:
    missing = Rendering("gone:draw", problem="not there")
    return [
        Sample("english", "Once", "upon"),
        Sample("digits", "0 1", "2", render("draw")),
        Sample("chess", "4", "5", render("write")),
        Sample("music", "6", "7", missing),
    ]


def test_pictures_go_to_mlflow_as_files_and_texts_with_the_texts() -> None:
    assert sample_pictures(samples()) == {"sample-1-digits.png": PNG + bytes([2, 3, 4])}
    text = sample_text(samples()).decode()
    assert text.startswith("[english] Once ...upon\n\n[digits] 0 1 ...2\n(drawn by ")
    assert "\n2 of 4\n(drawn by " in text
    assert text.endswith("[music] 6 ...7\n(not drawn: gone:draw: not there)")
    assert describe_undrawn(samples()) == {"music": "gone:draw: not there"}


def test_the_ledger_gives_samples_back() -> None:
    event = Measured(at="2026-01-01T00:00:00+00:00", stage="base", losses={}, samples=[*samples()])
    assert decode(encode(event)).event == event


class Counting:
    """A model that writes the numbers after its last one."""

    device = "cpu"

    def generate(self, input_ids: Any, max_new_tokens: int, **_: Any) -> Any:
        import torch

        last = int(input_ids[0, -1])
        new = torch.arange(last + 1, last + 1 + max_new_tokens)[None]
        return torch.cat([input_ids, new], dim=1)


def test_a_model_continues_a_document_until_it_leaves_the_vocabulary() -> None:
    def continued(size: int) -> list[int]:
        own = OwnVocabulary(first=300, size=size)
        document = [3, 4, 5, 6, 7, 8]
        return continue_document(Counting(), document, 0, own, given=2, end=0, seed=0)

    assert continued(17) == [3, 4, 5, 6, 7, 8]
    assert continued(7) == [3, 4, 5, 6]
