"""The schema of the run file.

The text below a field is its documentation in the reference, and the remedy in its error message.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from perennial.config.corpora import CorporaSpec, CorpusPattern
from perennial.config.cron import TimetableText
from perennial.config.gates import GatesSpec
from perennial.config.notify import NotifySpec
from perennial.config.provenance import SummarySpec
from perennial.config.sources import SourceName, SourceSpec
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.fields import (
    FREE,
    JOIN,
    PINNED,
    Amount,
    ByKind,
    Count,
    ExpandedText,
    OutputPath,
    PathOrName,
    PathText,
    PositiveAmount,
    Rate,
    Section,
    Weight,
    parse_amount,
)
from perennial.mixture import Mixture, ReplaySpec, ShareOrAuto
from perennial.schedules import SCHEDULES, AbsentScheduleConfig, AnnealShape, ScheduleConfig
from perennial.user_code import ImportPath, Parameters


class TokenizerSpec(Section):
    """The tokenizer: give exactly one of vocabulary and path.

    It stays for the life of the run; `stages.corpora.NAME.extend_tokenizer` adds to it.
    """

    vocabulary: Annotated[Annotated[int, Field(ge=300, le=2**31)] | None, PINNED] = None
    """entries of a byte-level BPE tokenizer that is trained on the first corpus, at least 300"""
    path: Annotated[PathText | None, PINNED] = None
    """a tokenizer.json, tekken.json, SentencePiece model, vocab.json with its merges.txt, a folder
    that holds one of these or a .gguf file, local or a bucket's url"""
    end_of_document: Annotated[str | None, PINNED] = None
    """the token of `path` that ends a document, such as `<|endoftext|>`; default: the one that its
    folder names, but a usual end of a document before the end of a turn in a chat"""
    begin_of_document: Annotated[str | None, PINNED] = None
    """the token of `path` that stands before a document in training, held-out losses, samples and
    tasks, such as `<s>`, or `""` for nothing; default: the one that its own template, or
    `add_bos_token` of its configuration, puts before a text"""

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizerSpec:
        if (self.vocabulary is None) == (self.path is None):
            raise ValueError("give exactly one of vocabulary and path")
        if self.path is None and (self.end_of_document or self.begin_of_document):
            raise ValueError("a tokenizer that is trained ends a document with <|endoftext|>")
        return self


ScheduleSection = Annotated[ScheduleConfig, ByKind(SCHEDULES, "infinite", AbsentScheduleConfig)]


OptimizerAtJoin = Literal["reset", "keep", "keep-second-moment"]


class ExtensionSpec(Section):
    """Entries that a corpus brings to the tokenizer: give exactly one of the three keys."""

    entries: Annotated[Annotated[int, Field(ge=1, le=1 << 20)] | None, JOIN] = None
    """most entries to learn over a sample of the corpus: the merges of the byte-level BPE are
    continued, and no text takes more tokens than before"""
    tokens: Annotated[tuple[Annotated[str, Field(min_length=1)], ...] | None, JOIN] = None
    """texts that become one token each, words with the space before them, such as `" quotidien"`;
    what leads to them is added too"""
    ids: Annotated[Count | None, JOIN] = None
    """entries for a corpus that is no text: its documents are ids below this number, of a
    vocabulary of their own; see `corpora.read.NAME.tokens.brought_by`"""

    @model_validator(mode="after")
    def _one_of_three(self) -> ExtensionSpec:
        if [self.entries is None, not self.tokens, self.ids is None].count(False) != 1:
            raise ValueError("give exactly one of entries, tokens and ids")
        return self

    @property
    def most(self) -> int:
        """Return the number of entries that are asked for."""
        return self.entries or self.ids or len(self.tokens or ())


class StageScheduleSpec(Section):
    """A stage's own values of the run's `schedule`, of a kind that every stage makes for itself.

    So of cosine and wsd; a schedule that spans the trunk (infinite, constant) has no such values.
    """

    eta_max: Annotated[Rate | None, JOIN] = None
    """peak learning rate of this stage, above 0 and at most 1; default the run's"""
    eta_min: Annotated[Rate | None, JOIN] = None
    """learning rate at the end of this stage, above 0; default the run's"""
    warmup: Annotated[Amount | None, JOIN] = None
    """linear rise to eta_max, such as `1%` of the stage or `200 steps`; default the run's"""
    warmup_start: Annotated[Rate | None, JOIN] = None
    """learning rate at which the warmup begins, above 0; default the run's"""


