"""Plan a study: its runs in order, what they share, what each trains. Reads the runs' ledgers."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from perennial import corpora
from perennial.config import RunSpec, load_run
from perennial.config.paths import place_paths, relative_paths
from perennial.errors import InputError
from perennial.planning.lookahead import expected_corpora, look_ahead
from perennial.runs.averaging import read_average
from perennial.runs.ledger import Ledger
from perennial.runs.stage_planner import decide_average, decide_release
from perennial.runs.state import RunState, Stage
from perennial.store import Store, open_store
from perennial.study.branch import count_shared, may_share
from perennial.study.kept import KeptResult, read_kept
from perennial.study.record import read_record

if TYPE_CHECKING:
    from perennial.config.study import ArmSpec, StudySpec
    from perennial.runs.events import Releasing

RUNS = "runs"


@dataclass(frozen=True)
class AskedRelease:
    """A release of a run.

    name: in the study.
    spec: the run file that it is made under.
    after: the stage, or STAGE@STEP, that it branches off; None for the trunk's end.
    average: such as `last:5` in place of an anneal.
    """

    name: str
    spec: RunSpec
    after: str | None = None
    average: str | None = None


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed: an ordinary run with a store of its own.

    spec: the resolved run file.
    value: of the arm.
    settings: digest of what decides the trunk.
    """

    arm: str
    seed: int
    spec: RunSpec
    releases: tuple[AskedRelease, ...] = ()
    value: float = 0.0
    settings: str = ""

    @property
    def name(self) -> str:
        """Return the name of the run in the study, which is its folder in the place."""
        return f"{self.arm}/seed-{self.seed}"

    @property
    def store(self) -> Store:
        """Return the run's store."""
        return open_store(self.spec.store)


@dataclass(frozen=True)
class PlannedRun:
    """A run of the study, and what it takes.

    stages: all of its trunk, as they are or as they are predicted.
    unknown: corpora whose size is known after their ingestion.
    trained, released: tokens of the stages that it trains itself, and of its releases' anneals.
    donor, shared: the run whose first stages it begins with, and how many these are.
    lender: the run whose tokenised corpora it copies.
    kept: what it came to on another machine; None for a run of this one.
    """

    run: ArmRun
    stages: tuple[Stage, ...]
    unknown: tuple[str, ...]
    trained: int
    released: int
    donor: str | None = None
    shared: int = 0
    lender: str | None = None
    kept: KeptResult | None = None

    @property
    def tokens(self) -> int:
        """Return all tokens that it trains itself."""
        return self.trained + self.released


@dataclass(frozen=True)
class Study:
    """A study file, resolved.

    where: the file's path.
    runs: in the order in which they are begun.
    digest: of the file and its base run file, places aside.
    inbox: url of the inbox of all runs.
    command: by which it is run.
    """

    where: str
    spec: StudySpec
    runs: tuple[ArmRun, ...]
    digest: str
    inbox: str
    command: str

    def identity_of(self, run: ArmRun, inbox: Mapping[str, int]) -> str:
        """Return the digest of what decides the results of a run.

        Args:
            run: a run of the study.
            inbox: stored bytes of the corpora that have landed.
        """
        folder = Path(self.where).parent
        releases = {
            asked.name: [
                _document(asked.spec, {"release"}, set(), folder).get("release", {}),
                asked.after,
                asked.average,
            ]
            for asked in run.releases
        }
        return digest_of([run.settings, run.seed, releases, dict(inbox)])


_PLACES = {"store", "inbox", "tracking", "notify"}
"""sections of the run file that decide no result"""


def _document(spec: RunSpec, only: set[str] | None, but: set[str], folder: Path) -> dict[str, Any]:
    """Return sections of a run file, to be digested: the same from any working directory.

    Defaults are left out, so that a field of a later version changes no run of an earlier one.

    Args:
        spec: the run file.
        only: sections to take; None takes all.
        but: sections to leave out.
        folder: of the study file, from which paths are.
    """
    document = spec.model_dump(mode="json", include=only, exclude=but, exclude_defaults=True)
    named: dict[str, Any] = relative_paths(document, RunSpec, folder)
    return named


