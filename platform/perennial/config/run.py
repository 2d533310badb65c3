"""The run file's schema. The text below each field is its documentation and its error's remedy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from perennial.config.cron import TimetableText
from perennial.config.gates import GatesSpec
from perennial.config.sources import SourceName, SourceSpec
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.fields import Amount, ByKind, Count, Section, Share, parse_amount
from perennial.mixture import ReplaySpec
from perennial.schedules import SCHEDULES, AbsentScheduleConfig, AnnealShape, ScheduleConfig


class CorporaSpec(Section):
    """How landed documents become sequences."""

    text_field: str = "text"
    """the field of a JSON line or the column of a Parquet file that holds the text"""
    domain_field: str = ""
    """the field or column that names a document's domain, such as `source`; held-out losses are
    then told by domain as well. Empty: documents have no domains"""
    sequence_length: Annotated[int, Field(ge=8)] = 2048
    """tokens in one sequence"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.01
    """share of a corpus's documents that are held out for evaluation, above 0 and below 0.5"""
    max_bad_share: Share = 0.01
    """share of unreadable documents above which the whole corpus is refused, from 0 to 1"""
    duplicates: Literal["keep", "drop"] = "keep"
    """keep or drop documents whose text occurred before, in the corpus or an earlier one; they are
    counted either way"""
    near_duplicates: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.8
    """similarity with a held-out document (share of runs of 5 words, by MinHash) from which on a
    document is not trained, above 0 and at most 1; null compares nothing"""
    borrow: str | None = None
    """store of another run, a folder or s3://bucket/prefix: its tokenizer, and what it tokenised of
    this run's inbox, are copied instead of made again; default nothing"""
    decontaminate: tuple[str, ...] = ()
    """files of evaluation texts, .jsonl or .txt; a document that shares 13 words in a row with one
    is not trained"""


class TokenizerSpec(Section):
    """Where the tokenizer comes from; it is fixed for the life of the run."""

    vocabulary: Annotated[int, Field(ge=300, le=2**31)] | None = None
    """entries of a byte-level BPE that is trained on the first corpus, at least 300"""
    path: str | None = None
    """a tokenizer.json, a Hugging Face folder that holds one or a .gguf file, local or s3://"""

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizerSpec:
        if (self.vocabulary is None) == (self.path is None):
            raise ValueError("give exactly one of vocabulary and path")
        return self


ScheduleSection = Annotated[ScheduleConfig, ByKind(SCHEDULES, "infinite", AbsentScheduleConfig)]


OptimizerAtJoin = Literal["reset", "keep", "keep-second-moment"]


class StageOverride(Section):
    """What differs for the stage of one corpus."""

    budget: Amount | None = None
    """tokens of this stage, new and replayed together, such as `400k tokens` or `100%`"""
    replay: Share | None = None
    """this stage's replay share, from 0 to 1"""
    priority: int = 0
    """of corpora that landed, the one with the highest number is the next stage"""
    optimizer: OptimizerAtJoin | None = None
    """what this stage takes over of AdamW's state: reset, keep or keep-second-moment"""

    @property
    def changes_the_stage(self) -> bool:
        """Whether the stage is trained otherwise than those of other corpora."""
        return any(own is not None for own in (self.budget, self.replay, self.optimizer))


class BatchArrivals(Section):
    """How much may become one stage of what landed and is ready at once.

    A sequence of stages, one a domain, does worse than their mixture (arXiv 2403.08763, A.1).
    """

    max_corpora: Annotated[int, Field(ge=2)] = 8
    """corpora that one stage may train, at least 2"""
    max_tokens: Amount | None = None
    """training tokens that they may have together, such as `2B tokens`; default no limit"""

    @model_validator(mode="after")
    def _absolute(self) -> BatchArrivals:
        if self.max_tokens is not None and self.max_tokens.unit == "percent":
            raise ValueError("max_tokens is a number of tokens or steps, not a percentage")
        return self


