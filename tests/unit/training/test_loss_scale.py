"""fp16's factor of the loss: kept in a checkpoint, and set when training goes on from it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from perennial.training.engine.deepspeed_internals import loss_scale, set_loss_scale


def _engine(*, fp16: bool, zero: bool) -> Any:
    """Stand in for an engine: DeepSpeed builds one of fp16 only where a GPU is."""
    scaler = DynamicLossScaler(65536.0, 2.0, 1000, 1.0, 2, False, "fp16")
    optimizer = SimpleNamespace(loss_scaler=scaler) if zero else SimpleNamespace(cur_scale=65536.0)
    return SimpleNamespace(optimizer=optimizer, fp16_enabled=lambda: fp16)


@pytest.mark.parametrize("zero", [True, False])
def test_the_scale_is_read_and_set_where_deepspeed_keeps_it(zero: bool) -> None:
    engine = _engine(fp16=True, zero=zero)
    assert loss_scale(engine) == 65536.0
    set_loss_scale(engine, 1024.0)
    assert loss_scale(engine) == 1024.0


def test_other_formats_have_none() -> None:
    engine = _engine(fp16=False, zero=True)
    assert loss_scale(engine) is None
    set_loss_scale(engine, 2.0)
    assert engine.optimizer.loss_scaler.cur_scale == 65536.0
