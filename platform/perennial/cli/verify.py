"""`perennial verify`: prove a run from what is in its store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from perennial.cli.app import AsJson, Overrides, RunFile, verb
from perennial.cli.console import log, out, print_json
from perennial.cli.opening import read_run

if TYPE_CHECKING:
    from perennial.audit.verify import Verification


@verb
def verify(run_file: RunFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Prove from the store alone that the run is what its ledger says. Reads only."""
    from perennial.audit.verify import verify as prove
    from perennial.store import open_store

    store = open_store(read_run(run_file, overrides).store)
    began = time.monotonic()
    with _Bar() as bar:
        done = prove(store, bar.show)
    seconds = time.monotonic() - began
    if as_json:
        print_json(
            {
                "store": store.url,
                "holds": not done.findings,
                "proved": _proved(done),
                "files": done.files,
                "bytes": done.read_bytes,
                "findings": [vars(finding) for finding in done.findings],
            }
        )
    else:
        _tell(done, store.url, seconds)
    if done.findings:
        raise typer.Exit(1)


class _Bar:
    """A live line of bytes read, on a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("verifying"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("{task.fields[key]}"),
            console=log,
            transient=True,
            disable=not log.is_terminal,
        )
        self._task = self._bars.add_task("verifying", total=None, key="")

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, key: str, read_bytes: int, all_bytes: int) -> None:
        self._bars.update(self._task, completed=read_bytes, total=all_bytes, key=key)


def _tell(done: Verification, url: str, seconds: float) -> None:
    for finding in done.findings:
        out.print(str(finding), markup=False)
    if not done.findings:
        table = Table(title=f"{url} holds", title_justify="left")
        table.add_column("proved")
        table.add_column("of")
        for what, amount in _proved(done).items():
            table.add_row(what, amount)
        out.print(table)
    faults = len(done.findings)
    end = "no fault" if not faults else f"{faults} fault{'s' if faults > 1 else ''}"
    out.print(
        f"read {done.files:,} files, {done.read_bytes / 1e6:,.1f} MB in {seconds:.1f} s: {end}"
    )


def _proved(done: Verification) -> dict[str, Any]:
    """What was checked, and of how much."""
    state = done.story.state
    counts = [manifest.counts for manifest in done.manifests.values()]
    documents = sum(count.documents for count in counts)
    tokens = sum(count.tokens for count in counts)
    rows = sum(manifest.rows for manifest in done.manifests.values())
    trunk = sum(key.startswith("checkpoints/") for key in done.checkpoints)
    return {
        "the ledger has no gap and folds": f"{len(done.story.events):,} events",
        "one corpus, one stage (I4)": f"{len(state.stages):,} stages of {len(counts):,} corpora",
        "each stage's mix is its history's": f"{len(state.stages):,} mixes",
        "each step was taken once, on a whole batch (I4)": _steps(done),
        "nothing was dropped silently (I5)": f"{documents:,} documents, {tokens:,} tokens",
        "shards have their rows": f"{rows:,} rows",
        "what is committed is whole (I6)": (
            f"{trunk:,} checkpoints, {len(done.checkpoints) - trunk:,} on branches, "
            f"{done.releases:,} released"
        ),
    }


def _steps(done: Verification) -> str:
    state = done.story.state
    trained = sum(stage.mix.steps for stage in state.stages if stage.name in state.ends)
    return f"{trained:,} steps of finished stages"