def digest_of(document: object) -> str:
    """Return the SHA-256 of a JSON document."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def resolve(where: Path, spec: StudySpec, overrides: Sequence[str] = ()) -> Study:
    """Return a study with the run file of every arm and seed.

    Args:
        where: the study file, for errors.
        spec: its contents, with overrides applied.
        overrides: these, for the page.

    Raises:
        InputError: the base run file is wrong, or an override of an arm is.
    """
    base = load_run(_run_file(spec))
    runs = [_resolve_run(where, spec, base, arm, seed) for seed in spec.seeds for arm in spec.arms]
    runs.sort(key=lambda run: -run.value)  # stable: seed by seed within a value
    document = spec.model_dump(
        mode="json", exclude={"place", "page", "results", "run"}, exclude_defaults=True
    )
    settings = _document(base, None, _PLACES, where.parent)
    digest = digest_of({"study": document, "run": settings})
    command = shlex.join(["perennial", "study", str(where), *overrides])
    return Study(str(where), spec, tuple(runs), digest, inbox_of(base), command)


def _run_file(study: StudySpec) -> Path:
    """Return the path of the base run file, from the working directory as those in it are then."""
    return Path(os.path.relpath(study.run))


def inbox_of(base: RunSpec) -> str:
    """Return the url of a run's inbox."""
    return base.inbox or f"{base.store.rstrip('/')}/inbox"


def _resolve_run(where: Path, study: StudySpec, base: RunSpec, arm: str, seed: int) -> ArmRun:
    asked = study.arms[arm]
    own = {
        "name": f"{study.name}-{arm}",
        "store": f"{study.place.rstrip('/')}/{RUNS}/{arm}/seed-{seed}",
        "inbox": inbox_of(base),
        "seed": seed,
    }
    overrides = _texts(_placed(where, asked.overrides)) + _texts(own)
    spec = _load(where, study, f"arms.{arm}.overrides", overrides)
    releases = tuple(
        AskedRelease(
            name,
            _load(
                where,
                study,
                f"arms.{arm}.releases.{name}.overrides",
                [*overrides, *_texts(_placed(where, its.overrides))],
            ),
            its.after,
            its.average,
        )
        for name, its in asked.releases.items()
    )
    settings = digest_of(_document(spec, None, {*_PLACES, "release"}, where.parent))
    return ArmRun(arm, seed, spec, releases, asked.value, settings)


def _placed(where: Path, overrides: Mapping[str, object]) -> dict[str, object]:
    """Return an arm's overrides with the relative paths in them, which are from the study file.

    Raises:
        InputError: a path is there from the working directory alone.
    """
    placed: dict[str, object] = {}
    for name, value in overrides.items():
        document: Any = value
        for key in reversed(name.split(".")):
            document = {key: document}
        document = place_paths(document, RunSpec, Path(os.path.relpath(where)))
        keys: list[str] = []
        while len(keys) <= name.count("."):
            ((key, document),) = document.items()
            keys.append(key)
        placed[".".join(keys)] = document
    return placed


def _texts(overrides: Mapping[str, object]) -> list[str]:
    """Return overrides as on the command line: plain text where it is that text in YAML."""
    return [f"{name}={_text(value)}" for name, value in overrides.items()]


def _text(value: object) -> str:
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            if yaml.safe_load(value) == value:
                return value
    return json.dumps(value)  # JSON is YAML


def _load(where: Path, study: StudySpec, field: str, overrides: Sequence[str]) -> RunSpec:
    try:
        return load_run(_run_file(study), overrides)
    except InputError as wrong:
        name = f"{field}.{wrong.field}" if wrong.field else field
        raise InputError(str(where), name, wrong.problem, wrong.remedy, code=wrong.code) from None


def overrides_of(arm: ArmSpec) -> list[str]:
    """Return an arm's overrides as they would be written on a command line."""
    return _texts(arm.overrides)


def plan(study: Study) -> list[PlannedRun]:
    """Return what every run takes, as far as that is known. Reads only.

    Raises:
        InputError: nothing has landed, an arm cannot be trained, or two releases of an arm are one.
    """
    inbox = list_inbox(study)
    states = {run.name: read_state(run) for run in study.runs}
    kept = list_kept(study, inbox)
    planned: list[PlannedRun] = []
    for run in study.runs:
        its = replace(_predict(study, run, states, inbox), kept=kept.get(run.name))
        if its.kept is None:
            its = _share(study, its, [other for other in planned if other.kept is None])
        planned.append(its)
    return planned


def list_kept(study: Study, inbox: Mapping[str, int]) -> dict[str, KeptResult]:
    """Return the results of the runs that are not on this machine, and were made elsewhere.

    Args:
        study: the study.
        inbox: stored bytes of the corpora that have landed.

    Raises:
        InputError: the file of results is damaged.
    """
    results = read_kept(study.spec.results)
    return {
        run.name: results[run.name]
        for run in study.runs
        if run.name in results
        and results[run.name].identity == study.identity_of(run, inbox)
        and read_record(run.store) is None
    }


