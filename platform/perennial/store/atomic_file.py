"""A file that is published when it is closed, and deleted when its writer fails."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType


class PendingFile(io.BufferedWriter):
    """A writer to `path` that calls `publish(path)` on close.

    An exception in the `with` block, or a file dropped without close, publishes nothing. The file
    at `path` is deleted afterwards unless `publish` moved it.
    """

    def __init__(self, raw: io.FileIO, path: Path, publish: Callable[[Path], object]) -> None:
        super().__init__(raw, buffer_size=1 << 20)
        self._path = path
        self._publish = publish

    def close(self) -> None:
        if self.closed:
            return
        try:
            self.flush()
            os.fsync(self.fileno())
            super().close()
            self._publish(self._path)
        except OSError as error:
            self._name_place(error)
            raise
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete what was written and publish nothing."""
        self.raw.close()
        self._path.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            if isinstance(error, OSError):
                self._name_place(error)
            self.discard()

    def _name_place(self, error: OSError) -> None:
        """Name the folder in an error of the system, which knows no name where a write failed."""
        if error.errno is not None and error.filename is None:
            error.filename = str(self._path.parent)

    def __del__(self) -> None:
        # Without this the interpreter would call close() and publish half an object.
        if not self.closed:
            warnings.warn(f"never closed: {self._path}", ResourceWarning, source=self, stacklevel=1)
            self.discard()
