"""Optimizers: one registered class each, with its keys, its state, its memory and its formulas."""

from __future__ import annotations

from perennial.optimizers.adamw import AdamWConfig
from perennial.optimizers.ademamix import AdEMAMixConfig
from perennial.optimizers.base import (
    OPTIMIZERS,
    AbsentOptimizerConfig,
    OptimizerConfig,
    check_same_optimizer,
)
from perennial.optimizers.muon import MuonConfig

__all__ = [
    "OPTIMIZERS",
    "AbsentOptimizerConfig",
    "AdEMAMixConfig",
    "AdamWConfig",
    "MuonConfig",
    "OptimizerConfig",
    "check_same_optimizer",
]
