"""An optimizer: Lion (Chen et al. 2023, arXiv 2302.06675), the sign of an averaged gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from perennial.optimizers.base import DecayRate, OptimizerConfig

if TYPE_CHECKING:
    import torch


class LionConfig(OptimizerConfig):
    """Lion: every weight moves by the learning rate, up or down."""

    state_tensors: ClassVar[tuple[str, ...]] = ("exp_avg",)
    direction_tensors: ClassVar[tuple[str, ...]] = ("exp_avg",)

    kind: Literal["lion"]
    """name of the optimizer"""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.99)
    """weight of the average in a step's direction, and decay rate of the average"""

    def build(
        self, parameter_groups: list[dict[str, Any]], *, offloaded: bool
    ) -> torch.optim.Optimizer:
        """Return the optimizer; it computes where its state lies."""
        import torch

        beta1, beta2 = self.betas

        class Lion(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                for group in self.param_groups:
                    for weights in group["params"]:
                        if weights.grad is None:
                            continue
                        state = self.state[weights]
                        if not state:
                            # Checkpoints say how many steps the state has taken.
                            state["step"] = torch.tensor(0.0)
                            state["exp_avg"] = torch.zeros_like(weights)
                        state["step"] += 1
                        average = state["exp_avg"]
                        direction = average.lerp(weights.grad, 1 - beta1).sign_()
                        weights.mul_(1 - group["lr"] * group["weight_decay"])
                        weights.add_(direction, alpha=-group["lr"])
                        average.lerp_(weights.grad, 1 - beta2)

        return Lion(parameter_groups, {"lr": 0.0})
