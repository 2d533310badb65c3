"""Decompression of landed files, and an account of what could not be decompressed.

A compressed file is a sequence of members (frames in zstd) that decode independently, each with a
checksum at its end. Where the file ends early, all text before is kept. Where a member is damaged,
those before it are kept: decoders go on behind a flipped bit and give other text than was written,
so that a member without its checksum cannot be relied on.
"""

from __future__ import annotations

import bz2
import io
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn, Protocol

from perennial.corpora.formats.base import TRAILING, TRUNCATED, WINDOW, estimate_documents

COMPRESSIONS = {".gz": 3, ".zst": 3, ".bz2": 4, ".xz": 4}
"""bytes of text in a compressed byte, roughly; see `FileFormat.expansion`"""

MAX_WINDOW_BYTES = 1 << 27
"""of zstd: what its own command decodes without `--long`, and so what a reader may need to hold"""

_STORED_BYTES = 1 << 14
_TEXT_BYTES = 1 << 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAGICS = {".gz": b"\x1f\x8b", ".zst": _ZSTD_MAGIC, ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}
_LONGEST_HEADER = 18  # of a zstd frame
_SMALLEST_GZIP = 18
_GARBAGE = 4096
"""Bytes behind the last member that are no damaged one: a signature, or what a transfer added."""
_DECODER_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


@dataclass(frozen=True)
class LostPart:
    """The part of a compressed file that could not be read.

    Attributes:
        reason: TRUNCATED, TRAILING or WINDOW.
        detail: what the decoder met, in words.
        position: where the text ends that can be relied on, in bytes of text.
        stored_bytes: bytes of the file that gave no such text, and where the file says how long it
            was, those that are missing.
        documents: how many it held, where they can be counted by its text; else None.
        is_cut: whether the file ends early and does not say how long it was.
    """

    reason: str
    detail: str
    position: int
    stored_bytes: int
    documents: int | None = None
    is_cut: bool = False


class _Broken(Exception):
    """A decoder cannot go on; carries the reason and what it met."""

    def __init__(self, reason: str, detail: str, at_end: bool = False) -> None:
        super().__init__(reason, detail, at_end)
        self.reason, self.detail, self.at_end = reason, detail, at_end


