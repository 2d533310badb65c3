"""The software and the kind of processor that a step is computed with.

Two workers compute the same bits where these are the same, and may compute others where not.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version

from perennial.version import __version__

_LIBRARIES = ("torch", "ray", "deepspeed", "transformers")
_PROCESSOR = "processor"


def find_versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    libraries = {name: version(name) for name in _LIBRARIES}
    return {"perennial": __version__, "python": platform.python_version(), **libraries}


@cache
def worker_stack() -> dict[str, str]:
    """Return the versions, and what this process computes on; for workers, which have torch."""
    import torch

    if torch.cuda.is_available():
        kind = torch.cuda.get_device_name()
    else:
        kind = f"CPU {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {**find_versions(), _PROCESSOR: kind}


def describe_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return what differs between two stacks in words; nothing where one of them is not known."""
    if not before or not after:
        return []
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{n} {before.get(n, 'none')} -> {after.get(n, 'none')}" for n in names]