class StageOverride(Section):
    """Settings of the stage of one corpus, in place of the run's."""

    budget: Annotated[PositiveAmount | None, JOIN] = None
    """tokens of this stage, new and replayed together, such as `400k tokens` or `100%`"""
    replay: Annotated[ShareOrAuto | None, JOIN] = None
    """this stage's replay share, from 0 to 1, or auto"""
    priority: Annotated[int, JOIN] = 0
    """of corpora that landed, the one with the highest number is the next stage"""
    optimizer: Annotated[OptimizerAtJoin | None, JOIN] = None
    """the optimizer state that this stage inherits: reset, keep or keep-second-moment"""
    schedule: StageScheduleSpec | None = None
    """this stage's own values of the learning rate, such as `{eta_max: 1e-4}`, of a cosine or wsd
    schedule. Default: the run's"""
    extend_tokenizer: ExtensionSpec | None = None
    """entries that the corpus brings to the tokenizer, with rows of embedding and head, from its
    stage on; such as `{entries: 8000}` for a new language. Default: none"""
    role: Annotated[Literal["stage", "replay"], JOIN] = "stage"
    """stage, or replay for a proxy corpus: one that stands in for data that the stored model of
    `model.path` was trained on. It is replayed from the first stage on, which waits for it, and
    measured, and is never a stage"""
    weights: Annotated[dict[str, Weight], JOIN] = Field(default_factory=dict)
    """shares of the corpus's parts (`corpora.parts`) in every batch, a number of at least 0 for
    each part by its name: `{wiki: 3, web: 1}` takes three quarters of wiki, whatever their sizes,
    and repeats a part that ends early; 0 leaves a part out. Default: each by its size"""

    @model_validator(mode="after")
    def _proxy_has_no_stage(self) -> StageOverride:
        if self.role == "replay" and (self.changes_the_stage or self.priority):
            raise ValueError(
                "a corpus of role replay has no stage that budget, replay, priority, optimizer, "
                "schedule or extend_tokenizer could be for; remove them"
            )
        return self

    @property
    def changes_the_stage(self) -> bool:
        """Return whether the stage is trained differently from those of other corpora."""
        own = (self.budget, self.replay, self.optimizer, self.schedule, self.extend_tokenizer)
        return any(setting is not None for setting in own)


class BatchArrivals(Section):
    """Bounds within which several ready corpora become one stage.

    A sequence of stages, one per domain, does worse than one stage of their mixture
    (arXiv 2403.08763, A.1).
    """

    max_corpora: Annotated[int, Field(ge=2), JOIN] = 8
    """most corpora in one stage, at least 2"""
    max_tokens: Annotated[PositiveAmount | None, JOIN] = None
    """most training tokens of these corpora together, such as `2B tokens`; default no limit"""

    @model_validator(mode="after")
    def _absolute(self) -> BatchArrivals:
        if self.max_tokens is not None and self.max_tokens.unit == "percent":
            raise ValueError("max_tokens is a number of tokens or steps, not a percentage")
        return self


