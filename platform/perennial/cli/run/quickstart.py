"""`perennial quickstart`: real text, three stages, a release, in an empty folder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.cli.command import AsJson, DryRun, open_run
from perennial.cli.console import log, print_json
from perennial.cli.look.status import status
from perennial.errors import InputError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

RUN_FILE, UNION = "quickstart.yaml", "union.yaml"


def quickstart(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Where text, run file and store are put")
    ] = Path("quickstart"),
    run_file: Annotated[
        Path | None,
        typer.Option("--run-file", help="Train with this run file, and write none"),
    ] = None,
    union: Annotated[
        Path | None,
        typer.Option(
            "--union",
            help="With --run-file: the run file that retrains on everything, to compare with",
        ),
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
) -> None:
    """Train three stages of real text as they land, release, compare with retraining.

    Safe to repeat and kill. Some minutes on 2 cores. Without access to a package registry the
    text is part of CPython.
    """
    if union is not None and run_file is None:
        raise InputError(
            "command line", "--union", "without --run-file the quickstart writes the file that "
            "retrains on everything", "give --run-file too, or leave it out",
            code="options-conflict",
        )  # fmt: skip
    chosen, retrained = run_file or folder / RUN_FILE, union
    if run_file is None:
        retrained = folder / UNION
    if dry_run:
        print_json({"todo": _steps(folder, chosen, retrained, writes=run_file is None)})
        return
    from perennial.sources.sample_text import fetch_text

    if run_file is None:
        write_template(files("perennial") / "templates" / "quickstart", folder)
    texts = fetch_text(folder / "text", lambda line: log.print(line, soft_wrap=True))
    for text in texts:
        run = open_run(str(chosen), None)
        run.land(text.stem, [text])
        run.watch_once()
    run = open_run(str(chosen), None)
    run.release()
    run.evaluate()
    if retrained is not None:
        log.print("retraining on all of it from scratch, to compare", markup=False)
        open_run(str(retrained), None).advance()
    status(str(chosen), as_json=as_json)


def write_template(template: Traversable, folder: Path) -> None:
    """Copy a folder of the package; a file that is there already is left as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for item in template.iterdir():
        if item.is_dir():
            write_template(item, folder / item.name)
        elif not (folder / item.name).exists():
            (folder / item.name).write_bytes(item.read_bytes())


def _steps(folder: Path, run_file: Path, union: Path | None, *, writes: bool) -> list[str]:
    return [
        *([f"write {run_file} and {union}"] if writes else []),
        f"fetch text to {folder / 'text'}",
        f"for each corpus: perennial land {run_file} NAME FILE, perennial watch {run_file} --once",
        f"perennial release {run_file}",
        f"perennial evaluate {run_file}",
        *([f"perennial run {union}"] if union is not None else []),
        f"perennial status {run_file}",
    ]
