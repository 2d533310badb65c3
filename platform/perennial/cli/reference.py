"""The reference pages of the command line and of its errors, README's table of verbs, templates.

`python -m perennial.cli.reference` writes all of them (`make docs`); a test keeps them current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from perennial.cli.app import PANELS, app
from perennial.cli.error_reference import error_page

_NOTE = "<!-- Written by `make docs` from the commands in platform/perennial/cli. Do not edit. -->"
_TEMPLATES = Path("platform/perennial/templates/quickstart")
_START, _END = "<!-- verbs: written by `make docs` -->", "<!-- end of verbs -->"

_INTRODUCTION = """\
Any field of the run file can be replaced on the command line: `perennial run run.yaml
replay.share=0.05`. A YAML file that holds a part of a run file can stand in the same place.

`--json` prints one JSON document on stdout, and everything else goes to stderr. A failed command
prints `{"error": {...}}` instead, with the keys `code`, `message`, `where`, `field`, `problem`,
`remedy`, `exit_code` and `others`, which has the further mistakes of the same input; the codes are
in [errors](errors.md). `--dry-run` prints the resolved run
file and what would be done, and does nothing.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | it failed; `verify` found a fault; `ingest` refused a corpus; or a gate stopped a stage |
| 2 | the input is wrong: a line for each mistake, with file, field, problem and remedy |
| 3 | another process holds the run and lives; nothing was done |
| 143 | ended by SIGTERM; the same command goes on from the last checkpoint |
"""


def write_references(root: Path) -> None:
    """Write the pages into the source tree at `root`."""
    for path, text in reference_files(root).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")


def reference_files(root: Path) -> dict[Path, str]:
    """Return the text of each generated file by its path in the source tree at `root`."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    return {
        Path("docs/reference/cli.md"): _page(),
        Path("docs/reference/errors.md"): error_page(root / "platform" / "perennial"),
        Path("README.md"): _with_table(readme),
        **_packaged(root / "pipelines"),
    }


def _packaged(pipelines: Path) -> dict[Path, str]:
    """Return the quickstart's files as the package has them, for a folder of their own."""
    _, _, text = (pipelines / "quickstart.yaml").read_text(encoding="utf-8").partition("\n")
    text = text.replace("store: ../build/quickstart/store", "store: store")
    lines = [line for line in text.splitlines() if not line.startswith("  baseline: ")]
    task = "tasks/continuation/continuation.yaml"
    return {
        _TEMPLATES / "quickstart.yaml": "\n".join(lines) + "\n",
        _TEMPLATES / task: (pipelines / task).read_text(encoding="utf-8"),
    }


def _page() -> str:
    lines = ["# The command line", "", _NOTE, "", _INTRODUCTION]
    for panel, verbs in PANELS.items():
        lines += [f"## {panel}", ""]
        for verb in verbs:
            lines += [*_section(_command(verb.__name__)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str) -> Any:
    group: Any = typer.main.get_command(app)
    return group.commands[name]


def _section(command: Any) -> Iterator[str]:
    yield f"### {command.name}"
    yield ""
    yield f"`{_usage(command)}`"
    yield ""
    yield from (line.strip() for line in command.help.splitlines())
    yield ""
    yield "| argument or option | default | meaning |"
    yield "| --- | --- | --- |"
    for parameter in command.params:
        cells = (f"`{_name(parameter)}`", _default(parameter), parameter.help or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _usage(command: Any) -> str:
    arguments = [_name(parameter) for parameter in command.params if not _is_option(parameter)]
    required = [_name(p) for p in command.params if _is_option(p) and p.required]
    return " ".join(["perennial", command.name, *arguments, *required, "[OPTIONS]"])


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts[0].startswith("--"))


def _name(parameter: Any) -> str:
    if not _is_option(parameter):
        return str(parameter.metavar or parameter.name.upper())
    if parameter.is_flag:
        return str(parameter.opts[0])
    return f"{parameter.opts[0]} {parameter.metavar or _value(parameter)}"


def _value(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    return {int: "COUNT", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default in (None, "", False) or parameter.nargs == -1:
        return ""
    return f"`{parameter.default}`"


def _with_table(readme: str) -> str:
    before, _, rest = readme.partition(_START)
    _, _, after = rest.partition(_END)
    rows = ["| | |", "| --- | --- |"]
    for verbs in PANELS.values():
        for verb in verbs:
            command = _command(verb.__name__)
            usage = (
                _usage(command).removesuffix(" [OPTIONS]").removesuffix(" [section.key=value ...]")
            )
            rows.append(f"| `{usage}` | {command.help.splitlines()[0]} |")
    return "\n".join([before + _START, *rows, _END + after])


if __name__ == "__main__":
    write_references(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
