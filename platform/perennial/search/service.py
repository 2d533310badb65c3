"""`perennial tune`: plan a search, run its trials, and keep their result with its advice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from perennial.config.search import Point, TuningSpec
from perennial.errors import InputError
from perennial.evaluation.cache import kept_losses
from perennial.runs.metrics import stored_rows
from perennial.search.begin import PlannedSearch, begin, plan_search
from perennial.search.results import SearchResult, SearchTrial, point_dict, result_key
from perennial.search.space import Space, space_of
from perennial.search.summarize import SearchSetting, TrialOutcome, summarize
from perennial.telemetry.mlflow_observer import mlflow_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perennial.controller.context import Workspace
    from perennial.search.trials import Bench
    from perennial.search.tune_runner import Rounds

    Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SearchPlan:
    """The trials that a search would run.

    Attributes:
        spec: the tuning file.
        source: key of the checkpoint that they branch off.
        corpus: whose stage is searched.
        old: corpora that the trunk knows.
        rungs: steps after which trials are compared; the last is the whole budget.
        stage_steps: optimizer steps of the stage that is searched.
        points: names of the points of the space.
    """

    spec: TuningSpec
    source: str
    corpus: str
    old: tuple[str, ...]
    rungs: tuple[int, ...]
    stage_steps: int
    points: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "source": self.source,
            "corpus": self.corpus,
            "old": list(self.old),
            "rungs": list(self.rungs),
            "stage_steps": self.stage_steps,
            "points": list(self.points),
        }


def plan_tune(work: Workspace, where: str, spec: TuningSpec) -> SearchPlan:
    """Return the trials of a tuning file; trains and writes nothing.

    Args:
        work: the run.
        where: the tuning file, for errors.
        spec: its contents.

    Raises:
        InputError: as for `plan_search`, or a point of the space cannot be trained.
    """
    search = plan_search(work, where, spec, ingest=False)
    space = _checked_space(search, spec)
    bench = search.bench
    return SearchPlan(
        spec=spec,
        source=bench.source,
        corpus=bench.corpus,
        old=bench.old,
        rungs=search.rungs,
        stage_steps=search.stage_steps,
        points=tuple(point.name for point in space.grid()),
    )


def tune(
    work: Workspace,
    where: str,
    spec: TuningSpec,
    draw: Callable[[SearchResult], bytes],
    output: Path | None,
) -> SearchResult:
    """Run the trials of a tuning file and keep their result; what is measured is not trained again.

    Args:
        work: the run, followed by MLflow.
        where: the tuning file, for errors.
        spec: its contents.
        draw: returns the picture of the result as PNG.
        output: a local folder for the files of the result as well; None: none.

    Raises:
        InputError: as for `plan_tune`.
        TrialFailed: a trial failed for the last time; the finished ones are kept.
        Superseded: another process began with the same search.
    """
    search = plan_search(work, where, spec)
    space = _checked_space(search, spec)
    work.use_ray()
    bench = begin(work, spec, search)
    work.log(f"search {spec.name}: trials of {bench.steps:,} steps off {bench.source}")
    rounds = _run_trials(work, spec, search, bench, space)
    work.ledger.read()
    result = _summarize(work, spec, search, bench, space, rounds)
    # Without the commands, which name the folder of a store that may be moved.
    files = _files(result, draw(result))
    for name, data in files.items():
        work.store.write(result_key(result.search, name), data)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(data)
    _track(work, result, files)
    return _with_commands(work, spec, search, result, output)


def _checked_space(search: PlannedSearch, spec: TuningSpec) -> Space:
    """Return the space of a search, after checking every corner before anything is trained."""
    space = space_of(spec, search.here)
    for point in space.grid():
        search.bench.run_spec(point)
    _check_tokens(search, spec, space)
    return space


def _check_tokens(search: PlannedSearch, spec: TuningSpec, space: Space) -> None:
    """Refuse a search whose trials could train more than the run file allows."""
    run = search.bench.spec
    most = run.limits.search_tokens
    if most is None:
        return
    steps, before = 0, 0
    trials = spec.trials or len(space.grid())
    for rung in search.rungs:
        steps += trials * spec.seeds * (rung - before)
        trials = -(-trials // spec.halving.factor) if spec.halving else trials
        before = rung
    if steps > most.steps(search.stage_steps, run.tokens_per_step):
        raise InputError(
            search.bench.where,
            "budget",
            f"the trials may train {steps * run.tokens_per_step:,} tokens, more than {most}, the "
            "run file's limits.search_tokens",
            "try fewer points, or for fewer tokens each; or raise the limit",
            code="search-too-large",
        )


def _run_trials(
    work: Workspace, spec: TuningSpec, search: PlannedSearch, bench: Bench, space: Space
) -> Rounds:
    # Imported late: Ray Tune takes seconds to load, and planning a search does not need it.
    from perennial.search.tune_runner import Trials, run_search

    trials = Trials(bench, spec.concurrent, spec.seeds, work.log)
    earlier = [
        trial.branched.point
        for trial in work.state.searches.of(spec.name).values()
        if trial.branched.source == bench.source and isinstance(trial.branched.point, Point)
    ]
    begun = [point for point in earlier if not point.seed and space.holds(point)]
    return run_search(trials, spec, space, search.rungs, work.spec.tokens_per_step, begun)


def _summarize(
    work: Workspace,
    spec: TuningSpec,
    search: PlannedSearch,
    bench: Bench,
    space: Space,
    rounds: Rounds,
) -> SearchResult:
    setting = SearchSetting(
        search=spec.name,
        corpus=bench.corpus,
        after=bench.origin.stages[-1].name,
        source=bench.source,
        step=bench.first_step,
        rate=bench.rate,
        objectives=(spec.objectives[0], spec.objectives[1]),
        before=_losses_by_document(work, bench.source, bench.old),
        steps=bench.steps,
        stage_steps=search.stage_steps,
        tokens_per_step=work.spec.tokens_per_step,
        seed=spec.seed,
    )
    points = rounds[search.rungs[0]]
    return summarize(setting, space, [_outcome(work, spec, bench, rounds, p) for p in points])


def _outcome(
    work: Workspace, spec: TuningSpec, bench: Bench, rounds: Rounds, point: Point
) -> TrialOutcome:
    trials = [
        work.state.searches.trials[bench.branched(replace(point, seed=seed)).trial]
        for seed in range(spec.seeds)
    ]
    by_steps = {steps: values[point] for steps, values in rounds.items() if point in values}
    last = [trial.at(bench.first_step + max(by_steps)) for trial in trials]
    checkpoints = tuple(tried.checkpoint for tried in last if tried is not None)
    corpora = (bench.corpus, *bench.old)
    return TrialOutcome(
        point=point,
        by_steps=by_steps,
        trained_steps=sum(trial.trained_steps for trial in trials),
        folder=trials[0].folder,
        checkpoints=checkpoints,
        documents=tuple(_losses_by_document(work, key, corpora) for key in checkpoints),
    )


def _losses_by_document(
    work: Workspace, checkpoint: str, corpora: Sequence[str]
) -> dict[str, Array]:
    """Return nats and tokens `(documents, 2)` of a checkpoint by corpus, where they are kept."""
    import numpy as np

    kept = {corpus: kept_losses(work.store, checkpoint, corpus) for corpus in corpora}
    return {
        corpus: np.array([(loss.nats, loss.tokens) for loss in losses])
        for corpus, losses in kept.items()
        if losses
    }


def _with_commands(
    work: Workspace,
    spec: TuningSpec,
    search: PlannedSearch,
    result: SearchResult,
    output: Path | None,
) -> SearchResult:
    """Return the result with, for each piece of advice, the command that follows it."""
    advice = []
    for item in result.advice:
        eta = result.trials[item.trial].point.eta
        # A trial of a trunk-long schedule changed the trunk's own rate, which `run` refuses to do
        # without being asked.
        insist = " --reschedule" if search.bench.is_whole and eta != search.here.eta else ""
        if output is not None:
            part = str(output / f"{item.taste}.yaml")
        elif work.store.is_local:
            part = f"{work.store.url}/{item.file}"
        else:
            part = " ".join(_overrides(item.fragment))
        advice.append(replace(item, command=f"perennial run {spec.run} {part}{insist}"))
    return replace(result, advice=tuple(advice))


def _overrides(fragment: Mapping[str, Any], section: str = "") -> list[str]:
    """Return a fragment of a run file as overrides on the command line."""
    words = []
    for key, value in fragment.items():
        name = f"{section}{key}"
        words += _overrides(value, f"{name}.") if isinstance(value, dict) else [f"{name}={value}"]
    return words


def _files(result: SearchResult, picture: bytes) -> dict[str, bytes]:
    return {
        "result.json": json.dumps(result.to_dict(), indent=1).encode(),
        "pareto.png": picture,
        **{
            f"{item.taste}.yaml": yaml.safe_dump(item.fragment, sort_keys=False).encode()
            for item in result.advice
        },
    }


def _track(work: Workspace, result: SearchResult, files: Mapping[str, bytes]) -> None:
    """Log the search and its trials to MLflow, the trials as children of the search's run."""
    params = {
        "corpus": result.corpus,
        "after": result.after,
        "source": result.source,
        "objectives": list(result.objectives),
    }
    tracker = mlflow_of(work).tracker(work)
    parent = tracker.child(f"tune-{result.search}", params=params)
    for name, data in files.items():
        parent.artifact(data, name)
    parent.log(0, {f"cost/{name}": float(value) for name, value in vars(result.cost).items()})
    parent.finish()
    for trial in result.trials:
        name = f"tune-{result.search}/{trial.name}"
        run = tracker.child(name, params=point_dict(trial.point), parent=parent)
        run.log_rows(stored_rows(work.store, trial.folder, work.spec.tokens_per_step))
        run.log(result.step + trial.steps, _values(result, trial))
        run.tag("front", str(trial.on_front))
        run.finish()


def _values(result: SearchResult, trial: SearchTrial) -> dict[str, float]:
    return dict(zip(result.objectives, trial.values, strict=True))
