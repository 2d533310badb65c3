"""A metric of a training step: how large the weights are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from perennial.training.metrics import Combine, StepFacts, StepMetric

if TYPE_CHECKING:
    import torch


class WeightNorm(StepMetric):
    """Euclidean norm of all weights after the step."""

    name: ClassVar[str] = "weight_norm"
    # Every rank has the whole weights (up to ZeRO 2, without tensor_parallel): values are the same.
    combine: ClassVar[Combine] = "max"
    in_progress: ClassVar[bool] = True
    figure: ClassVar[bool] = True

    def measure(self, facts: StepFacts) -> torch.Tensor:
        """Return the norm."""
        import torch

        return torch.nn.utils.get_total_norm([w.detach() for w in facts.engine.module.parameters()])


WEIGHT_NORM = WeightNorm()
