"""The documentation as a site: built as `make docs` builds it, and read without a network."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import perennial

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
# What a browser fetches by itself; a link is followed by its reader.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*?\bsrc=["']?((?:https?:)?//[^"'> ]+)"""
    r"""|<link\b[^>]*?\brel=["']?(?:stylesheet|preconnect|preload|icon)\b[^>]*?"""
    r"""\bhref=["']?((?:https?:)?//[^"'> ]+)"""
)
_IN_STYLE = re.compile(r"""(?:@import|url\()\s*["']?(?:https?:)?//""")


@pytest.mark.long
def test_the_site_has_no_warning_all_methods_and_nothing_of_another_site() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(SITE.rglob("*.html"))
    sources = sorted((ROOT / "docs").rglob("*.md"))
    assert len(pages) > len(sources)
    fetched = {
        f"{page.relative_to(SITE)}: {match[0]}"
        for page in pages
        for match in _FETCHED.finditer(page.read_text(encoding="utf-8"))
    }
    assert not fetched
    styles = [sheet for sheet in SITE.rglob("*.css") if _IN_STYLE.search(sheet.read_text())]
    assert not styles
    reference = (SITE / "reference/python.html").read_text(encoding="utf-8")
    methods = [name for name in dir(perennial.Run) if not name.startswith("_")]
    missing = [name for name in methods if f'id="perennial.api.run.Run.{name}"' not in reference]
    assert not missing
    assert 'id="perennial.open"' in reference
    assert str(ROOT) not in reference
