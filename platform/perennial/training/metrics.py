"""Metrics of a training step: one registered class each.

A metric's value is in every row of `metrics.jsonl`, in MLflow, and as its class asks in the
progress line and on the report. Another package brings one through an entry point of the group
`perennial.metrics`, which names an instance of a subclass of `StepMetric`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from perennial.registry import Registry
from perennial.training.cost_model import flops_per_token, model_size, peak_flops
from perennial.training.engine.step_timer import COMPUTING, Part

if TYPE_CHECKING:
    import torch

    from perennial.training.job import Job

Combine = Literal["sum", "mean", "max"]


@dataclass(frozen=True)
class StepFacts:
    """A rank's numbers of an optimizer step that is done, before the ranks have combined them.

    step: trunk step that the optimizer step left.
    engine: the DeepSpeed engine; its weights are those after the step.
    loss: this rank's part of the mean loss over the global batch, in nats per token; the sum over
        the ranks is that mean.
    gradient_norm: of the whole gradient, before clipping; a number or a tensor `()`.
    balance: this rank's part of the mean loss that spreads tokens over experts; None without any.
    seconds: this rank's, by part of the step (`step_timer.PARTS`), so far.
    padding: tokens of this rank's sequences that are padding; None where no corpus has any.
    """

    job: Job
    step: int
    engine: Any
    loss: torch.Tensor
    gradient_norm: torch.Tensor | float
    balance: torch.Tensor | None = None
    seconds: Mapping[Part, float] = field(default_factory=dict)
    padding: int | None = None


class StepMetric:
    """Base of a metric; override what differs.

    One that overrides `measure` is combined over the ranks. The others describe what the training
    loop itself writes into a row.
    """

    name: ClassVar[str]
    """key in a row of `metrics.jsonl`; `train/<name>` in MLflow"""
    combine: ClassVar[Combine] = "mean"
    """how the ranks' values become one"""
    label: ClassVar[str] = ""
    """name in the progress line and on the report; default `name`"""
    unit: ClassVar[str] = ""
    """unit of the value, as text behind it"""
    in_progress: ClassVar[bool] = False
    """whether the progress line shows it"""
    figure: ClassVar[bool] = False
    """whether the report draws it over the trunk's tokens"""

    def measure(self, facts: StepFacts) -> torch.Tensor | float | None:
        """Return this rank's value; None for a step without one, on every rank alike.

        Called on every rank after every step. It may use a collective, and costs what it takes.
        """
        raise NotImplementedError

    def show(self, value: float) -> str:
        """Return a value with its label and unit, for the progress line."""
        return f"{self.label or self.name} {value:.4g}{self.unit and ' ' + self.unit}"

    @property
    def title(self) -> str:
        """Return the metric's name as a heading."""
        name = self.label or self.name.replace("_", " ")
        return name[:1].upper() + name[1:]

    @property
    def axis(self) -> str:
        """Return the metric's name with its unit, for an axis."""
        name = self.label or self.name.replace("_", " ")
        return f"{name} ({self.unit})" if self.unit else name

    @property
    def meaning(self) -> str:
        """Return the first paragraph of the class's documentation."""
        return " ".join((type(self).__doc__ or "").partition("\n\n")[0].split())

    @property
    def is_measured(self) -> bool:
        """Return whether the metric is measured on every rank and combined."""
        return type(self).measure is not StepMetric.measure

    @property
    def mlflow_key(self) -> str:
        """Return the metric's name in MLflow."""
        return f"train/{self.name}"


METRICS: Registry[StepMetric] = Registry("metric", "perennial.metrics")
"""Metrics by name. A plug-in's entry point names an instance, under the name that it has."""


def measured_metrics() -> dict[str, StepMetric]:
    """Return the metrics that are measured on every rank, in the same order on all of them.

    Built-in ones come first: what is summed with what must not depend on the packages installed.
    """
    _load_plugins()
    built_in = [name for name in METRICS if METRICS.provider(name) == "perennial"]
    names = [*built_in, *sorted(set(METRICS) - set(built_in))]
    return {name: METRICS[name] for name in names if METRICS[name].is_measured}


@cache
def _load_plugins() -> None:
    # Once a process: a worker has loaded no run file, and reading entry points takes milliseconds.
    METRICS.load_plugins()


def metrics_in(row: Mapping[str, Any]) -> Iterator[tuple[StepMetric, float]]:
    """Yield the metrics that a row has a value of, with the value."""
    _load_plugins()
    for name in METRICS:
        if name in row:
            yield METRICS[name], row[name]


