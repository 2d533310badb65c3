"""Pages in a real browser: Debian's chromium, driven by Playwright.

`python -m tests.support.browser URI EXPERIMENT LINEAGE PICTURE STAGES...` makes a picture of
the docs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tests.support.mlflow_server import PATIENCE_SECONDS

CHROMIUM = shutil.which("chromium")
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CHARTS = ("train/loss", "versus_tokens/train/loss")


def look_at_lineage(
    uri: str, experiment: str, lineage: str, stages: Sequence[str], picture: Path
) -> None:
    """Open the lineage in the list of runs, see every stage and the charts, keep a picture."""
    from playwright.sync_api import Error, expect, sync_playwright

    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": 1400, "height": 1080})
        page.set_default_timeout(PATIENCE_SECONDS * 1000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{uri}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
        with suppress(Error):  # MLflow's assistant takes half the page on a first visit
            page.get_by_role("button", name="Close").first.click(timeout=15_000)
        name = page.get_by_role("link", name=lineage, exact=True)
        row = page.get_by_role("gridcell").filter(has=name).first
        row.get_by_role("button").first.click()
        for stage in stages:
            expect(page.get_by_role("link", name=stage, exact=True).first).to_be_visible()
        page.get_by_placeholder("Search metric charts").fill("train/loss")
        for chart in CHARTS:
            expect(page.get_by_text(chart, exact=True).first).to_be_visible()
        drawn = page.locator(".js-plotly-plot .scatterlayer path.js-line")
        expect(drawn.nth(len(CHARTS) * len(stages) - 1)).to_be_attached()
        page.screenshot(path=str(picture))
        browser.close()
    assert errors == []


def look_at_page(
    uri: str, picture: Path, media: Literal["screen", "print"], width: int, dark: bool
) -> list[str]:
    """Keep a picture of a whole page; the addresses of everything that it fetched."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    fetched: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.emulate_media(media=media, color_scheme="dark" if dark else "light")
        page.goto(uri)
        page.screenshot(path=str(picture), full_page=True)
        browser.close()
    assert errors == []
    return fetched


if __name__ == "__main__":
    look_at_lineage(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[5:], Path(sys.argv[4]))
