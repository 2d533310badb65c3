"""The schema of the run file.

The text below a field is its documentation in the reference, and the remedy in its error message.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from perennial.config.cron import TimetableText
from perennial.config.gates import GatesSpec
from perennial.config.provenance import CorpusOrigin, SummarySpec
from perennial.config.sources import Size, SourceName, SourceSpec
from perennial.config.training import ModelSpec, TrainingSpec
from perennial.fields import (
    FREE,
    JOIN,
    PINNED,
    Amount,
    ByKind,
    Count,
    Section,
    Share,
    Weight,
    parse_amount,
)
from perennial.mixture import Mixture, ReplaySpec
from perennial.schedules import SCHEDULES, AbsentScheduleConfig, AnnealShape, ScheduleConfig
from perennial.steps import StepSection

S = TypeVar("S", bound=Section)
TxtDocuments = Literal["paragraph", "line", "file"]
TAKEN_COLUMNS = ("row", "start", "tokens", "before", "file", "offset", "digest", "domain")


def _check_column(name: str) -> str:
    if name in TAKEN_COLUMNS:
        raise ValueError(f"{name} has a meaning of its own beside it; keep it under another name")
    return name


ColumnName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,40}$"), AfterValidator(_check_column)]
Metadata = dict[ColumnName, Annotated[str, Field(min_length=1)]]
IdType = Literal["uint8", "uint16", "uint32", "int32", "int64"]
PartsOf = Literal["none", "domain"]
DoneToText = Literal[
    "steps", "decontaminate", "fuzzy_duplicates", "repeated_lines", "fill_in_the_middle"
]
LargestDocument = Annotated[Size, Field(ge=1, le=1 << 30)]
LargestWindow = Annotated[Size, Field(ge=1 << 10, le=1 << 31)]


class TokensSpec(Section):
    """Documents of a corpus that are token ids already, of the run's own tokenizer."""

    tokenizer: Annotated[str, JOIN]
    """what the ids are of: the fingerprint of a tokenizer (that of a run is in its store,
    tokenizer/manifest.json), or the path of one, as `tokenizer.path` takes it; any other than the
    run's is refused"""
    vocabulary: Annotated[Count | None, JOIN] = None
    """ids are below this number; default, and at most: the entries of the run's tokenizer. A
    document with another id is set aside"""
    field: Annotated[str, JOIN] = "input_ids"
    """the field of an object, or the column of a table, that holds a document's ids"""
    dtype: Annotated[IdType | None, JOIN] = None
    """type of the ids in a .bin or .npy file without a head: uint8, uint16, uint32, int32 or
    int64, little-endian; default uint16 for a vocabulary of at most 65,536, else uint32"""
    without: Annotated[tuple[DoneToText, ...], JOIN] = ()
    """what `corpora` asks of text that is not done to these ids; a corpus is refused where the run
    file asks for one of them that is not named here"""


class ReadingOverride(Section):
    """Reading of the files of one corpus, in place of what `corpora` says."""

    text_field: Annotated[str | None, JOIN] = None
    """the field or column that holds the text"""
    domain_field: Annotated[str | None, JOIN] = None
    """the field or column that names a document's domain"""
    metadata: Annotated[Metadata | None, JOIN] = None
    """fields or columns that are kept of every document, by the name to keep them under"""
    parts: Annotated[PartsOf | None, JOIN] = None
    """domain keeps the documents of each domain apart, so that a stage can weigh them; or none"""
    txt_documents: Annotated[TxtDocuments | None, JOIN] = None
    """where a document of a .txt file ends: paragraph, line or file"""
    max_document: Annotated[LargestDocument | None, JOIN] = None
    """longest text of a document, at most 1 GiB"""
    max_zstd_window: Annotated[LargestWindow | None, JOIN] = None
    """largest window of a .zst file, at most 2 GiB"""
    tokens: TokensSpec | None = None
    """the documents are token ids, not text"""


