"""Evaluation of one folder of weights: losses, samples and tasks in one Ray task with one load.

A worker that imports torch and transformers takes several seconds to start, longer than most of
the measurements, so they are made together.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perennial.causes import own_of
from perennial.corpora import load_tokenizer, read_manifest
from perennial.corpora.tokenizer import FIRST_TOKENIZER
from perennial.errors import InputError
from perennial.evaluation.cache import keep_items, keep_losses, kept_items, kept_losses
from perennial.evaluation.heldout import prompts, read_documents, spread
from perennial.evaluation.loss import Document, HeldoutLoss, document_losses, heldout_loss
from perennial.evaluation.samples import (
    OwnVocabulary,
    Renderer,
    Sample,
    continue_document,
    generate,
)
from perennial.evaluation.scores import NotRun, TaskScore, paired_stderr
from perennial.evaluation.tasks import LocalTask, read_task, run_tasks
from perennial.store import download_checked
from perennial.store.stored_json import parse_json

if TYPE_CHECKING:
    from perennial.store import Store

# Logits of one forward pass, in float32: 256 MB. On a CPU, more than 16 windows are slower.
MAX_LOGITS = 1 << 26
MAX_WINDOWS = 16


@dataclass(frozen=True)
class Loading:
    """Number format in which a model is loaded, the GPUs that it is divided among, and the CPUs
    that its task reserves.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    gpus: int = 1
    cpus: float = 1.0