class StagesSpec(Section):
    """Length, order and retries of the stages."""

    budget: Annotated[PositiveAmount, JOIN] = Field(default_factory=lambda: parse_amount("100%"))
    """length of a stage, new and replayed tokens together; 100% is the corpus's training tokens"""
    optimizer: Annotated[OptimizerAtJoin, JOIN] = "reset"
    """the optimizer state that a stage inherits from the one before it: reset (none, as in the
    paper), keep (all) or keep-second-moment (the scale of the steps, but not their direction)"""
    corpora: dict[str, StageOverride] = Field(default_factory=dict)
    """overrides by corpus name"""
    order: Annotated[Literal["landing"] | tuple[str, ...], JOIN] = "landing"
    """landing (by priority, then in the order of landing), or a list of corpora: they come first,
    in this order, and a later one waits for all before it"""
    only: Annotated[tuple[str, ...] | None, JOIN] = None
    """names of the corpora that become stages; others are tokenised and evaluated, but never
    trained; default all"""
    batch_arrivals: BatchArrivals | None = None
    """corpora that are ready at the same time become one stage, within these bounds; `{}` takes the
    default bounds. A corpus that is named in `order`, has another priority, or has a budget, replay
    share or optimizer of its own keeps a stage of its own. Default: every corpus is a stage"""
    approval: Annotated[Literal["automatic", "manual"], FREE] = "automatic"
    """automatic, or manual: the stage of each corpus waits until you `accept` the corpus, which is
    tokenised meanwhile"""
    attempts: Annotated[Count, FREE] = 3
    """attempts at ingesting, training or evaluating a corpus before it waits for `retry`"""
    retry_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False), FREE] = 60.0
    """delay before the second attempt, in seconds; it doubles with every further one"""

    @model_validator(mode="after")
    def _names_stand_once(self) -> StagesSpec:
        order = () if self.order == "landing" else self.order
        for field, names in (("order", order), ("only", self.only or ())):
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise ValueError(f"{field} names {twice} more than once; name each corpus once")
        return self

    @model_validator(mode="after")
    def _proxies_are_no_stages(self) -> StagesSpec:
        order = () if self.order == "landing" else self.order
        for name in {*order, *(self.only or ())} & {*self.proxies}:
            raise ValueError(
                f"{name} has the role replay and is never a stage; remove it from order and only"
            )
        return self

    @property
    def proxies(self) -> tuple[str, ...]:
        """Return the corpora that are replayed and never become a stage."""
        return tuple(name for name, own in self.corpora.items() if own.role == "replay")


class LimitsSpec(Section):
    """Limits of what a run uses unattended, counted by the times in its ledger."""

    stages_per_day: Annotated[Count | None, FREE] = None
    """most stages that begin in a day of UTC; the next one waits for the day after. Default: no
    limit"""
    gpu_hours_per_month: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None, FREE
    ] = None
    """GPU-hours of training in a month of UTC after which no stage begins until the next month: the
    GPUs of the largest worker group, for as long as a stage is being trained. Default: no limit"""
    search_tokens: Annotated[Amount | None, FREE] = None
    """most tokens that the trials of a search may train, by `perennial tune` or after a gate broke,
    such as `4M tokens`; a percentage is of the stage that is searched. Default: no limit"""


class ReleaseSpec(Section):
    """The branch that is annealed and exported."""

    anneal: Annotated[Amount, JOIN] = Field(default_factory=lambda: parse_amount("10%"))
    """length of the anneal; a percentage is of the trunk's steps so far"""
    shape: Annotated[AnnealShape, JOIN] = "exponential"
    """exponential (the paper's), 1-sqrt, linear or cosine"""
    mixture: Annotated[Mixture, JOIN] = "stage"
    """what the anneal trains on, exactly so in every batch: stage (the shares of the last stage),
    seen (every corpus of the trunk in proportion to what was seen of it), balanced (all of them in
    equal parts), or a number above 0 by corpus name, where a corpus without one is left out. No
    corpus is taken that is retired"""
    license: Annotated[str | None, FREE] = None
    """licence of the releases, as their card names it, such as `apache-2.0`; default: that of the
    base's own card"""
    languages: Annotated[tuple[str, ...], FREE] = ()
    """languages of the releases, as their card names them, such as `en`; default: those of the
    base's own card and of `corpora.about`"""
    base_model: Annotated[str | None, FREE] = None
    """the model that the run continues, as the Hub names it, such as `HuggingFaceTB/SmolLM2-135M`;
    for the card"""
    summary: SummarySpec = Field(default_factory=SummarySpec)
    """statements for the summary of training content that no lineage knows"""
    sample_tokens: Annotated[int, Field(ge=0), FREE] = 40
    """tokens that each prompt is continued by; 0 samples nothing"""
    policy: Annotated[Literal["on-demand", "each-stage", "every", "schedule"], FREE] = "on-demand"
    """on-demand (by `perennial release` alone), each-stage (the end of every stage that passed its
    gates), every (see `every`) or schedule (see `schedule`). Releases by a policy are made between
    two stages"""
    every: Annotated[PositiveAmount | None, FREE] = None
    """with `policy: every`, the tokens or steps of the trunk between two releases, such as `4M
    tokens`"""
    schedule: Annotated[TimetableText | None, FREE] = None
    """with `policy: schedule`, times at which the end of the last stage is released if it was not
    yet: a period such as `7d`, or five cron fields such as `0 2 * * 1`, in UTC"""

    @model_validator(mode="after")
    def _policy_has_its_field(self) -> ReleaseSpec:
        for name in ("every", "schedule"):
            given = getattr(self, name) is not None
            if given != (self.policy == name):
                problem = "is not used with" if given else "is missing with"
                raise ValueError(
                    f"{name} {problem} policy {self.policy}; give both `policy: {name}` and "
                    f"`{name}`, or neither"
                )
        if self.every is not None and self.every.unit == "percent":
            raise ValueError("every is a number of steps or tokens, not a percentage")
        return self


