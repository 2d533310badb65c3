"""Observers see how often a source failed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from perennial.config import load_run
from perennial.controller.context import Workspace
from perennial.controller.observer import ObservedRun, RunObserver
from perennial.controller.source_poller import open_sources, pull_due
from tests.support.tiny_run import tiny_run, write_run

NOW = datetime(2026, 11, 22, 2, 0, tzinfo=UTC)


class Seen(RunObserver):
    def __init__(self) -> None:
        self.tried: list[tuple[str, int]] = []

    def source_tried(self, work: ObservedRun, source: str, failures: int) -> None:
        self.tried.append((source, failures))


def test_each_attempt_is_seen_with_the_failures_before_it(tmp_path: Path) -> None:
    program = tmp_path / "pull.sh"
    program.write_text("exit 1\n")
    source = {"command": ["sh", str(program)], "schedule": "1d"}
    document = tiny_run(tmp_path) | {"sources": {"crawl": source}}
    seen = Seen()
    run = load_run(write_run(tmp_path, document))
    work = Workspace(run, "run.yaml", observers=[seen])
    sources = open_sources(work)
    pull_due(work, sources, NOW)
    pull_due(work, sources, NOW + timedelta(hours=2))
    program.write_text('echo "a text that is pulled" > "$OUT/text.txt"\n')
    pull_due(work, sources, NOW + timedelta(hours=9))
    assert seen.tried == [("crawl", 1), ("crawl", 2), ("crawl", 0)]