@dataclass(frozen=True)
class Questions:
    """The measurements to make of a model.

    corpora: tokenised corpora of the store whose held-out loss is measured.
    texts: corpora whose held-out documents the prompts and tasks are made of; default `corpora`.
    sequence_length: tokens of a sequence in the model's training.
    max_documents: most held-out documents of a corpus that are used.
    prompts: prompts by the corpus they are meant for; `prompts_per_corpus` more are the first
        words of held-out documents. Each is continued by `sample_tokens` tokens.
    renderers: what draws the samples of a corpus that is no text, by its name.
    tasks: lm-eval tasks by name, or local task folders.
    seed: of the samples and of the tasks' items.
    references: by corpus, the model that its loss is compared with.
    task_reference: the model that the scores of tasks are compared with.
    loading: how the model is loaded.
    """

    corpora: tuple[str, ...]
    sequence_length: int
    max_documents: int
    texts: tuple[str, ...] | None = None
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    prompts_per_corpus: int = 0
    sample_tokens: int = 40
    renderers: Mapping[str, Renderer] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    seed: int = 0
    references: Mapping[str, str] = field(default_factory=dict)
    task_reference: str | None = None
    loading: Loading = Loading()

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the corpora that prompts and tasks are made of."""
        return self.corpora if self.texts is None else self.texts


@dataclass(frozen=True)
class Answers:
    """The measurements: losses by corpus, samples, and a score or a reason for every task."""

    losses: dict[str, HeldoutLoss]
    samples: tuple[Sample, ...]
    tasks: tuple[TaskScore | NotRun, ...]


def measure(
    store: Store,
    folder_key: str,
    corpora: Sequence[str],
    sequence_length: int,
    max_documents: int,
    references: Mapping[str, str] | None = None,
    loading: Loading | None = None,
) -> dict[str, HeldoutLoss]:
    """Return the held-out loss on each corpus of the checkpoint or release in `folder_key`.

    Args:
        store: the run's store.
        folder_key: folder of the checkpoint or release.
        corpora: names of ingested corpora.
        sequence_length: tokens of a sequence in the model's training.
        max_documents: most held-out documents of a corpus that are used.
        references: by corpus, the model that its loss is compared with.
        loading: how the model is loaded; default in fp32, on one CPU and one GPU.
    """
    questions = Questions(
        tuple(corpora),
        sequence_length,
        max_documents,
        references=references or {},
        loading=loading or Loading(),
    )
    return examine(store, folder_key, questions).losses


def examine(store: Store, folder_key: str, questions: Questions) -> Answers:
    """Evaluate the checkpoint or release in `folder_key` in one Ray task.

    The task takes a GPU where the cluster has any. Only lm-eval tasks whose data is remote use the
    network, and with HF_HUB_OFFLINE=1 not even those.

    Args:
        store: the run's store.
        folder_key: folder of the checkpoint, release or imported model.
        questions: the measurements to make.

    Raises:
        InputError: before any compute, when there is no such folder, corpus or local task.
        Altered: a file of the model, or of held-out documents, is missing or damaged.
    """
    import ray
    from ray.exceptions import RayTaskError
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    if not store.exists(f"{folder_key}/manifest.json"):
        raise InputError(
            store.url,
            folder_key,
            "there is no such model",
            "see `perennial status`",
            code="model-missing",
        )
    tasks = [read_task(task) for task in questions.tasks]
    for corpus in {*questions.corpora, *questions.sources}:
        if not read_manifest(store, corpus).counts.held_out_documents:
            place = f"corpora/{corpus}"
            raise InputError(
                store.url,
                place,
                "it has no held-out documents",
                "land more of them",
                code="no-held-out-documents",
            )
    # Workers of a cluster do not inherit the environment of the command line.
    offline = {name: os.environ[name] for name in ("HF_HUB_OFFLINE",) if name in os.environ}
    remote = ray.remote(answer).options(
        num_cpus=questions.loading.cpus,
        # Outside the caller's placement group, which need not have the CPUs.
        scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=None),
        num_gpus=questions.loading.gpus if ray.cluster_resources().get("GPU") else 0,
        runtime_env={"env_vars": offline},
    )
    try:
        answers: Answers = ray.get(remote.remote(store, folder_key, questions, tasks))
    except RayTaskError as failed:
        # A refusal is reported as itself, without Ray's traceback in its message.
        raise own_of(failed) or failed from failed
    return answers


def answer(
    store: Store,
    folder_key: str,
    questions: Questions,
    tasks: Sequence[str | LocalTask],
) -> Answers:
    """Load the model and make the measurements: the body of the Ray task.

    Args:
        store: the run's store.
        folder_key: folder of the checkpoint or release.
        questions: the measurements to make.
        tasks: `questions.tasks` as `read_task` returns them.
    """
    import torch

    torch.set_num_threads(max(1, math.ceil(questions.loading.cpus)))
    with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
        folder = Path(scratch) / "model"
        fetch(store, folder_key, folder)
        model = load_model(folder, questions.loading)
        its_own = _tokenizer_of(store, folder_key)
        documents = {
            corpus: read_documents(store, corpus, questions.max_documents, its_own)
            for corpus in dict.fromkeys([*questions.corpora, *questions.sources])
        }
        losses = _losses(store, folder_key, model, documents, questions)
        if not (tasks or questions.prompts or questions.prompts_per_corpus):
            return Answers(losses, (), ())
        tokenizer = run_tokenizer(store, its_own)
        own = _own_vocabularies(store, questions)
        texts = {
            corpus: [tokenizer.decode(document.tokens[:-1].tolist()) for document in chosen]
            for corpus, chosen in documents.items()
            if corpus in questions.sources and corpus not in own
        }
        samples = _samples(model, tokenizer, texts, questions)
        for corpus, vocabulary in own.items():
            samples += _own_samples(model, corpus, documents[corpus], vocabulary, questions)
        outcomes = run_tasks(
            model,
            tokenizer,
            tasks,
            texts,
            folder=Path(scratch) / "tasks",
            context_tokens=questions.sequence_length,
            most_logits=MAX_LOGITS,
            seed=questions.seed,
        )
        paired = (_paired(store, folder_key, outcome, questions) for outcome in outcomes)
        return Answers(losses, tuple(samples), tuple(paired))


def fetch(store: Store, folder_key: str, local: Path) -> None:
    """Copy a checkpoint or release to a local folder, without its optimizer state.

    Raises:
        Altered: a file is missing or has another digest than the manifest says.
        InputError: the manifest cannot be read.
    """
    for name, (key, sha256) in _promised_files(store, folder_key).items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        download_checked(store, key, local / name, sha256)


def _promised_files(store: Store, folder_key: str) -> dict[str, tuple[str, str]]:
    """Return key and sha256 of a model's files by name, without its optimizer state."""
    where = f"{folder_key}/manifest.json"
    try:
        manifest = parse_json(store.read(where))
        # The folder of a checkpoint's files; a release has none.
        folder = "/".join(filter(None, (folder_key, manifest.get("attempt", ""))))
        return {
            # Of a stored model that was imported, the digest alone.
            name: (f"{folder}/{name}", file if isinstance(file, str) else str(file["sha256"]))
            for name, file in manifest["files"].items()
            if not name.startswith("optimizer-")
        }
    except (ValueError, LookupError, TypeError, AttributeError) as broken:
        raise InputError(
            store.url,
            where,
            f"it cannot be read ({broken})",
            "restore it from a copy of the store",
            code="manifest-unreadable",
        ) from broken


