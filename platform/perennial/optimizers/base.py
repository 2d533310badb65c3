"""The base of every optimizer: a section of the run file, and what the engine must know of it.

An optimizer is elementwise, unless it says otherwise: the update of one weight may depend on that
weight, its gradient and its own state alone. ZeRO lays the parameters end to end and gives each
worker a flat piece, so an update that looks at a whole matrix would see a part of it. An optimizer
that needs whole matrices declares it (`whole_matrices`); the run file must then leave them whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn, Self

from pydantic import ConfigDict, Field

from perennial.errors import InputError
from perennial.fields import Section
from perennial.registry import Registry

if TYPE_CHECKING:
    import torch

DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Weight of an exponential moving average's past, from 0 to below 1."""


class OptimizerConfig(Section, ABC):
    """Base of an optimizer's section in the run file; register a subclass in `OPTIMIZERS`.

    A subclass declares `kind: Literal["its-name"]`, its keys with a documentation string below each
    one, the class variables below and `build`. torch is imported inside `build`: commands that only
    read a run file must start fast.
    """

    state_tensors: ClassVar[tuple[str, ...]]
    """keys of `optimizer.state[parameter]` that hold one fp32 number per weight; checkpoints store
    them under these names. The state holds a scalar `step` besides: the steps taken, which
    checkpoints record"""
    direction_tensors: ClassVar[tuple[str, ...]]
    """those of `state_tensors` that average the gradient itself: a stage that joins with
    keep-second-moment zeroes them and keeps the others and `step`"""
    whole_matrices: ClassVar[bool] = False
    """whether an update looks at whole matrices. A run file is then refused unless every worker has
    them (`zero_stage: 0`, no `tensor_parallel`, no `cpu_offload`), and each parameter group says in
    its key `hidden` whether it holds the model's hidden matrices: parameters of two dimensions,
    neither embeddings nor head. All groups of other optimizers are without that key"""

    kind: str
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """decoupled weight decay on matrices (never on norms and biases), at least 0"""

    @abstractmethod
    def build(
        self, parameter_groups: list[dict[str, Any]], *, offloaded: bool
    ) -> torch.optim.Optimizer:
        """Return the torch optimizer, with a learning rate of 0 that the engine sets every step.

        Args:
            parameter_groups: torch's parameter groups; each has its own `weight_decay`.
            offloaded: whether the state lies in the CPU's memory while gradients come from a GPU.
        """

    @classmethod
    def tensors_of(cls, *, hidden: bool) -> tuple[str, ...]:
        """Return those of `state_tensors` that a parameter has; by default all.

        Args:
            hidden: whether its group is one of hidden matrices; False for all parameters of an
                optimizer that does not need whole matrices.
        """
        return cls.state_tensors

    @classmethod
    def state_bytes(cls, *, hidden: bool = False) -> int:
        """Return bytes of state per weight, without the fp32 weight itself."""
        return 4 * len(cls.tensors_of(hidden=hidden))

    @classmethod
    def read_stored(cls, record: Mapping[str, Any]) -> Self:
        """Return the section that a run stored, of this version or an earlier one."""
        return cls.model_validate(record)


OPTIMIZERS: Registry[type[OptimizerConfig]] = Registry("optimizer", "perennial.optimizers")
"""Sections of optimizers by kind. A plug-in's entry point names a subclass of `OptimizerConfig`."""


class AbsentOptimizerConfig(OptimizerConfig):
    """The stand-in of a section that a run stored and whose plug-in is not installed."""

    model_config = ConfigDict(extra="allow")
    state_tensors: ClassVar[tuple[str, ...]] = ()
    direction_tensors: ClassVar[tuple[str, ...]] = ()

    def build(self, parameter_groups: list[dict[str, Any]], *, offloaded: bool) -> NoReturn:
        """Raise InputError that names the kind that is missing."""
        raise InputError(
            "the store",
            "training.optimizer",
            f"the run trains with the optimizer {self.kind!r}, which no installed package brings",
            "install the package that brings it",
            code="plugin-missing",
        )


def check_same_optimizer(checkpoint: str, stored: str | None, wanted: str) -> None:
    """Refuse to continue the state of one optimizer with another.

    Args:
        checkpoint: key of the checkpoint whose state would be loaded.
        stored: kind of the optimizer that wrote it; None stands for AdamW, the only one of the
            versions that did not store it.
        wanted: kind of the run file's optimizer.

    Raises:
        InputError: code `optimizer-changed`, when the kinds differ.
    """
    written = stored or "adamw"
    if written != wanted:
        raise InputError(
            "run file",
            "training.optimizer",
            f"it is {wanted}, and {checkpoint} holds the state of {written}",
            f"train this stage with {written}; a new stage changes the optimizer where its "
            "stages.optimizer is reset",
            code="optimizer-changed",
        )
