"""Trace of a few steps by PyTorch's profiler."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from perennial.store import Store

FIRST, LAST = 4, 7
"""steps of a worker group that are traced: the ones before them warm up what they use"""


class Trace:
    """Traces steps FIRST to LAST after a start, and then nothing more."""

    def __init__(self, store: Store, key: str, *, wanted: bool) -> None:
        self._store = store
        self._key = key
        self._steps = 0 if wanted else LAST + 1
        self._profile: profile | None = None

    def step(self) -> None:
        """Count a step that is about to begin, and start or end the trace."""
        self._steps += 1
        if self._steps == FIRST:
            kinds = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                kinds.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=kinds, record_shapes=True)
            self._profile.start()
        elif self._steps == LAST + 1:
            self.close()

    def close(self) -> None:
        """Write what was traced, where nothing was written yet."""
        if self._profile is None:
            return
        self._profile.stop()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "trace.json.gz"
            self._profile.export_chrome_trace(str(path))
            self._store.upload(path, self._key)
        self._profile = None
