"""AdEMAMix (Pagliardini, Ablin and Grangier 2024, arXiv 2409.03137): AdamW with a slow average."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from perennial.optimizers.base import OPTIMIZERS, DecayRate, OptimizerConfig

if TYPE_CHECKING:
    import torch


@OPTIMIZERS.register("ademamix")
class AdEMAMixConfig(OptimizerConfig):
    """AdEMAMix (arXiv 2409.03137): AdamW, with a second and much slower average of the gradient.

    The slow average remembers tens of thousands of steps, which slows forgetting. It takes 4 bytes
    more per weight than AdamW. A step of update is
    `eta ((m1 / (1 - beta1^t) + alpha m2) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay w)`.
    """

    state_tensors: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
    # The slow average has no bias correction, so from zero it grows back over 1 / (1 - beta_3)
    # steps; the count of steps stays, so the warm-ups of alpha and beta_3 do not begin again.
    direction_tensors: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_slow")

    kind: Literal["ademamix"]
    """name of the optimizer"""
    betas: tuple[DecayRate, DecayRate, Annotated[float, Field(gt=0.0, lt=1.0)]] = (
        0.9,
        0.999,
        0.9999,
    )
    """decay rates of the fast average of the gradient, of the average of its square, and of the
    slow average (beta_3), each from 0 to below 1"""
    alpha: Annotated[float, Field(ge=0)] = 5.0
    """weight of the slow average beside the fast one, at least 0; the paper uses 4 to 10"""
    alpha_warmup: Annotated[int, Field(ge=0)] = 10_000
    """optimizer steps over which alpha rises linearly from 0; the paper takes the whole training"""
    beta3_warmup: Annotated[int, Field(ge=0)] = 10_000
    """optimizer steps over which the slow average's half-life rises linearly, from that of the
    fast average; the paper takes the whole training"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """added to the root of the mean square, above 0"""

    def build(
        self, parameter_groups: list[dict[str, Any]], *, offloaded: bool
    ) -> torch.optim.Optimizer:
        """Return the optimizer; it computes where its state lies, offloaded or not."""
        return _optimizer_class()(parameter_groups, self)

    def alpha_at(self, step: int) -> float:
        """Return alpha of optimizer step `step`, counted from 1: a linear rise."""
        return self.alpha * _progress(step, self.alpha_warmup)

    def beta3_at(self, step: int) -> float:
        """Return beta_3 of optimizer step `step`, counted from 1.

        The half-life of the average, ln(0.5) / ln(beta), rises linearly, which makes 1 / ln(beta)
        linear in the step.
        """
        beta1, _, beta3 = self.betas
        share = _progress(step, self.beta3_warmup)
        if share == 1.0 or beta1 == 0.0 or beta3 <= beta1:
            return beta3
        start, end = math.log(beta1), math.log(beta3)
        return math.exp(start * end / ((1 - share) * end + share * start))


def _progress(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


@cache
def _optimizer_class() -> Callable[..., torch.optim.Optimizer]:
    """Return the torch optimizer's class, which cannot exist before torch is imported."""
    import torch

    class AdEMAMix(torch.optim.Optimizer):
        def __init__(self, groups: list[dict[str, Any]], config: AdEMAMixConfig) -> None:
            super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
            self._config = config

        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                for weights in group["params"]:
                    if weights.grad is None:
                        continue
                    state = self.state[weights]
                    if not state:
                        state["step"] = torch.tensor(0.0)
                        names = AdEMAMixConfig.state_tensors
                        state |= {name: torch.zeros_like(weights) for name in names}
                    state["step"] += 1
                    _update(weights, state, self._config, group["lr"], group["weight_decay"])
            return loss

    return AdEMAMix


def _update(
    weights: torch.Tensor,
    state: dict[str, torch.Tensor],
    config: AdEMAMixConfig,
    rate: float,
    weight_decay: float,
) -> None:
    """Step `weights` by their gradient; every operation is elementwise."""
    gradient, t = weights.grad, int(state["step"])
    assert gradient is not None
    beta1, beta2, _ = config.betas
    fast, slow, square = (state[name] for name in AdEMAMixConfig.state_tensors)
    fast.lerp_(gradient, 1 - beta1)
    slow.lerp_(gradient, 1 - config.beta3_at(t))
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    # The paper corrects the bias of the fast average and of the square, not of the slow average:
    # its warm-up does that.
    direction = (fast / (1 - beta1**t)).add_(slow, alpha=config.alpha_at(t))
    scale = (square / (1 - beta2**t)).sqrt_().add_(config.epsilon)
    weights.mul_(1 - rate * weight_decay).addcdiv_(direction, scale, value=-rate)
