"""A function in a process of its own, whose memory is watched."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any


def run_within(more_bytes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(*arguments)` in a new process; fail when it raises, or takes more memory.

    Args:
        more_bytes: resident memory that it may take beyond what its imports took, at any time.
        function: of a module that can be imported.
        arguments: its arguments.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_call, args=(more_bytes, function, arguments)
    )
    process.start()
    process.join()
    assert process.exitcode == 0, f"it ended with {process.exitcode}"


def _call(more_bytes: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    import transformers
    from transformers import LlamaForCausalLM  # noqa: F401, imported before memory is watched

    transformers.logging.set_verbosity_error()
    with PeakMemory() as peak:
        function(*arguments)
    assert peak.grown_bytes <= more_bytes, f"{peak.grown_bytes >> 20} MiB more"


class PeakMemory:
    """The highest resident memory of this process inside a `with` block, above that before it."""

    grown_bytes = 0

    def __enter__(self) -> PeakMemory:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is there
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.grown_bytes = _status("VmHWM") - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[name].split()[0]) << 10