class FillInTheMiddleSpec(Section):
    """Documents whose middle is moved to their end, for a model that completes code or text.

    The tokens are the tokenizer's own.
    """

    share: Annotated[Annotated[float, Field(gt=0.0, le=1.0)], JOIN] = 0.5
    """share of the trained documents, of those that fit a sequence"""
    spm_share: Annotated[Share, JOIN] = 0.5
    """share of these whose suffix comes before their prefix, from 0 to 1"""
    prefix: Annotated[str, JOIN] = "<|fim_prefix|>"
    """the token before the prefix"""
    middle: Annotated[str, JOIN] = "<|fim_middle|>"
    """the token before the middle"""
    suffix: Annotated[str, JOIN] = "<|fim_suffix|>"
    """the token before the suffix"""

    @model_validator(mode="after")
    def _three_tokens(self) -> FillInTheMiddleSpec:
        if len({self.prefix, self.middle, self.suffix}) < 3:
            raise ValueError("prefix, middle and suffix are three different tokens")
        return self


class CorporaSpec(Section):
    """Tokenisation of landed documents into sequences."""

    text_field: Annotated[str, JOIN] = "text"
    """the field of an object, or the column of a table, that holds the text; where there is none of
    that very name, `doc.text` is the field `text` of what the field `doc` holds"""
    domain_field: Annotated[str, JOIN] = ""
    """the field or column that names a document's domain, such as `source`; held-out losses are
    then reported by domain as well. Empty: documents have no domains"""
    metadata: Annotated[Metadata, JOIN] = Field(default_factory=dict)
    """fields or columns that are kept of every trained document, by the name to keep them under,
    such as `{id: id, url: metadata.url}`: a sequence leads back to them"""
    parts: Annotated[PartsOf, JOIN] = "none"
    """domain makes each value of `domain_field` a part of the corpus, at most 256: every batch
    holds its share of each part, by its size or by `stages.corpora.NAME.weights`. Tokens at a
    part's end that fill no row are not trained; none: a corpus is one whole"""
    txt_documents: Annotated[TxtDocuments, JOIN] = "paragraph"
    """where a document of a .txt file ends: paragraph (at a blank line), line, or file"""
    max_document: Annotated[LargestDocument, JOIN] = 8 << 20
    """longest text of a document, at most 1 GiB; a longer one is set aside. A JSON line or a row
    may be four times as long. A task that reads or writes holds several of the longest texts in
    memory"""
    max_zstd_window: Annotated[LargestWindow, JOIN] = 128 << 20
    """largest window of a .zst file (`zstd --long`), at most 2 GiB; a task that reads one holds it
    in memory. A file that needs a larger one is set aside"""
    read: dict[str, ReadingOverride] = Field(default_factory=dict)
    """overrides of `text_field`, `domain_field`, `metadata`, `parts`, `txt_documents`,
    `max_document` and `max_zstd_window`, and `tokens`, by a corpus's name, or by a glob such as
    `"c4-*"`: those of the exact name, else of the longest glob that matches"""
    about: dict[str, CorpusOrigin] = Field(default_factory=dict)
    """origins of corpora for the summary of training content, by a corpus's name or a glob, as
    `read` takes them"""
    sequence_length: Annotated[int, Field(ge=8), PINNED] = 2048
    """tokens in one sequence"""
    packing: Annotated[Literal["concat", "best-fit"], JOIN] = "concat"
    """concat lays documents end to end and cuts them where a sequence ends; best-fit cuts none that
    fits a sequence, and fills what is left with padding, which is not trained"""
    fill_in_the_middle: FillInTheMiddleSpec | None = None
    """with a tokenizer that has tokens for it, moves the middle of some documents to their end;
    `{}` takes the defaults"""
    holdout: Annotated[float, Field(gt=0.0, lt=0.5), PINNED] = 0.01
    """share of a corpus's documents that are held out for evaluation, above 0 and below 0.5"""
    max_bad_share: Annotated[Share, JOIN] = 0.01
    """share of bad documents, of stored bytes that cannot be read, or of damaged files, above which
    the whole corpus is refused, from 0 to 1"""
    duplicates: Annotated[Literal["keep", "drop"], JOIN] = "keep"
    """keep or drop documents whose text occurred before, in this corpus or an earlier one; both
    count them"""
    near_duplicates: Annotated[Annotated[float, Field(gt=0.0, le=1.0)] | None, JOIN] = 0.8
    """documents at least this similar to a held-out document are not trained; similarity is the
    share of common runs of 5 words, estimated by MinHash, above 0 and at most 1. null turns it
    off"""
    fuzzy_duplicates: Annotated[Annotated[float, Field(gt=0.0, le=1.0)] | None, JOIN] = None
    """documents at least this similar to an earlier document of the same corpus are not trained,
    such as 0.8; similarity is the share of common runs of 5 words, estimated by MinHash, above 0
    and at most 1. Default: trained documents are not compared with each other"""
    repeated_lines: Annotated[Count | None, JOIN] = None
    """lines of at least so many characters, such as 100, are cut out of a document where they
    occurred before in the same corpus. Default: none are"""
    steps: Annotated[tuple[StepSection, ...], JOIN] = ()
    """what becomes of a document before it is tokenised, in this order: each step keeps it, drops
    it with a reason, or changes its text"""
    borrow: Annotated[str | None, FREE] = None
    """store of another run, a folder or a bucket's url: its tokenizer, and the corpora of this
    run's inbox that it has tokenised, are copied instead of computed again"""
    decontaminate: Annotated[tuple[str, ...], JOIN] = ()
    """files of evaluation texts, in any format that a corpus may have; a document that shares 13
    consecutive words with one of them is not trained"""

    @model_validator(mode="after")
    def _parts_have_domains(self) -> CorporaSpec:
        for own in (ReadingOverride(), *self.read.values()):
            field = self.domain_field if own.domain_field is None else own.domain_field
            if (own.parts or self.parts) == "domain" and not field:
                raise ValueError(
                    "parts: domain needs domain_field; name the field that holds the domain"
                )
        return self

    def for_corpus(self, name: str) -> CorporaSpec:
        """Return the section with what `read` has for a corpus in the place of its own keys.

        Args:
            name: of the corpus.
        """
        own = dict(self._override(name))
        del own["tokens"]
        return self.model_copy(update={k: v for k, v in own.items() if v is not None})

    def tokens_of(self, name: str) -> TokensSpec | None:
        """Return how the documents of a corpus are token ids; None for text.

        Args:
            name: of the corpus.
        """
        return self._override(name).tokens

    def origin_of(self, name: str) -> CorpusOrigin:
        """Return what the run file says about the origin of a corpus.

        Args:
            name: of the corpus.
        """
        return _of_name(self.about, name) or CorpusOrigin()

    def _override(self, name: str) -> ReadingOverride:
        return _of_name(self.read, name) or ReadingOverride()


