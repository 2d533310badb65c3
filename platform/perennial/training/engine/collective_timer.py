"""Timing DeepSpeed's collectives, wherever in a step it calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perennial.training.engine.deepspeed_internals import wrap_collectives
from perennial.training.engine.step_timer import Meter

_COLLECTIVES = (
    "all_reduce",
    "inference_all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter_tensor",
    "reduce_scatter",
    "all_gather_into_tensor",
    "all_gather",
    "all_gather_coalesced",
    "all_to_all_single",
    "broadcast",
    "barrier",
)


def meter_collectives(meter: Meter, note: Callable[[], None]) -> None:
    """Charge the time that this process spends in DeepSpeed's collectives to communication.

    A collective that blocks takes its time and what this rank waits for the others; one that does
    not is charged when it is waited for. What the hardware does meanwhile is not counted.

    Args:
        meter: of the step's parts.
        note: called whenever a collective begins.
    """
    wrap_collectives(_COLLECTIVES, lambda call: _timed(_noted(call, note), meter))


def _noted(call: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
    def noted(*args: Any, **kwargs: Any) -> Any:
        note()
        return call(*args, **kwargs)

    return noted


def _timed(call: Callable[..., Any], meter: Meter) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        before = meter.to("communication")
        try:
            result = call(*args, **kwargs)
        finally:
            meter.to(before)
        return _Handle(result, meter) if hasattr(result, "wait") else result

    return timed


class _Handle:
    """A collective under way; waiting for it is communication."""

    def __init__(self, handle: Any, meter: Meter) -> None:
        self._handle = handle
        self.wait = _timed(handle.wait, meter)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)