def list_inbox(study: Study) -> dict[str, int]:
    """Return the stored bytes of the corpora that have landed, in the order of landing.

    Raises:
        InputError: there is none.
    """
    inbox = open_store(study.inbox)
    landed = {corpus.name: corpus.total_bytes for corpus in corpora.list_landed(inbox)}
    if not landed:
        raise InputError(
            inbox.url,
            "",
            "no complete corpus has landed",
            f"land one: `perennial land {study.spec.run} NAME FILES...`",
            code="nothing-landed",
        )
    return landed


def read_state(run: ArmRun) -> RunState:
    """Return the state of a run; an empty one before it is begun."""
    return Ledger(run.store).read()


def ingests_alike(run: RunSpec, other: RunSpec) -> bool:
    """Return whether a run may copy the corpora that another one tokenised."""
    one, two = (its.corpora.model_copy(update={"borrow": None}) for its in (run, other))
    return (one, run.tokenizer, run.seed) == (two, other.tokenizer, other.seed)


def _predict(
    study: Study, run: ArmRun, states: Mapping[str, RunState], inbox: Mapping[str, int]
) -> PlannedRun:
    state = states[run.name]
    counted = {
        name: corpus.sequences
        for other in study.runs
        if ingests_alike(run.spec, other.spec)
        for name, corpus in states[other.name].corpora.items()
        if corpus.sequences
    }
    expected = [
        replace(corpus, sequences=counted[corpus.name]) if corpus.name in counted else corpus
        for corpus in expected_corpora(run.spec, state, inbox)
    ]
    try:
        ahead = look_ahead(run.spec, state, expected)
    except InputError as wrong:
        where = f"arms.{run.arm}" + (f": {wrong.field}" if wrong.field else "")
        raise InputError(study.where, where, wrong.problem, wrong.remedy, code=wrong.code) from None
    stages = tuple(ahead.state.stages)
    per_step = run.spec.tokens_per_step
    trained = sum(stage.mix.steps for stage in stages) * per_step
    released = 0 if ahead.unknown else _anneal_steps(study, run, ahead.state) * per_step
    return PlannedRun(run, stages, ahead.unknown, trained, released)


def _anneal_steps(study: Study, run: ArmRun, state: RunState) -> int:
    """Return the steps of all releases of a run; refuse two that would be one."""
    steps, names = 0, dict[str, str]()
    for asked in run.releases:
        decided = decide(state, asked)
        if decided is None:
            continue
        if decided.name in names:
            raise InputError(
                study.where,
                f"arms.{run.arm}.releases.{asked.name}",
                f"it is the same release as {names[decided.name]}",
                "remove one of them, or let their overrides differ",
                code="releases-equal",
            )
        names[decided.name] = asked.name
        steps += decided.mix.steps if decided.mix else 0
    return steps


def decide(state: RunState, asked: AskedRelease) -> Releasing | None:
    """Return a release as the run would plan it; None where its stage is not there.

    Args:
        state: the run, as it is or will be.
        asked: the release. Of an average, only the last checkpoint is the one that it is of.
    """
    name, _, at = (asked.after or "").partition("@")
    stages = [stage for stage in state.stages if asked.after is None or stage.name == name]
    if not stages:
        return None
    stage = stages[-1]
    step = int(at) if at else stage.last_step
    if asked.average is None:
        return decide_release(asked.spec, state, stage, step, None, "")
    average = read_average(asked.average)
    return decide_average(asked.spec, [(stage, step)] * average.checkpoints, average, "")


def _share(study: Study, planned: PlannedRun, earlier: Sequence[PlannedRun]) -> PlannedRun:
    """Return a planned run with the earlier one whose stages it shares, and whose corpora."""
    run = planned.run
    alike = [other for other in earlier if ingests_alike(run.spec, other.run.spec)]
    shared = {
        other.run.name: count_shared(planned.stages, other.stages)
        for other in alike
        if may_share(run.spec, other.run.spec)
    }
    donor = max(shared, key=lambda name: shared[name], default=None)
    count = shared[donor] if donor is not None else 0
    own = sum(stage.mix.steps for stage in planned.stages[count:]) * run.spec.tokens_per_step
    return replace(
        planned,
        trained=own,
        donor=donor if count else None,
        shared=count,
        lender=alike[0].run.name if alike else None,
    )
