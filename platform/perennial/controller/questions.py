"""What the run file asks of every model: documents, prompts, precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perennial.config.corpora import of_name
from perennial.controller.ingest_stage import usable
from perennial.evaluation import Loading, Questions, Sample
from perennial.evaluation.samples import Renderer, describe_undrawn
from perennial.runs.trunk.containment import trained_corpora

if TYPE_CHECKING:
    from perennial.controller.context import Workspace

_PROMPTS_PER_CORPUS = 2


def questions_of(work: Workspace, references: Mapping[str, str]) -> Questions:
    """Return the questions about held-out losses on all corpora.

    Args:
        work: the run.
        references: by corpus, the model that its loss is compared with.
    """
    # Behind the stage that is measured another one may train.
    last = work.state.at_work or next(reversed(work.state.stages), None)
    return Questions(
        corpora=tuple(usable(work.state)),
        texts=trained_corpora(work.state, last) if last else (),
        sequence_length=work.spec.corpora.sequence_length,
        max_documents=work.spec.evaluation.documents,
        seed=work.spec.seed,
        references=references,
        loading=loading_of(work),
    )


def loading_of(work: Workspace) -> Loading:
    """Return how a run's models are loaded for an evaluation that has room now."""
    its = work.spec.evaluation
    return Loading(its.precision, its.gpus, work.workers.make_room(its.gpus))


def sampling(work: Workspace) -> dict[str, Any]:
    """Return the sampling options of all models: the same prompts, to compare them."""
    spec = work.spec
    tokens = spec.release.sample_tokens
    drawn = {name: of_name(spec.evaluation.render, name) for name in usable(work.state)}
    return {
        "prompts": {"": spec.evaluation.prompts} if tokens else {},
        "prompts_per_corpus": _PROMPTS_PER_CORPUS if tokens else 0,
        "sample_tokens": tokens,
        "renderers": {
            name: Renderer(its.function, its.parameters, its.given)
            for name, its in drawn.items()
            if its is not None
        },
    }


def warn_of_undrawn(work: Workspace, samples: Sequence[Sample]) -> None:
    """Warn, once for each corpus, of samples that the user's function did not draw."""
    for corpus, problem in describe_undrawn(samples).items():
        work.log(f"warning: samples of {corpus} are not drawn: {problem}")
