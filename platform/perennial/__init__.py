"""Perennial keeps a language model in training for as long as data keeps arriving.

`perennial.open` gives a run, whose methods are the verbs of the command line, and whose tables are
pandas DataFrames:

    import perennial

    run = perennial.open("pipelines/quickstart.yaml")
    run.land("english", ["english.jsonl"])
    run.advance()
    print(run.matrix())
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from perennial.errors import InputError, PerennialError, Terminated
from perennial.version import __version__

if TYPE_CHECKING:
    from perennial.api import Run
    from perennial.api.events import RunEvent
    from perennial.controller.observer import RunObserver

__all__ = ["InputError", "PerennialError", "Run", "RunEvent", "Terminated", "__version__", "open"]


def open(  # noqa: A001 - read as `perennial.open`
    run: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    observers: Sequence[RunObserver] = (),
) -> Run:
    """Open a run by its run file, or by the store of a run that exists.

    Nothing is computed or written, and Ray is not started.

    Args:
        run: path of a run file (`.yaml` or `.yml`), or a store: a folder or a bucket's URL.
            From a store alone the run file is the one that the ledger recorded when the run was
            opened: such a run can be read and decided about, not trained.
        overrides: `section.key=value`, or YAML files that hold a part of a run file.
        observers: follow what the verbs do, such as progress; none prints nothing.

    Returns:
        The run, with a method for each verb.

    Raises:
        InputError: the run file is wrong, or there is no run in the store.
    """
    # Imported late: `import perennial` must stay cheap, and loads neither pydantic nor YAML.
    from perennial.api import open_run

    return open_run(run, overrides, observers)


def __getattr__(name: str) -> object:
    """Load `perennial.Run` and `perennial.RunEvent` on first use."""
    if name == "Run":
        from perennial.api import Run

        return Run
    if name == "RunEvent":
        from perennial.api.events import RunEvent

        return RunEvent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