def load_model(folder: Path, loading: Loading) -> Any:
    """Load the model of a local folder, on the GPUs where there are any."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    has_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.bfloat16 if loading.precision == "bf16" else torch.float32,
        device_map="auto" if has_gpu and loading.gpus > 1 else None,
    )
    if loading.gpus > 1 and has_gpu:
        return model  # its layers are on several GPUs already
    return model.to("cuda" if has_gpu else "cpu")


def _tokenizer_of(store: Store, folder_key: str) -> str:
    """Return the key of the folder of a model's tokenizer."""
    manifest = parse_json(store.read(f"{folder_key}/manifest.json"))
    return str(manifest.get("tokenizer", FIRST_TOKENIZER))


def run_tokenizer(store: Store, folder: str = FIRST_TOKENIZER) -> Any:
    """Return a tokenizer of the run, which puts before a text what stands there in training.

    Also for a release: its own may put a begin before a text that no training had there.
    """
    from transformers import PreTrainedTokenizerFast

    run = load_tokenizer(store, folder)
    return PreTrainedTokenizerFast(
        tokenizer_object=run.build(),
        eos_token=run.manifest.end_of_document_text,
        bos_token=run.manifest.begin_of_document_text or None,
    )


def _losses(
    store: Store,
    folder_key: str,
    model: Any,
    documents: Mapping[str, Sequence[Document]],
    questions: Questions,
) -> dict[str, HeldoutLoss]:
    room = MAX_LOGITS // (questions.sequence_length * model.config.vocab_size)
    batch = min(MAX_WINDOWS, max(1, room))
    measured = {}
    for corpus in questions.corpora:
        losses = document_losses(model, documents[corpus], questions.sequence_length, batch)
        keep_losses(store, folder_key, corpus, losses)
        reference = questions.references.get(corpus)
        is_first = reference in (None, folder_key)
        before = None if is_first else kept_losses(store, str(reference), corpus)
        measured[corpus] = heldout_loss(corpus, losses, before)
    return measured


def _paired(
    store: Store, folder_key: str, outcome: TaskScore | NotRun, questions: Questions
) -> TaskScore | NotRun:
    """Store a score's items, and add the standard error of its change from the reference model."""
    if isinstance(outcome, NotRun):
        return outcome
    keep_items(store, folder_key, outcome)
    reference = questions.task_reference
    before = kept_items(store, reference, outcome) if reference else ()
    return replace(outcome, stderr_of_change=paired_stderr(outcome.items, before), items=())


def _samples(
    model: Any, tokenizer: Any, texts: Mapping[str, Sequence[str]], questions: Questions
) -> list[Sample]:
    asked = [(corpus, prompt) for corpus, given in questions.prompts.items() for prompt in given]
    asked += [
        (corpus, prompt)
        for corpus, chosen in texts.items()
        for prompt in prompts(chosen, questions.prompts_per_corpus)
    ]
    return [
        Sample(
            corpus,
            prompt,
            generate(
                model,
                tokenizer,
                prompt,
                new_tokens=questions.sample_tokens,
                context_tokens=questions.sequence_length,
                seed=questions.seed,
            ),
        )
        for corpus, prompt in asked
    ]


def _own_vocabularies(store: Store, questions: Questions) -> dict[str, OwnVocabulary]:
    """Return the vocabularies of those corpora that are no text."""
    vocabularies = {}
    for corpus in questions.sources:
        tokens = read_manifest(store, corpus).settings.tokens
        if tokens is not None and (tokens.first or corpus in questions.renderers):
            vocabularies[corpus] = OwnVocabulary(tokens.first, tokens.vocabulary)
    return vocabularies


def _own_samples(
    model: Any,
    corpus: str,
    documents: Sequence[Document],
    vocabulary: OwnVocabulary,
    questions: Questions,
) -> Iterator[Sample]:
    """Yield how a model goes on from the beginning of documents that are no text.

    A model that lacks the entries writes none: it reads their spelling.
    """
    renderer = questions.renderers.get(corpus)
    for number in spread(len(documents), questions.prompts_per_corpus):
        document = documents[number]
        *tokens, end = document.tokens.tolist()
        if document.counted is not None or len(tokens) < 2:
            continue
        # The token before a document is in the context too.
        whole = [token - vocabulary.first for token in tokens[: questions.sequence_length - 1]]
        share = 0.5 if renderer is None else renderer.given
        given = min(max(1, round(len(whole) * share)), len(whole) - 1)
        # With one seed for all, documents of one kind would go on alike.
        seed = questions.seed + number
        ids = continue_document(model, whole, document.before, vocabulary, given, end, seed)
        prompt, text = (" ".join(map(str, part)) for part in (ids[:given], ids[given:]))
        drawn = renderer.render(ids, given, whole) if renderer else None
        yield Sample(corpus, prompt, text, drawn)
