"""`perennial land`: put files into the inbox as one corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from perennial.cli.app import AsJson, DryRun, RunFile, verb
from perennial.cli.console import out, print_json
from perennial.cli.opening import read_run, show_plan


@verb
def land(
    run_file: RunFile,
    name: Annotated[str, typer.Argument(help="Name of the corpus")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILES... [section.key=value ...]", help="Files, then overrides"),
    ],
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Upload files to the inbox as corpus NAME, marker last. Safe to repeat."""
    from perennial import corpora
    from perennial.cli.console import Screen
    from perennial.controller.context import Workspace
    from perennial.controller.ingest_stage import check_size

    overrides = [word for word in files if "=" in word and not Path(word).exists()]
    paths = [Path(word) for word in files if word not in overrides]
    work = Workspace(read_run(run_file, overrides), str(run_file), [Screen()])
    corpora.check_name(name)
    corpora.check_files(paths)
    check_size(work, name, sum(path.stat().st_size for path in paths))
    if dry_run:
        show_plan(work.spec, [f"upload {path} to {work.inbox.url}/{name}" for path in paths])
        return
    work.inbox.check()
    keys = corpora.land(work.inbox, name, paths)
    if as_json:
        print_json({"corpus": name, "inbox": work.inbox.url, "keys": keys})
        return
    out.print(f"landed {name}: {len(keys)} files in {work.inbox.url}/{name}")
    out.print(f"next   perennial run {run_file}")