def progress_text(row: Mapping[str, Any]) -> str:
    """Return the metrics of a row that the progress line shows."""
    return "  ".join(metric.show(value) for metric, value in metrics_in(row) if metric.in_progress)


class Loss(StepMetric):
    """Mean nats per token over the global batch."""

    name = "loss"
    combine = "sum"
    in_progress = True

    def measure(self, facts: StepFacts) -> torch.Tensor:
        """Return this rank's part of the mean."""
        return facts.loss

    def show(self, value: float) -> str:
        """Return the loss with three decimals."""
        return f"loss {value:.3f}"


class LearningRate(StepMetric):
    """Learning rate of the step."""

    name = "eta"
    label = "lr"
    in_progress = True

    def show(self, value: float) -> str:
        """Return the rate in scientific notation."""
        return f"lr {value:.2e}"


class GradientNorm(StepMetric):
    """Norm of the whole gradient before clipping, the same on every rank."""

    name = "gradient_norm"

    def measure(self, facts: StepFacts) -> torch.Tensor | float:
        """Return the norm."""
        return facts.gradient_norm


class BalanceLoss(StepMetric):
    """Loss that spreads tokens over experts, before its weight; 1 where all are used alike."""

    name = "balance_loss"
    combine = "sum"

    def measure(self, facts: StepFacts) -> torch.Tensor | None:
        """Return this rank's part of the mean; None for a model without experts."""
        return facts.balance


class TokensPerSecond(StepMetric):
    """Tokens of the global batch over the seconds of the step."""

    name = "tokens_per_second"
    unit = "tokens/s"


class BusySeconds(StepMetric):
    """Seconds in which a rank computed, on average; the rest it waited for others or for data."""

    name = "busy_seconds"
    unit = "s"

    def measure(self, facts: StepFacts) -> float:
        """Return this rank's."""
        return sum(facts.seconds.get(part, 0.0) for part in COMPUTING)


class SlowestBusySeconds(BusySeconds):
    """Seconds in which the slowest rank computed, for which the others waited."""

    name = "busy_seconds_slowest"
    combine = "max"


class GpuMemory(StepMetric):
    """Most bytes that tensors took on a GPU in the step, on the fullest one; absent on CPUs."""

    name = "gpu_memory_bytes"
    combine = "max"
    unit = "bytes"

    def measure(self, facts: StepFacts) -> float | None:
        """Return this rank's, and let the next step's begin."""
        import torch

        if facts.engine.device.type != "cuda":
            return None
        most = torch.cuda.max_memory_allocated(facts.engine.device)
        torch.cuda.reset_peak_memory_stats(facts.engine.device)
        return float(most)


class ModelFlopsUtilisation(StepMetric):
    """Share of the GPUs' peak that the model's arithmetic takes (MFU); absent on other devices.

    By PaLM's definition (arXiv 2204.02311, appendix B): what is computed twice counts once.
    """

    name = "mfu"

    def __init__(self) -> None:
        """Prepare for the first engine; the size of its model is counted once."""
        self._flops_per_token: tuple[int, int] | None = None

    def measure(self, facts: StepFacts) -> float | None:
        """Return this rank's share."""
        import torch

        device = facts.engine.device
        if device.type != "cuda":
            return None
        peak = peak_flops(torch.cuda.get_device_name(device))
        seconds = sum(facts.seconds.values())
        if peak is None or not seconds:
            return None
        module, length = facts.engine.module, facts.job.sequence_length
        if self._flops_per_token is None or self._flops_per_token[0] != id(module):
            self._flops_per_token = id(module), flops_per_token(model_size(module.config), length)
        flops = self._flops_per_token[1] * facts.job.tokens_per_step
        return flops / torch.distributed.get_world_size() / seconds / peak


class PaddingTokens(StepMetric):
    """Tokens of the step's batch that are padding, and were not trained; absent without any."""

    name = "padding_tokens"
    combine = "sum"

    def measure(self, facts: StepFacts) -> float | None:
        """Return this rank's."""
        return None if facts.padding is None else float(facts.padding)


class Spikes(StepMetric):
    """Loss spikes of the job that were ignored so far; absent while there is none."""

    name = "spikes"


class TokensSeen(StepMetric):
    """Tokens that the trunk or branch has been trained on."""

    name = "tokens_seen"


for _metric in (
    Loss(),
    LearningRate(),
    GradientNorm(),
    BalanceLoss(),
    BusySeconds(),
    SlowestBusySeconds(),
    GpuMemory(),
    ModelFlopsUtilisation(),
    PaddingTokens(),
    TokensPerSecond(),
    Spikes(),
    TokensSeen(),
):
    METRICS.register(_metric.name)(_metric)
