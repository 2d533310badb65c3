"""The generated pages of the command line: current, and complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.cli.app import PANELS
from perennial.cli.error_reference import input_codes
from perennial.cli.reference import reference_files

ROOT = Path(__file__).parents[3]
FILES = reference_files(ROOT)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_generated_file_is_current(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == FILES[path], "run `make docs`"


def test_every_verb_is_in_the_reference_and_in_the_readme() -> None:
    page, readme = FILES[Path("docs/reference/cli.md")], FILES[Path("README.md")]
    for verb in (verb for verbs in PANELS.values() for verb in verbs):
        assert f"\n### {verb.__name__}\n" in page
        assert f"| `perennial {verb.__name__} " in readme


def test_the_errors_page_has_every_code() -> None:
    page = FILES[Path("docs/reference/errors.md")]
    codes = input_codes(ROOT / "platform" / "perennial")
    assert {"run-file-needed", "file-missing", "unknown-key", "nothing-landed"} <= codes.keys()
    for code in codes:
        assert f"| `{code}` | " in page
    for code in ("training-failed", "superseded", "terminated", "interrupted"):
        assert f"| `{code}` | " in page
