"""Bytes of live tensors, from wherever they are, without a copy of all of them at once.

From a GPU they come through two pinned buffers on a stream of their own: copies out of pageable
memory would wait, and those on the default stream would stand in the queue of training's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

_BUFFER_BYTES = 64 << 20
_new_event: Callable[[], Any] = torch.cuda.Event
_new_stream: Callable[[int], torch.cuda.Stream] = torch.cuda.Stream


class QueuedWork:
    """The kernels that are queued on a GPU now; after them live tensors have their values."""

    def __init__(self) -> None:
        """Note what this thread has queued so far; nothing without a GPU."""
        self._event: Any = None
        if torch.cuda.is_available():
            self._device = torch.cuda.current_device()  # another thread has another one
            self._event = _new_event()
            self._event.record()

    def stream(self) -> torch.cuda.Stream | None:
        """Return a new stream whose work begins after this moment; None without a GPU."""
        if self._event is None:
            return None
        stream: torch.cuda.Stream = _new_stream(self._device)
        stream.wait_event(self._event)
        return stream


def tensor_bytes(
    tensors: Iterable[torch.Tensor], ready: QueuedWork | None = None
) -> Iterator[memoryview]:
    """Yield the bytes of tensors in order; a view is valid until the next one is asked for.

    Args:
        tensors: live ones, which must not change until this is exhausted.
        ready: when those on a GPU have their values; default now.
    """
    copies: _Copies | None = None
    for tensor in tensors:
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if not flat.is_cuda:
            yield flat.cpu().numpy().data
            continue
        copies = copies or _Copies((ready or QueuedWork()).stream())
        yield from copies.of(flat)


class _Copies:
    """Two pinned buffers: one is filled by the GPU while the other is read."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self._stream = stream
        self._buffers = [
            torch.empty(_BUFFER_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)
        ]

    def of(self, flat: torch.Tensor) -> Iterator[memoryview]:
        """Yield the bytes `(bytes,)` of a tensor on the GPU."""
        pending: tuple[torch.Tensor, Any] | None = None
        for number, piece in enumerate(flat.split(_BUFFER_BYTES)):  # type: ignore[no-untyped-call]
            target = self._buffers[number % 2][: piece.numel()]
            with torch.cuda.stream(self._stream):
                target.copy_(piece, non_blocking=True)
                done: Any = _new_event()
                done.record()
            if pending is not None:
                yield _wait(pending)
            pending = target, done
        if pending is not None:
            yield _wait(pending)


def _wait(pending: tuple[torch.Tensor, Any]) -> memoryview:
    target, done = pending
    done.synchronize()
    return target.numpy().data
