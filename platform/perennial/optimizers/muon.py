"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) beside AdamW: torch's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from perennial.optimizers.base import OPTIMIZERS, DecayRate, OptimizerConfig

if TYPE_CHECKING:
    import torch

_MOMENTUM = "momentum_buffer"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@OPTIMIZERS.register("muon")
class MuonConfig(OptimizerConfig):
    """Muon for hidden matrices, AdamW for the rest; needs `zero_stage: 0`.

    A hidden matrix moves along the orthogonal matrix nearest to its averaged gradient (arXiv
    2502.16982): a step of update is `eta (0.2 sqrt(max(rows, columns)) O + decay w)`. That has the
    root mean square of an AdamW update, so one `eta` serves both, and an AdamW's carries over.
    Embeddings, head, norms, biases and experts kept as one tensor of three dimensions are stepped
    by AdamW. A weight of a hidden matrix has 4 bytes of state, any other one 8. O is computed by
    Newton-Schulz steps in bf16, whatever `precision` is: its singular values are 0.5 to 1.5.
    """

    state_tensors: ClassVar[tuple[str, ...]] = (_MOMENTUM, *_MOMENTS)
    # A hidden matrix has no second moment to keep. Its momentum needs no correction either: the
    # update has the same size however small the average still is.
    direction_tensors: ClassVar[tuple[str, ...]] = (_MOMENTUM, "exp_avg")
    whole_matrices: ClassVar[bool] = True

    kind: Literal["muon"]
    """name of the optimizer"""
    momentum: DecayRate = 0.95
    """decay rate of the average of the gradient of hidden matrices, from 0 to below 1"""
    nesterov: bool = True
    """true moves along the average as the next step would have it, if its gradient were the same
    (Nesterov)"""
    newton_schulz_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """steps of the iteration that makes the average orthogonal, from 1 to 99"""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """AdamW's decay rates, for what is no hidden matrix, each from 0 to below 1"""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon, above 0"""

    def build(
        self, parameter_groups: list[dict[str, Any]], *, offloaded: bool
    ) -> torch.optim.Optimizer:
        """Return torch's Muon and AdamW as one optimizer; its state is never offloaded."""
        return _optimizer_class()(parameter_groups, self)

    @classmethod
    def tensors_of(cls, *, hidden: bool) -> tuple[str, ...]:
        """Return the momentum for a hidden matrix, AdamW's two moments for any other parameter."""
        return (_MOMENTUM,) if hidden else _MOMENTS


@cache
def _optimizer_class() -> Callable[..., torch.optim.Optimizer]:
    """Return the torch optimizer's class, which cannot exist before torch is imported."""
    import torch

    class MuonWithAdamW(torch.optim.Optimizer):
        def __init__(self, groups: list[dict[str, Any]], config: MuonConfig) -> None:
            super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
            hidden, rest = (
                [group for group in self.param_groups if group["hidden"] is its]
                for its in (True, False)
            )
            # Both share groups and state with this one: the engine sets rates and tensors here.
            self._muon = torch.optim.Muon(
                hidden,
                lr=0.0,
                momentum=config.momentum,
                nesterov=config.nesterov,
                ns_steps=config.newton_schulz_steps,
                adjust_lr_fn="match_rms_adamw",
            )
            self._adamw = torch.optim.AdamW(
                rest,
                lr=0.0,
                betas=config.betas,
                eps=config.epsilon,
                fused=True if torch.cuda.is_available() else None,
            )
            self._muon.state = self._adamw.state = self.state

        @torch.no_grad()
        def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._muon.step()  # type: ignore[no-untyped-call]
            self._adamw.step()
            for group in self._muon.param_groups:
                for weights in group["params"]:
                    if weights.grad is not None:
                        state = self.state[weights]
                        # torch's Muon counts no steps, and checkpoints do.
                        state["step"] = state.get("step", torch.tensor(0.0)) + 1
            return loss

    return MuonWithAdamW