class RenderSpec(Section):
    """A picture or a text for the samples of a corpus that is no text, by a function.

    Evaluations call `function(ids, given=..., document=..., **parameters)`. `ids` are those of a
    held-out document, of which a model was given the first `given` and wrote the others; they count
    from 0 in the corpus's own vocabulary. `document` has the ids of the document itself. The
    function returns the bytes of a PNG picture, or a text.
    """

    function: Annotated[ImportPath, FREE]
    """import path, such as `my_package.images:draw`; the module must be importable on every node
    that evaluates"""
    parameters: Annotated[Parameters, FREE]
    """its other keyword arguments"""
    given: Annotated[Annotated[float, Field(gt=0.0, lt=1.0)], FREE] = 0.5
    """share of a document that is given to the model, above 0 and below 1"""


class EvaluationSpec(Section):
    """Measurements after every stage and on a release."""

    documents: Annotated[Count, FREE] = 1000
    """most held-out documents that are scored per corpus"""
    corpora: Annotated[Count | None, FREE] = None
    """most earlier corpora that a stage's end is measured on, besides those that `gates.corpora`
    names: each stage takes other ones, spread over the order of training, and forgetting
    says over how many it is. A release is measured on all. Default: every corpus"""
    tasks: Annotated[tuple[PathOrName, ...], FREE] = ()
    """lm-eval tasks by name, suites (paper-english, paper-german), or folders that hold a task's
    YAML"""
    precision: Annotated[Literal["fp32", "bf16"], FREE] = "fp32"
    """number format in which a model is loaded for its evaluation; bf16 takes half the memory, and
    its losses differ in the third digit"""
    gpus: Annotated[Count, FREE] = 1
    """GPUs that a model is divided among for its evaluation, at least 1; without any it has no
    effect"""
    trunk_tasks: Annotated[bool, FREE] = False
    """true scores the tasks at the end of every stage too, and compares with the checkpoint that
    the stage started from; false scores releases alone, and the base beside the first of them"""
    beside_training: Annotated[bool, FREE] = False
    """true begins the next stage as soon as one is trained, and measures that one meanwhile, on
    CPUs that the workers may hold; where a gate then stops it, the next stage is abandoned. GPUs
    that the workers hold are waited for, and a stage that brings entries to the tokenizer is
    measured first"""
    prompts: Annotated[tuple[str, ...], FREE] = ()
    """prompts that every stage and every release continues, besides the first words of held-out
    documents"""
    render: dict[CorpusPattern, RenderSpec] = Field(default_factory=dict)
    """what draws the samples of a corpus that is no text, by its name, or by a glob such as
    `"scans-*"`. Default: its samples are numbers"""
    baseline: Annotated[OutputPath | None, FREE] = None
    """store of a run that was retrained from scratch, a folder or a bucket's url; the report
    shows the gap to it"""


Service = Literal["mlflow", "wandb", "tensorboard"]
"""What a run can be tracked in."""


