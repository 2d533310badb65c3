"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101): torch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from perennial.optimizers.base import OPTIMIZERS, DecayRate, OptimizerConfig

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register("adamw")
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101): the mean of the gradient over the root of the mean of its square.

    The default. Its keys may also stand in the section `training` itself.
    """

    state_tensors: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    # torch's AdamW has one step count for the bias of both moments. Kept with a zeroed first
    # moment, the second one is corrected as it must be: it averages that many gradients. The first
    # then counts as unbiased while it is still near zero, so updates grow to their size over the
    # first 1 / (1 - beta_1) steps (10 by default): a short warmup. Counting from 0 would instead
    # divide a whole second moment by 1 - beta_2 and shrink the first updates by
    # sqrt(1 - beta_2), for 1 / (1 - beta_2) steps.
    direction_tensors: ClassVar[tuple[str, ...]] = ("exp_avg",)

    kind: Literal["adamw"] = "adamw"
    """name of the optimizer"""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """decay rates of the averages of the gradient and of its square, each from 0 to below 1"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """added to the root of the mean square, above 0"""

    def build(
        self, parameter_groups: list[dict[str, Any]], *, offloaded: bool
    ) -> torch.optim.Optimizer:
        """Return torch's AdamW; its fused kernel on GPUs, and where the state is offloaded."""
        import torch

        return torch.optim.AdamW(
            parameter_groups,
            lr=0.0,
            betas=self.betas,
            eps=self.epsilon,
            fused=True if offloaded or torch.cuda.is_available() else None,
        )
