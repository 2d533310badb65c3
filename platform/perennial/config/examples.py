"""Values that show how a field is written, for errors, `explain` and the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perennial.config.changes import default_of
from perennial.fields import choice_of, section_in

_SUCH_AS = re.compile(r"such as `([^`]+)`")

EXAMPLES: Mapping[str, Any] = {
    "name": "my-model",
    "store": "my-store",
    "inbox": "s3://my-bucket/inbox",
    "sources": {"crawl": {"prefix": "s3://my-bucket/crawl", "schedule": "1d"}},
    "SourceSpec.prefix": "s3://my-bucket/crawl",
    "SourceSpec.index": "https://data.example.org/dumps/",
    "SourceSpec.command": ["./export.sh", "--new"],
    "SourceSpec.hosts": ["cdn.example.org"],
    "SourceSpec.secrets": ["session"],
    # corpora
    "domain_field": "source",
    "ReadingOverride.text_field": "body",
    "ReadingOverride.metadata": {"id": "id", "url": "metadata.url"},
    "ReadingOverride.parts": "domain",
    "ReadingOverride.txt_documents": "line",
    "ReadingOverride.max_document": "64 MiB",
    "ReadingOverride.max_zstd_window": "512 MiB",
    "ReadingOverride.tokens": {"tokenizer": "tokenizer.json"},
    "TokensSpec.tokenizer": "tokenizer.json",
    "TokensSpec.brought_by": "digits",
    "TokensSpec.vocabulary": 50_304,
    "TokensSpec.without": ["steps"],
    "CorporaSpec.read": {"books": {"text_field": "body"}},
    "CorporaSpec.about": {"books": {"kind": "licensed", "languages": ["en"]}},
    "CorporaSpec.fill_in_the_middle": {"share": 0.5},
    "CorporaSpec.steps": [{"kind": "language", "keep": ["en"]}],
    "fuzzy_duplicates": 0.8,
    "repeated_lines": 100,
    "borrow": "other-store",
    "decontaminate": ["benchmarks/questions.jsonl"],
    "CorpusOrigin.title": "Books of our publisher",
    "CorpusOrigin.source": "https://data.example.org/books",
    "CorpusOrigin.content": "fiction",
    "CorpusOrigin.note": "crawled by our own crawler, which obeys robots.txt",
    # steps
    "parameters": {"threshold": 0.5},
    "fields": ["url"],
    "words": ["casino"],
    "substrings": ["/login"],
    "UrlFilterConfig.files": {"domains": "blocked-domains.txt"},
    "LanguageConfig.keep": ["en", "fr"],
    # model and training
    "tokenizer": {"vocabulary": 32_000},
    "TokenizerSpec.vocabulary": 32_000,
    "TokenizerSpec.path": "models/base/tokenizer.json",
    "model": {"path": "models/base"},
    "ModelSpec.architecture": "llama",
    "ModelSpec.config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "ModelSpec.path": "models/base",
    "inherit_layers": 8,
    "training": {"global_batch": 256, "micro_batch": 8},
    "workers": 8,
    "WorkersSpec.min": 1,
    "WorkersSpec.max": 4,
    "global_batch": 256,
    "micro_batch": 8,
    "balance_loss": 0.01,
    "deepspeed": {"zero_optimization": {"reduce_bucket_size": 50_000_000}},
    "TrainingSpec.optimizer": {"kind": "ademamix"},
    "spikes": {"policy": "rollback-and-skip"},
    # schedule and replay
    "RunSpec.schedule": {"kind": "infinite", "eta_max": 3e-4, "eta_min": 3e-5},
    "eta_max": 3e-4,
    "eta_const": 1.65e-4,
    "eta_min": 3e-5,
    "warmup_start": 3e-5,
    "replay": {"share": 0.05},
    "groups": ["wiki-", "news-????-??"],
    "ReplaySpec.weights": {"english": 2, "code": 1},
    "max_epochs": 4,
    # stages, release, evaluation
    "stages": {"budget": "100%"},
    "StagesSpec.corpora": {"french": {"replay": 0.25}},
    "StagesSpec.only": ["english", "french"],
    "batch_arrivals": {"max_corpora": 8},
    "StageOverride.replay": 0.25,
    "StageOverride.optimizer": "keep",
    "StageScheduleSpec.eta_max": 1e-4,
    "StageScheduleSpec.eta_min": 1e-5,
    "StageScheduleSpec.warmup": "1%",
    "StageScheduleSpec.warmup_start": 1e-5,
    "StageOverride.weights": {"wiki": 3, "web": 1},
    "ExtensionSpec.entries": 8_000,
    "ExtensionSpec.ids": 17,
    "release": {"anneal": "10%"},
    "summary": {"provider": "Example Ltd, ai@example.org"},
    "provider": "Example Ltd, ai@example.org",
    "representative": "Example GmbH, ai@example.org",
    "market_date": "2027-01-15",
    "copyright": "robots.txt is obeyed at the time of crawling",
    "illegal_content": "known addresses are filtered by lists",
    "evaluation": {"documents": 1000},
    "EvaluationSpec.corpora": 20,
    "GatesSpec.corpora": ["wikipedia-*"],
    "EvaluationSpec.tasks": ["lambada_openai"],
    "prompts": ["The city of"],
    "least_speed": 0.8,
    "stages_per_day": 4,
    "gpu_hours_per_month": 500,
    "webhook": "env:SLACK_WEBHOOK",
    "NotifySpec.email": {
        "to": ["ops@example.org"],
        "sender": "run@example.org",
        "host": "mail.example.org",
    },
    "NotifySpec.command": ["./page-someone"],
    "EmailSpec.host": "mail.example.org",
    "EmailSpec.user": "perennial",
    "EmailSpec.password": "env:SMTP_PASSWORD",
    "baseline": "retrained-store",
    "EvaluationSpec.render": {"scans-*": {"function": "my_package.images:draw", "parameters": {}}},
    "RenderSpec.function": "my_package.images:draw",
    "gates": {"max_forgetting": 0.1},
    "max_forgetting": 0.1,
    "max_adaptation": 3.0,
    "min_gain": 0.05,
    "GatesSpec.tasks": {"lambada_openai": {"max_drop": 0.02}},
    "TaskGate.min": 0.4,
    "max_drop": 0.02,
    "tracking": {"experiment": "my-experiment"},
    "TrackingSpec.to": ["mlflow", "tensorboard"],
    "TrackingSpec.folder": "tracking",
    "uri": "http://mlflow.example.org:5000",
    # tuning files
    "TuningSpec.run": "run.yaml",
    "TuningSpec.budget": "100k tokens",
    "TuningSpec.after": "02-spanish@250",
    "TuningSpec.corpus": "french",
    "TuningSpec.eta_const": [1e-4, 2e-4],
    "TuningSpec.eta_max": {"low": 1e-4, "high": 1e-3},
    "TuningSpec.replay": [0.05, 0.25],
    "TuningSpec.weighting": ["seen", "uniform"],
    "TuningSpec.inheritune": {"first": 4},
    "trials": 8,
    "halving": {"first": "20k tokens"},
    # study files
    "about": "what is compared, and why",
    "place": "study",
    "StudySpec.run": "run.yaml",
    "StudySpec.seeds": [1, 2, 3],
    "arms": {"replay": {"overrides": {"replay.share": 0.25}}},
    "claims": [{"says": "replay helps", "arm": "replay", "against": "none", "at_most": 0}],
    "StudySpec.budget": "12h",
    "tokens_per_second": 5000,
    "page": "study.md",
    "ArmSpec.overrides": {"replay.share": 0.05},
    "releases": {"annealed": {"overrides": {"release.anneal": "15%"}}},
    "StudyReleaseSpec.overrides": {"release.anneal": "15%"},
    "StudyReleaseSpec.after": "00-english",
    "StudyReleaseSpec.average": "last:5",
    "PaperSpec.number": "+0.01",
    "says": "replay forgets less",
    "arm": "replay",
    "against": "none/annealed",
    "at_least": -0.05,
    "at_most": 0.05,
    "paper": {"number": "+0.01", "source": "arXiv 2403.08763, table 2"},
}
"""Values by key, or by SECTION.key where sections differ, of fields whose text has none."""


def example_of(section: type[BaseModel], key: str) -> Any:
    """Return a value that a field accepts, as YAML has it; None where none is known.

    It is the first of: `examples` of the field (a plug-in's too), this module's, what its text
    names with "such as", its default, and its first choice.
    """
    info = section.model_fields[key]
    for value in info.examples or ():
        return value
    for name in (f"{section.__name__}.{key}", key):
        if name in EXAMPLES:
            return EXAMPLES[name]
    named = _SUCH_AS.search(" ".join((info.description or "").split()))
    if named is not None:
        return _in_its_form(info, named[1])
    default = default_of(section, key)
    return default if default not in (None, "", [], {}) else _first_choice(info)


def show_example(section: type[BaseModel], key: str) -> str:
    """Return the line of a file that gives a field a value; "" where no value is known."""
    value = example_of(section, key)
    return "" if value is None else f"{key}: {show_yaml(value)}"


def show_yaml(value: Any) -> str:
    """Return a value as YAML has it behind a key, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").strip()


def _in_its_form(info: FieldInfo, text: str) -> Any:
    """Return the value of a text's example; one item of a list stands there without brackets."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    types = {get_origin(item) for item in (info.annotation, *get_args(info.annotation))}
    return [value] if tuple in types and not isinstance(value, list) else value


def _first_choice(info: FieldInfo) -> Any:
    if choice_of(info) is not None or section_in(info.annotation) is not None:
        return None
    return next(_choices(info.annotation), None)


def _choices(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
        return
    for item in get_args(annotation):
        yield from _choices(item)