def _of_name(sections: Mapping[str, S], name: str) -> S | None:
    """Return the section of the exact name, else of the longest glob that matches it."""
    globs = [glob for glob in sections if fnmatchcase(name, glob)]
    longest = max(globs, key=lambda glob: (len(glob), glob), default=None)
    return sections.get(name, None if longest is None else sections[longest])


class TokenizerSpec(Section):
    """The tokenizer, which is fixed for the life of the run: give exactly one of the two keys."""

    vocabulary: Annotated[Annotated[int, Field(ge=300, le=2**31)] | None, PINNED] = None
    """entries of a byte-level BPE tokenizer that is trained on the first corpus, at least 300"""
    path: Annotated[str | None, PINNED] = None
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


class StageOverride(Section):
    """Settings of the stage of one corpus, in place of the run's."""

    budget: Annotated[Amount | None, JOIN] = None
    """tokens of this stage, new and replayed together, such as `400k tokens` or `100%`"""
    replay: Annotated[Share | None, JOIN] = None
    """this stage's replay share, from 0 to 1"""
    priority: Annotated[int, JOIN] = 0
    """of corpora that landed, the one with the highest number is the next stage"""
    optimizer: Annotated[OptimizerAtJoin | None, JOIN] = None
    """the optimizer state that this stage inherits: reset, keep or keep-second-moment"""
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
                "a corpus of role replay has no stage that budget, replay, priority or optimizer "
                "could be for; remove them"
            )
        return self

    @property
    def changes_the_stage(self) -> bool:
        """Return whether the stage is trained differently from those of other corpora."""
        return any(own is not None for own in (self.budget, self.replay, self.optimizer))


