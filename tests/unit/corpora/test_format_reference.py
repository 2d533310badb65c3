"""The generated page of file formats: current, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.corpora.formats.base import FORMATS
from perennial.corpora.formats.reference import PAGE, format_page

ROOT = Path(__file__).parents[3]


def test_the_page_is_current() -> None:
    assert (ROOT / PAGE).read_text(encoding="utf-8") == format_page(), "run `make docs`"


@pytest.mark.parametrize("key", list(FORMATS))
def test_a_format_says_all_that_a_user_asks(key: str) -> None:
    form = FORMATS[key]
    assert all(form.notes), "document, offset, limit and damage"
    for suffix in form.suffixes:
        assert f"`{suffix}`" in format_page()