class TrackingSpec(Section):
    """The services that record the run: MLflow, Weights & Biases, TensorBoard."""

    to: Annotated[tuple[Service, ...], Field(min_length=1), FREE] = ("mlflow",)
    """services that record the run: mlflow, wandb (Weights & Biases), tensorboard"""
    folder: Annotated[OutputPath | None, FREE] = None
    """local folder for the files of wandb and tensorboard; default the run's store, where that is a
    local folder"""
    uri: Annotated[ExpandedText | None, FREE] = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else an SQLite file in a local store"""
    experiment: Annotated[str, FREE] = "perennial"
    """name of the MLflow experiment, and of the project in Weights & Biases"""


class RunSpec(Section):
    """A run file: a trunk, its corpora, and everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), PINNED]
    """name of the lineage: lower-case letters, digits, dot, dash, underscore; at most 64"""
    store: Annotated[OutputPath, Field(min_length=1), FREE]
    """root folder of the run: a local path, s3://bucket/prefix or gs://bucket/prefix"""
    inbox: Annotated[OutputPath | None, FREE] = None
    """folder that producers land corpora in: a local path or a bucket's url; default
    <store>/inbox"""
    seed: Annotated[int, Field(ge=0, lt=2**63), PINNED] = 0
    """seed of the weights and of the order of the documents; the held-out split does not depend on
    it"""
    sources: dict[SourceName, SourceSpec] = Field(default_factory=dict)
    """places that new data is pulled from, by name: lower-case letters, digits, dash, underscore;
    at most 40"""
    corpora: CorporaSpec = Field(default_factory=CorporaSpec)
    tokenizer: TokenizerSpec
    model: ModelSpec
    training: TrainingSpec
    schedule: Annotated[ScheduleSection, JOIN]
    replay: ReplaySpec = Field(default_factory=ReplaySpec)
    stages: StagesSpec = Field(default_factory=StagesSpec)
    release: ReleaseSpec = Field(default_factory=ReleaseSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    gates: GatesSpec = Field(default_factory=GatesSpec)
    limits: LimitsSpec = Field(default_factory=LimitsSpec)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    notify: NotifySpec = Field(default_factory=NotifySpec)

    @model_validator(mode="after")
    def _tokens_to_fill_in(self) -> RunSpec:
        if self.corpora.fill_in_the_middle is not None and self.tokenizer.path is None:
            raise ValueError(
                "corpora.fill_in_the_middle needs a tokenizer that has tokens for it; name it as "
                "tokenizer.path"
            )
        return self

    @model_validator(mode="after")
    def _own_schedules_fit(self) -> RunSpec:
        for corpus, own in self.stages.corpora.items():
            given = own.schedule and own.schedule.model_dump(mode="json", exclude_none=True)
            if not given or isinstance(self.schedule, AbsentScheduleConfig):
                continue
            field, kind = f"stages.corpora.{corpus}.schedule", self.schedule.kind
            strange = [key for key in given if key not in type(self.schedule).model_fields]
            if self.schedule.spans_trunk or strange:
                raise ValueError(
                    f"{field} has {(strange or [*given])[0]}, and a stage of the schedule {kind} "
                    "has none of its own; remove it, or use the schedule cosine or wsd"
                )
            try:
                self.schedule_of(corpus)
            except ValidationError as wrong:
                problem = wrong.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"{field}: {problem}") from None
        return self

    @model_validator(mode="after")
    def _gpus_to_limit(self) -> RunSpec:
        if self.limits.gpu_hours_per_month is not None and not self.gpus:
            raise ValueError(
                "limits.gpu_hours_per_month is for a run that trains on GPUs; give "
                "training.gpus_per_worker, or limit the stages a day"
            )
        return self

    def schedule_of(self, corpus: str) -> ScheduleConfig:
        """Return the schedule with the stage's own values, where the stage of `corpus` has any."""
        own = self.stages.corpora.get(corpus)
        given = own and own.schedule and own.schedule.model_dump(mode="json", exclude_none=True)
        if not given:
            return self.schedule
        return type(self.schedule).model_validate(self.schedule.model_dump(mode="json") | given)

    @property
    def gpus(self) -> float:
        """Return the GPUs of the largest worker group."""
        return self.training.workers.max * self.training.gpus_per_worker

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens in one global batch."""
        return self.training.global_batch * self.corpora.sequence_length