class _Decoder(Protocol):
    """Decodes one member, as the decompressors of the standard library do."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class DecompressedStream(io.RawIOBase):
    """The text of a compressed file, as a raw stream that cannot seek.

    Damage is raised as OSError where it is met; `describe_loss` then says what it cost. What the
    stored stream itself raises passes through.

    Args:
        stored: the compressed bytes, from the beginning of the file.
        size_bytes: the size of the stored file.
        compression: a key of COMPRESSIONS.
        limit: bytes of text behind which OSError is raised in any case.
        max_window_bytes: the largest window of a zstd frame, which decoding it holds in memory. An
            `.xz` file may need twice as much.
    """

    def __init__(
        self,
        stored: BinaryIO,
        size_bytes: int,
        compression: str,
        limit: int | None = None,
        max_window_bytes: int = MAX_WINDOW_BYTES,
    ) -> None:
        self._feed = _Feed(stored)
        self._size = size_bytes
        self._compression = compression
        self._limit = limit
        self._max_window_bytes = max_window_bytes
        self._broken: _Broken | None = None
        self._text = memoryview(b"")
        self._chunks = self._decode()
        self.position = 0
        # Stored bytes that gave the text so far, and both numbers at the end of the last member.
        self._consumed = 0
        self._verified = (0, 0)

    def readable(self) -> bool:
        return True

    @property
    def is_damaged(self) -> bool:
        """Return whether the decoder met damage."""
        return self._broken is not None

    @property
    def checked_position(self) -> int:
        """Return where the text ends of the members whose checksums were right."""
        return self._verified[0]

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            try:
                self._text = memoryview(next(self._chunks))
            except StopIteration:
                return 0
            except _Broken as broken:
                self._broken = broken
                raise OSError(broken.detail) from broken
            if self._text:
                self._consumed = self._feed.consumed
        size = min(len(buffer), len(self._text))
        if self._limit is not None:
            size = min(size, self._limit - self.position)
            if size == 0:
                raise OSError("what follows does not have its checksum")
        buffer[:size] = self._text[:size]
        self._text = self._text[size:]
        self.position += size
        return size

    def describe_loss(self, documents: int, text_bytes: int) -> LostPart | None:
        """Return what could not be read; None where the decoder met no damage.

        Args:
            documents: good documents that some of the text held.
            text_bytes: the size of that text.
        """
        broken = self._broken
        if broken is None:
            return None
        if broken.reason == TRAILING:
            behind = self._size - self._feed.consumed
            text = behind * self.position // max(1, self._consumed)
            count = estimate_documents(documents, text_bytes, text) if behind > _GARBAGE else 0
            return LostPart(TRAILING, broken.detail, self.position, behind, count)
        if broken.at_end:
            return self._describe_cut(documents, text_bytes, broken)
        position, consumed = self._verified
        # Nothing before that checksum can be relied on: damage shows long after it was met.
        count = estimate_documents(documents, text_bytes, self._estimate_text() - position)
        return LostPart(broken.reason, broken.detail, position, self._size - consumed, count)

    def _describe_cut(self, documents: int, text_bytes: int, broken: _Broken) -> LostPart:
        unread = max(0, self._size - self._consumed)
        text = self._feed.text_bytes
        if text is None or not self.position:
            return LostPart(broken.reason, broken.detail, self.position, unread, is_cut=True)
        missing = math.ceil(self._consumed * (text - self.position) / self.position)
        count = estimate_documents(documents, text_bytes, text - self.position)
        return LostPart(broken.reason, broken.detail, self.position, max(unread, missing), count)

    def _estimate_text(self) -> int:
        """Return about how much text the whole file holds."""
        likely = round(self.position * self._size / max(1, self._consumed))
        text = self._feed.text_bytes
        if text is None and self._compression == ".gz":
            text = self._read_gzip_size()
        # A size that does not fit the readable part is that of another member, or damaged itself.
        fits = text is not None and max(self.position, likely / 2) <= text <= likely * 2
        return text if text is not None and fits else likely

    def _read_gzip_size(self) -> int | None:
        """Return the bytes of text that a gzip file's last four bytes promise."""
        trailer = self._feed.read_end(4) if self._size >= _SMALLEST_GZIP else b""
        return int.from_bytes(trailer, "little") if len(trailer) == 4 else None

    def _decode(self) -> Iterator[bytes]:
        """Yield the text of all members of the file. Raises _Broken for what is none."""
        feed, magic = self._feed, _MAGICS[self._compression]
        members = 0
        while head := feed.peek(_LONGEST_HEADER):
            if self._compression == ".zst" and _is_skippable(head):
                feed.skip(8 + int.from_bytes(head[4:8], "little"))
                continue
            if not head.startswith(magic):
                if members == 0:
                    _refuse_beginning(head, magic, self._compression)
                feed.skip_zeros()
                rest = feed.peek(len(magic))
                if rest and not rest.startswith(magic):
                    end = f"behind the end of the compressed data are {rest!r} and more"
                    raise _Broken(TRAILING, end)
                continue
            if self._compression == ".zst":
                yield from _decode_frame(feed, head, members == 0, self._max_window_bytes)
            else:
                decoder = _MAKERS[self._compression](self._max_window_bytes)
                yield from _decode_member(feed, decoder, self._max_window_bytes)
            members += 1
            self._verified = (self.position, feed.consumed)


