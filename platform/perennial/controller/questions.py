"""What the run file asks of every model: documents, prompts, precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from perennial.controller.ingest_stage import usable
from perennial.evaluation import Loading, Questions

if TYPE_CHECKING:
    from perennial.config import RunSpec
    from perennial.controller.context import Workspace

_PROMPTS_PER_CORPUS = 2


def questions_of(work: Workspace, references: Mapping[str, str]) -> Questions:
    """Return the questions about held-out losses on all corpora.

    Args:
        work: the run.
        references: by corpus, the model that its loss is compared with.
    """
    return Questions(
        corpora=tuple(usable(work.state)),
        texts=work.state.trained_corpora(work.state.stages[-1]) if work.state.stages else (),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        seed=work.spec.seed,
        references=references,
        loading=loading_of(work.spec),
    )


def loading_of(spec: RunSpec) -> Loading:
    """Return how a run's models are loaded for their evaluation."""
    return Loading(spec.evaluation.precision, spec.evaluation.gpus)


def sampling(spec: RunSpec) -> dict[str, Any]:
    """Return the sampling options of all models: the same prompts, to compare them."""
    tokens = spec.release.sample_tokens
    return {
        "prompts": {"": spec.evaluation.prompts} if tokens else {},
        "prompts_per_corpus": _PROMPTS_PER_CORPUS if tokens else 0,
        "sample_tokens": tokens,
    }
