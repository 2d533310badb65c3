"""What every verb shares: its arguments, and how a failure ends it."""

from __future__ import annotations

import functools
import inspect
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import perennial
from perennial.causes import describe, is_storage_full, storage_error
from perennial.cli.console import ProgressScreen, print_json, print_json_line, stdout_for_answers
from perennial.cli.log_lines import (
    LogFormat,
    LogFormatOption,
    for_screen,
    using_format,
    write_line,
)
from perennial.errors import InputError, PerennialError, StorageError, TaskFailed, Terminated

if TYPE_CHECKING:
    from perennial.api import Run

# No Path: a run may also be named by its store, whose URL a Path would spoil.
RunFile = Annotated[
    str, typer.Argument(metavar="RUN_FILE", help="The run file, such as pipelines/quickstart.yaml")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[section.key=value ...]", help="Fields that replace the file's"),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved run file and what would be done")
]
Reschedule = Annotated[
    bool,
    typer.Option("--reschedule", help="Go on under a schedule that is not the trunk's so far"),
]

TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Stop the process that holds the run, and go on")
]

_STOPPED = "stopped; the same command goes on from the last checkpoint"
_SIGTERM_CODES = (signal.SIGTERM, Terminated.exit_code)
"""exit codes of SystemExit on SIGTERM: Ray's handler gives the first, the launcher's the second"""


def open_run(run_file: str, overrides: Sequence[str] | None) -> Run:
    """Open the run that a command names, with its progress on stderr."""
    return perennial.open(run_file, overrides or (), observers=[ProgressScreen()])


def as_command(verb: Callable[..., None]) -> Callable[..., None]:
    """Return a verb whose failures end in one line each on stderr, and an exit code.

    It gets one option more, the format of the log.

    The code is 2 for wrong input, 3 where another process holds the run, 143 after SIGTERM,
    otherwise 1. With `--json`, stdout has the
    failure as a document as well.
    """

    @functools.wraps(verb)
    def command(*args: Any, log_format: LogFormat = LogFormat.SCREEN, **kwargs: Any) -> None:
        as_json = kwargs.get("as_json") is True
        with stdout_for_answers(), using_format(log_format):
            try:
                verb(*args, **kwargs)
            except KeyboardInterrupt:
                _fail({"code": "interrupted", "message": _STOPPED, "exit_code": 1}, as_json)
            except SystemExit as ended:
                if ended.code not in _SIGTERM_CODES:
                    raise
                _fail(_terminated(_STOPPED), as_json)
            except Terminated as ended:
                _fail(_terminated(str(ended)), as_json)
            except Exception as failure:
                ending = ending_of(failure)
                if ending is None:
                    raise
                if isinstance(ending, InputError) and "run_file" in kwargs:
                    ending = ending.name_file(str(kwargs["run_file"]))
                _fail(ending.to_dict(), as_json)

    known = inspect.signature(verb, eval_str=True)
    more = inspect.Parameter(
        "log_format", inspect.Parameter.KEYWORD_ONLY, default=LogFormat.SCREEN,
        annotation=LogFormatOption,
    )  # fmt: skip
    # What typer reads the options of the command from.
    vars(command)["__signature__"] = known.replace(parameters=[*known.parameters.values(), more])
    return command


def ending_of(failure: Exception) -> PerennialError | None:
    """Return the failure to report in one line; None for a bug, which keeps its traceback."""
    if isinstance(failure, InputError):
        return failure
    if is_storage_full(failure):
        return failure if isinstance(failure, StorageError) else storage_error(failure)
    if isinstance(failure, PerennialError):
        return failure
    if type(failure).__module__.partition(".")[0] == "ray":
        # Its traceback is the cluster's; the store has it where an action failed.
        return TaskFailed(describe(failure))
    return storage_error(failure) if isinstance(failure, OSError) else None


def _terminated(message: str) -> dict[str, Any]:
    return {"code": Terminated.code, "message": message, "exit_code": Terminated.exit_code}


def _fail(error: dict[str, Any], as_json: bool) -> None:
    others = error.get("others", [])
    for failure in (error, *others):
        failure["message"] = " ".join(str(failure["message"]).split())
        if for_screen():
            print(f"perennial: {failure['message']}", file=sys.stderr)
        else:
            write_line(failure["message"], "error", code=failure["code"])
    if as_json:
        # Every document has the same keys, whatever the kind of failure.
        parts = dict.fromkeys(("where", "field", "problem", "remedy"))
        print_json_line({"error": parts | error | {"others": others}})
    raise typer.Exit(int(error["exit_code"]))


def check_output(output: Path | None, option: str = "--output") -> None:
    """Refuse a file of an option that cannot or should not be written, before any work is done.

    Its folder does not exist, it is a folder, or it has the name of a run file.
    """
    if output is None:
        return
    if output.is_dir() or output.suffix in (".yaml", ".yml"):
        kind = "a folder" if output.is_dir() else "named as run files are"
        raise InputError(
            "command line", option, f"{output} is {kind}",
            "name a file that may be written over", code="output-unusable",
        )  # fmt: skip
    if not output.absolute().parent.is_dir():
        folder = str(output.absolute().parent)
        raise InputError(
            "command line", option, f"{folder} is no folder", "make it first",
            code="folder-missing",
        )  # fmt: skip


def print_preview(run: Run, actions: Sequence[str], more: Mapping[str, Any] | None = None) -> None:
    """Print what `--dry-run` shows: the resolved run file, what would be done, and more of it."""
    document = {"spec": run.spec.model_dump(mode="json"), "todo": list(actions)}
    print_json(document | dict(more or {}))