class _Feed:
    """The stored bytes, of which decoders give back what they do not need.

    Attributes:
        consumed: stored bytes that were taken and not given back.
        text_bytes: text of the whole file, where its only frame says it.
    """

    def __init__(self, stored: BinaryIO) -> None:
        self._stored = stored
        self._held = b""
        self.consumed = 0
        self.text_bytes: int | None = None

    def peek(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end, without taking them."""
        while len(self._held) < size and (more := self._stored.read(_STORED_BYTES)):
            self._held += more
        return self._held[:size]

    def take(self) -> bytes:
        """Take some bytes; b"" at the end."""
        data, self._held = self._held or self._stored.read(_STORED_BYTES), b""
        self.consumed += len(data)
        return data

    def take_exactly(self, size: int) -> bytes:
        """Take `size` bytes. Raises _Broken where the file ends before."""
        data = self.peek(size)
        if len(data) < size:
            raise _Broken(TRUNCATED, "the file ends within a frame", at_end=True)
        self._held = self._held[size:]
        self.consumed += size
        return data

    def give_back(self, data: bytes) -> None:
        """Give back what was taken last."""
        self._held = data + self._held
        self.consumed -= len(data)

    def skip(self, size: int) -> None:
        """Take `size` bytes and keep none of them. Raises _Broken where the file ends before."""
        while size and (data := self.take()):
            if len(data) > size:
                self.give_back(data[size:])
            size -= min(size, len(data))
        if size:
            raise _Broken(TRUNCATED, "the file ends within a frame", at_end=True)

    def skip_zeros(self) -> None:
        """Take zero bytes, which pad the end of a file on tapes and in archives."""
        while (data := self.take()) and not data.strip(b"\0"):
            pass
        self.give_back(data.lstrip(b"\0"))

    def read_end(self, size: int) -> bytes:
        """Return the last bytes of the file; nothing can be taken afterwards."""
        self._held = b""
        self._stored.seek(-size, io.SEEK_END)
        return self._stored.read(size)


def _refuse_beginning(head: bytes, magic: bytes, compression: str) -> NoReturn:
    if magic.startswith(head):
        raise _Broken(TRUNCATED, "the file ends within its header", at_end=True)
    raise _Broken(TRUNCATED, f"no {compression} file: it begins with {head[:12]!r}")


def _decode_member(feed: _Feed, decoder: _Decoder, window: int) -> Iterator[bytes]:
    while not decoder.eof:
        data = feed.take() if decoder.needs_input else b""
        at_end = not data and decoder.needs_input
        try:
            text = decoder.decompress(data, _TEXT_BYTES)
        except _DECODER_ERRORS as error:
            raise _describe_failure(error, window) from error
        if text:
            yield text
        elif at_end:
            raise _Broken(TRUNCATED, "the file ends before its compressed data", at_end=True)
    feed.give_back(decoder.unused_data)


def _describe_failure(error: Exception, window: int) -> _Broken:
    if isinstance(error, lzma.LZMAError) and "emory" in str(error):  # liblzma has no code for it
        limit = f"its .xz needs more than {2 * window >> 20} MiB of memory"
        remedy = "set corpora.max_zstd_window to half of what it needs, or compress it with xz -9"
        return _Broken(WINDOW, f"{limit}; {remedy}")
    return _Broken(TRUNCATED, str(error))


class _Inflater:
    """Decoder of a gzip member that gives all text before damage, to the byte."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._failure: zlib.error | None = None

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail and self._failure is None

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if self._failure is not None:
            raise self._failure
        data = self._decoder.unconsumed_tail + data
        before = self._decoder.copy()
        try:
            return self._decoder.decompress(data, max_length)
        except zlib.error as failure:
            # zlib gives nothing of the call in which it fails, and it fails for a bad checksum too.
            self._failure = failure
            return b"".join(_inflate_bytewise(before, data))


def _inflate_bytewise(decoder: Any, data: bytes) -> Iterator[bytes]:
    try:
        for index in range(len(data)):
            yield decoder.decompress(data[index : index + 1])
    except zlib.error:
        return


_MAKERS: dict[str, Callable[[int], _Decoder]] = {
    ".gz": lambda _window: _Inflater(),
    ".bz2": lambda _window: bz2.BZ2Decompressor(),
    ".xz": lambda window: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * window),
}


def _is_skippable(head: bytes) -> bool:
    return len(head) >= 8 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def _decode_frame(
    feed: _Feed, head: bytes, is_first: bool, max_window_bytes: int
) -> Iterator[bytes]:
    """Yield the text of a zstd frame, block by block, so that what precedes damage is known."""
    import zstandard

    try:
        header = zstandard.get_frame_parameters(head)
        size = zstandard.frame_header_size(head)
        if header.window_size > max_window_bytes:
            raise _Broken(WINDOW, _describe_window(header.window_size, max_window_bytes))
        if header.dict_id:
            raise _Broken(TRUNCATED, _describe_dictionary(header.dict_id))
        known = is_first and header.content_size != zstandard.CONTENTSIZE_UNKNOWN
        feed.text_bytes = header.content_size if known else None
        decoder = zstandard.ZstdDecompressor(max_window_size=max_window_bytes).decompressobj()
        decoder.decompress(feed.take_exactly(size))
        is_last = False
        while not is_last:
            begin = feed.take_exactly(3)
            field = int.from_bytes(begin, "little")
            is_last, is_run = bool(field & 1), field >> 1 & 3 == 1
            yield decoder.decompress(begin + feed.take_exactly(1 if is_run else field >> 3))
        if header.has_checksum:
            decoder.decompress(feed.take_exactly(4))
    except zstandard.ZstdError as error:
        raise _Broken(TRUNCATED, str(error)) from error


def _describe_window(window: int, limit: int) -> str:
    exponent = (window - 1).bit_length()
    return (
        f"it needs a window of {window >> 20} MiB (zstd --long={exponent}), and at most "
        f"{limit >> 20} MiB are held; set corpora.max_zstd_window, or compress it with a smaller "
        f"one: zstd -dc --long={exponent} FILE | zstd -o NEW"
    )


def _describe_dictionary(number: int) -> str:
    return (
        f"it was compressed with zstd dictionary {number}, which is not in the file; compress it "
        "without: zstd -D DICTIONARY -dc FILE | zstd -o NEW"
    )