class StagesSpec(Section):
    """How much each stage trains, in which order, and how often it is tried."""

    budget: Amount = Field(default_factory=lambda: parse_amount("100%"))
    """tokens of a stage, new and replayed together; 100% is the corpus's own training tokens"""
    optimizer: OptimizerAtJoin = "reset"
    """what a stage takes over of AdamW's state from the one before it: reset (nothing, as in the
    paper), keep (all of it) or keep-second-moment (the steps' scale but not their direction)"""
    corpora: dict[str, StageOverride] = Field(default_factory=dict)
    """overrides by corpus name"""
    order: Literal["landing"] | tuple[str, ...] = "landing"
    """landing (by priority, then in the order of landing), or names of corpora: these come first,
    in this order, and each waits for the one before it"""
    only: tuple[str, ...] | None = None
    """names of the corpora that become stages; any other is tokenised and measured but never
    trained; default all"""
    batch_arrivals: BatchArrivals | None = None
    """what landed and is ready at once becomes one stage, within these bounds; `{}` for the default
    ones. Corpora that are named in `order`, differ in priority, or have a budget, replay share or
    optimizer of their own keep a stage of their own. Default: each corpus is a stage"""
    attempts: Count = 3
    """how often ingesting, training or evaluating a corpus is tried before it waits for `retry`"""
    retry_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """pause before the second try; it doubles with each further one"""


class ReleaseSpec(Section):
    """The branch that is annealed and exported."""

    anneal: Amount = Field(default_factory=lambda: parse_amount("10%"))
    """length of the anneal; a percentage is of the trunk's steps so far"""
    shape: AnnealShape = "exponential"
    """exponential (the paper's), 1-sqrt, linear or cosine"""
    sample_tokens: Annotated[int, Field(ge=0)] = 40
    """tokens of each sampled line; 0 samples nothing"""
    policy: Literal["on-demand", "each-stage", "every", "schedule"] = "on-demand"
    """on-demand (by `perennial release` alone), each-stage (the end of each stage that passed its
    gates), every (see `every`) or schedule (see `schedule`); made between two stages"""
    every: Amount | None = None
    """with `policy: every`, the tokens or steps of the trunk between two releases, such as
    `4M tokens`"""
    schedule: TimetableText | None = None
    """with `policy: schedule`, when the end of the last stage is released, unless it was: a period
    such as `7d`, or five cron fields such as `0 2 * * 1`; in UTC"""

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


class EvaluationSpec(Section):
    """What is measured after each stage and on a release."""

    documents: Count = 1000
    """held-out documents a corpus that are scored at most"""
    tasks: tuple[str, ...] = ()
    """lm-eval tasks by name, suites (paper-english, paper-german), or folders that hold a task's
    YAML"""
    trunk_tasks: bool = False
    """whether they are scored at the end of every stage too, against the checkpoint from which it
    started; default on releases alone"""
    prompts: tuple[str, ...] = ()
    """beginnings that every stage and every release continues, besides the first words of held-out
    documents"""
    baseline: str | None = None
    """store of a run that was retrained from scratch, a folder or s3://bucket/prefix; the report
    tells the gap to it; default none"""


class TrackingSpec(Section):
    """Where MLflow keeps the run."""

    uri: str | None = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else an SQLite file in a local store"""
    experiment: str = "perennial"
    """MLflow experiment"""


class RunSpec(Section):
    """One run file: a trunk, its corpora, and everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """name of the lineage: lower-case letters, digits, dot, dash, underscore; at most 64"""
    store: Annotated[str, Field(min_length=1)]
    """root folder of the run: a local path or s3://bucket/prefix"""
    inbox: str | None = None
    """where producers put corpora: a local path or s3://bucket/prefix; default <store>/inbox"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """seed of the weights, the shuffle and the held-out split"""
    sources: dict[SourceName, SourceSpec] = Field(default_factory=dict)
    """where new data is pulled from, by name: lower-case letters, digits, dash, underscore; at most
    40"""
    corpora: CorporaSpec = Field(default_factory=CorporaSpec)
    tokenizer: TokenizerSpec
    model: ModelSpec
    training: TrainingSpec
    schedule: ScheduleSection
    replay: ReplaySpec = Field(default_factory=ReplaySpec)
    stages: StagesSpec = Field(default_factory=StagesSpec)
    release: ReleaseSpec = Field(default_factory=ReleaseSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    gates: GatesSpec = Field(default_factory=GatesSpec)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one global batch."""
        return self.training.global_batch * self.corpora.sequence_length
