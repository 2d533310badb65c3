"""Stream of a landed file that keeps a failure of the storage apart from damage of the file."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

BUFFER_BYTES = 1 << 20


class CountingStream(io.RawIOBase):
    """A raw stream that counts and hashes what it gave and remembers the storage's own failure.

    Decompressors and Parquet report damaged data as OSError too: only what `failure` holds came
    from the storage, and must not be taken for bad input.
    """

    def __init__(
        self, source: BinaryIO, hashed: bool = False, owner: CountingStream | None = None
    ) -> None:
        self._source, self._owner = source, owner
        self._sha256 = hashlib.sha256() if hashed else None
        self.failure: Exception | None = None
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        place = self._source.seek(offset, whence)
        if place != self.position:
            self._sha256 = None  # it is not read from its beginning to its end
        return place

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(min(len(buffer), BUFFER_BYTES))
        except Exception as error:
            # Any class: every storage client has its own. Kept for `read_span`, which raises it
            # where the reader above took it for damage.
            self.failure = error
            if self._owner is not None:
                self._owner.failure = error
            raise
        buffer[: len(data)] = data
        self.position += len(data)
        if self._sha256 is not None:
            self._sha256.update(data)
        return len(data)

    def close(self) -> None:
        """Close the storage's stream too, where it is that of a file beside another."""
        if self._owner is not None:
            self._source.close()
        super().close()

    def finish_digest(self) -> str | None:
        """Return the sha256 of the whole stream, reading the rest; None if it was not in order."""
        rest = bytearray(BUFFER_BYTES)
        while self._sha256 is not None and self.readinto(rest):
            pass
        return self._sha256.hexdigest() if self._sha256 is not None else None
