"""What a model card says to machines, in the Hub's form, and how the model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from perennial.training.model.base_card import BaseCard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from perennial.config import RunSpec
    from perennial.evaluation.scores import Score
    from perennial.runs.events import Released
    from perennial.runs.state import RunState

HUB = "hf://"


def front_matter(
    spec: RunSpec,
    state: RunState,
    corpora: Iterable[str],
    name: str,
    released: Released | None,
    scores: Sequence[Score],
    gguf: str | None = None,
) -> list[str]:
    """Return the lines of YAML that a card begins with.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        corpora: that the release was trained on.
        name: of the release.
        released: the release as it was measured; None before that.
        scores: of the tasks that it was scored on.
        gguf: name of the GGUF file that it is copied as; None for a folder.
    """
    results = _results(released, scores)
    index = [{"name": f"{spec.name}-{name}", "results": results}] if results else None
    library = None if gguf else "transformers"
    return describe_model(spec, state, corpora, ["gguf"] if gguf else [], library, index)


def describe_model(
    spec: RunSpec,
    state: RunState,
    corpora: Iterable[str],
    tags: Sequence[str],
    library: str | None = "transformers",
    index: list[dict[str, Any]] | None = None,
) -> list[str]:
    """Return the lines of YAML about a model of a run.

    Where the run file names no licence, it is the base's, and where it names no languages, they are
    the base's and those of the corpora.

    Args:
        spec: the run file.
        state: the run as of the last read of the ledger.
        corpora: that the model was trained on.
        tags: of the card, besides those of every model.
        library: that loads it; None for none that the Hub knows.
        index: results, as the Hub's `model-index` has them.
    """
    its, base = spec.release, base_card(state)
    licence = {"license": its.license} if its.license else base.licence
    trained = (language for name in corpora for language in spec.corpora.origin_of(name).languages)
    known: dict[str, Any] = {
        "library_name": library,
        "pipeline_tag": "text-generation",
        **licence,
        "language": [*(its.languages or dict.fromkeys([*base.languages, *trained]))],
        "base_model": its.base_model,
        "tags": ["continual-pretraining", "perennial", *tags],
        "model-index": index,
    }
    said = {field: value for field, value in known.items() if value}
    return ["---", yaml.safe_dump(said, sort_keys=False, allow_unicode=True).rstrip(), "---"]


def base_card(state: RunState) -> BaseCard:
    """Return what the card of the run's base says; nothing without a base."""
    return (state.base.imported.card if state.base else None) or BaseCard()


def usage(place: str | None, gguf: str | None = None) -> list[str]:
    """Return the lines that show how the model is loaded from the place that it was copied to.

    Args:
        place: None for the folder that the card lies in.
        gguf: name of the GGUF file there; None for a folder of transformers.
    """
    lines = _usage_of_gguf(place, gguf) if gguf else usage_lines(place)
    return ["## Use", "```python", *lines, "```", ""]


def usage_lines(place: str | None) -> list[str]:
    """Return the lines of Python that load a release with transformers, and let it write.

    Args:
        place: None for the folder that they are run in.
    """
    fetched, folder = _local(place)
    folder = folder.removeprefix(HUB)
    return [
        *fetched,
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{folder}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
        'ids = tokenizer("Once upon a time", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))",
    ]


def _usage_of_gguf(place: str | None, file: str) -> list[str]:
    fetched, folder = _local(place)
    opened = f'Llama("{folder}/{file}")'
    if folder.startswith(HUB):
        opened = f'Llama.from_pretrained("{folder.removeprefix(HUB)}", "{file}")'
    return [
        *fetched,
        "from llama_cpp import Llama",
        "",
        f"llama = {opened}",
        'print(llama("Once upon a time", max_tokens=40)["choices"][0]["text"])',
    ]


def _local(place: str | None) -> tuple[list[str], str]:
    """Return the lines that copy a place of a bucket to this machine, and where it then is."""
    if place is None or "://" not in place or place.startswith(HUB):
        return [], place or "."
    get = f'fsspec.url_to_fs("{place}")[0].get("{place}", "model", recursive=True)'
    return ["import fsspec", "", get, ""], "model"


def _results(released: Released | None, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return held-out losses and scores of tasks, each a result of the Hub's `model-index`."""
    losses = released.losses if released is not None else {}
    results = [
        _result(
            f"{corpus}, held out",
            corpus,
            ("nats-per-token", "held-out loss, nats per token", loss.nats_per_token),
            ("bits-per-byte", "held-out loss, bits per byte", loss.bits_per_byte),
        )
        for corpus, loss in losses.items()
    ]
    results += [
        _result(score["task"], score["task"], (score["metric"], score["metric"], score["value"]))
        for score in scores
        if "value" in score
    ]
    return results


def _result(name: str, kind: str, *metrics: tuple[str, str, float | None]) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"name": name, "type": kind},
        "metrics": [
            {"type": metric, "name": label, "value": round(value, 5)}
            for metric, label, value in metrics
            if value is not None  # bytes are not known of documents that were token ids
        ],
    }