class BatchArrivals(Section):
    """Bounds within which several ready corpora become one stage.

    A sequence of stages, one per domain, does worse than one stage of their mixture
    (arXiv 2403.08763, A.1).
    """

    max_corpora: Annotated[int, Field(ge=2), JOIN] = 8
    """most corpora in one stage, at least 2"""
    max_tokens: Annotated[Amount | None, JOIN] = None
    """most training tokens of these corpora together, such as `2B tokens`; default no limit"""

    @model_validator(mode="after")
    def _absolute(self) -> BatchArrivals:
        if self.max_tokens is not None and self.max_tokens.unit == "percent":
            raise ValueError("max_tokens is a number of tokens or steps, not a percentage")
        return self


class StagesSpec(Section):
    """Length, order and retries of the stages."""

    budget: Annotated[Amount, JOIN] = Field(default_factory=lambda: parse_amount("100%"))
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
    attempts: Annotated[Count, FREE] = 3
    """attempts at ingesting, training or evaluating a corpus before it waits for `retry`"""
    retry_after_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False), FREE] = 60.0
    """delay before the second attempt, in seconds; it doubles with every further one"""

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
    """licence of the releases, as their card names it, such as `apache-2.0`"""
    languages: Annotated[tuple[str, ...], FREE] = ()
    """languages of the releases, as their card names them, such as `en`"""
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
    every: Annotated[Amount | None, FREE] = None
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


class EvaluationSpec(Section):
    """Measurements after every stage and on a release."""

    documents: Annotated[Count, FREE] = 1000
    """most held-out documents that are scored per corpus"""
    tasks: Annotated[tuple[str, ...], FREE] = ()
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
    the stage started from; false scores releases alone"""
    prompts: Annotated[tuple[str, ...], FREE] = ()
    """prompts that every stage and every release continues, besides the first words of held-out
    documents"""
    baseline: Annotated[str | None, FREE] = None
    """store of a run that was retrained from scratch, a folder or a bucket's url; the report
    shows the gap to it"""


class TrackingSpec(Section):
    """The MLflow server and experiment that record the run."""

    uri: Annotated[str | None, FREE] = None
    """MLflow tracking URI; default MLFLOW_TRACKING_URI, else an SQLite file in a local store"""
    experiment: Annotated[str, FREE] = "perennial"
    """name of the MLflow experiment"""


class RunSpec(Section):
    """A run file: a trunk, its corpora, and everything that decides its result."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), PINNED]
    """name of the lineage: lower-case letters, digits, dot, dash, underscore; at most 64"""
    store: Annotated[str, Field(min_length=1), FREE]
    """root folder of the run: a local path, s3://bucket/prefix or gs://bucket/prefix"""
    inbox: Annotated[str | None, FREE] = None
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
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)

    @model_validator(mode="after")
    def _tokens_to_fill_in(self) -> RunSpec:
        if self.corpora.fill_in_the_middle is not None and self.tokenizer.path is None:
            raise ValueError(
                "corpora.fill_in_the_middle needs a tokenizer that has tokens for it; name it as "
                "tokenizer.path"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens in one global batch."""
        return self.training.global_batch * self.corpora.sequence_length
