"""The Inheritune search of `perennial tune`: plan it, train its children until one is at parity."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from perennial.config.search import Child, InherituneSpec, TuningSpec
from perennial.controller.evaluate_stage import is_kept, measure
from perennial.controller.ray_cluster import check_concurrent
from perennial.errors import InputError
from perennial.evaluation.cache import kept_losses
from perennial.runs.metrics import stored_rows
from perennial.runs.state import RunState, Stage
from perennial.search.begin import claim_search
from perennial.search.children import ChildBench, children_of, next_layers
from perennial.search.layer_results import (
    ChildResult,
    LayerCost,
    LayerSearchResult,
    ReferenceResult,
)
from perennial.search.results import result_key
from perennial.telemetry.mlflow_observer import mlflow_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from perennial.controller.context import Workspace
    from perennial.training.cost_model import ModelSize

    Array = npt.NDArray[np.float64]

Values = Mapping[Child, tuple[float, float]]
"""loss of each child, and what it is above the reference's"""


@dataclass(frozen=True)
class LayerSearchPlan:
    """The children that a search would train.

    Attributes:
        spec: the tuning file.
        source: key of the reference's checkpoint.
        layers: of the reference.
        children: layers and parameters of each size that is tried, until one is at parity.
        steps: optimizer steps of each.
        most_tokens: that the search trains where none is at parity.
    """

    spec: TuningSpec
    source: str
    layers: int
    children: tuple[tuple[int, int], ...]
    steps: int
    most_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready form."""
        sizes = [{"layers": layers, "parameters": count} for layers, count in self.children]
        spec = self.spec.model_dump(mode="json")
        return {**vars(self), "spec": spec, "children": sizes}


@dataclass(frozen=True)
class _Planned:
    """A search that can begin.

    sizes: layers of the children in the order in which they are tried.
    costs: parameters and FLOPs of a model by its layers, the reference's too.
    """

    bench: ChildBench
    spec: TuningSpec
    inheritune: InherituneSpec
    sizes: list[int]
    costs: Mapping[int, ModelSize]

    def children(self, layers: int) -> list[Child]:
        return children_of(self.inheritune, layers, self.sizes[0])

    def steps(self) -> int:
        return self.bench.steps_of(self.children(self.sizes[0])[0])

    def flops(self, layers: int, steps: int) -> int:
        from perennial.training.cost_model import flops_per_token

        spec = self.bench.spec
        per_token = flops_per_token(self.costs[layers], spec.corpora.sequence_length)
        return per_token * steps * spec.tokens_per_step


def plan_layer_search(work: Workspace, where: str, spec: TuningSpec) -> LayerSearchPlan:
    """Return the children of a tuning file; trains and writes nothing.

    Args:
        work: the run.
        where: the tuning file, for errors.
        spec: its contents, with the section `inheritune`.

    Raises:
        InputError: the trunk has no finished stage, the reference is not the end of its first one,
            the model cannot be cut, or the trials could train more than the run file allows.
    """
    search = _plan(work, where, spec)
    return LayerSearchPlan(
        spec,
        search.bench.source,
        search.bench.depth,
        tuple((layers, search.costs[layers].parameters) for layers in search.sizes),
        search.steps(),
        _most_tokens(search),
    )


def layer_search(
    work: Workspace,
    where: str,
    spec: TuningSpec,
    draw: Callable[[LayerSearchResult], bytes],
    output: Path | None,
) -> LayerSearchResult:
    """Train children until one is at parity, and keep the result; nothing is trained again.

    Args:
        work: the run, followed by MLflow.
        where: the tuning file, for errors.
        spec: its contents, with the section `inheritune`.
        draw: returns the picture of the result as PNG.
        output: a local folder for the files of the result as well; None: none.

    Raises:
        InputError: as for `plan_layer_search`.
        TrialFailed: a trial failed for the last time; the finished ones are kept.
        Superseded: another process began with the same search.
    """
    search = _plan(work, where, spec)
    work.use_ray()
    search = _begin(work, search)
    bench, steps = search.bench, search.steps()
    work.log(
        f"search {spec.name}: children of {bench.source} ({bench.depth} layers, held-out loss "
        f"{bench.reference_loss:.3f}), {steps:,} steps each, from {search.sizes[0]} layers on"
    )
    values = _run(work, search, steps)
    work.ledger.read()
    result = _summarize(work, search, values)
    files = {
        "result.json": json.dumps(result.to_dict(), indent=1).encode(),
        "layers.png": draw(result),
    }
    if result.fragment is not None:
        files["child.yaml"] = _yaml(result.fragment)
    for name, data in files.items():
        work.store.write(result_key(spec.name, name), data)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / name).write_bytes(data)
    _track(work, result, files)
    return _with_command(work, search, result, output)


def _plan(work: Workspace, where: str, spec: TuningSpec) -> _Planned:
    from perennial.training.model.child import child_sizes, read_config

    asked = spec.inheritune
    assert asked is not None
    origin = _origin(work.state, where, spec)
    check_concurrent(where, work.spec.training, spec.concurrent)
    config = read_config(work.store, origin.ends[origin.stages[0].name])
    depth = config.num_hidden_layers
    sizes = _sizes(where, asked, depth)
    try:
        counted = child_sizes(config, [*sizes, depth])
    except InputError as uncuttable:
        raise InputError(
            where,
            "run",
            f"no children can be cut from its model: {uncuttable.problem}",
            "search another run's model",
            code="children-uncuttable",
        ) from None
    bench = ChildBench(
        where=where,
        search=spec.name,
        spec=work.spec,
        origin=origin,
        depth=depth,
        layers=(sizes[0], asked.step),
        manifests={},
    )
    costs = dict(zip([*sizes, depth], counted, strict=True))
    search = _Planned(bench, spec, asked, sizes, costs)
    bench.branched(search.children(sizes[0])[0])  # whatever else cannot be is known now
    _check_tokens(search)
    return search


def _origin(state: RunState, where: str, spec: TuningSpec) -> RunState:
    """Return the run as it was at the end of its first stage, which trained the reference."""
    done = [stage for stage in state.stages if stage.name in state.ends]
    if not done:
        raise InputError(
            where, "run", "the trunk has no finished stage", "train the reference: `perennial run`",
            code="nothing-trained",
        )  # fmt: skip
    first: Stage = done[0]
    if spec.after not in (None, first.name):
        raise InputError(
            where,
            "after",
            f"children are trained as their reference was from its first step on, and "
            f"{spec.after!r} is not the whole first stage of the trunk",
            f"give {first.name}, or leave it out",
            code="reference-not-first",
        )
    ends = {first.name: state.ends[first.name]}
    return replace(state, stages=[first], ends=ends, abandoned=[])


def _sizes(where: str, asked: InherituneSpec, depth: int) -> list[int]:
    first = asked.first or max(1, depth // 2)
    last = asked.last or depth - 1
    if not first <= last < depth:
        name = "first" if first >= depth or asked.last is None else "last"
        raise InputError(
            where,
            f"inheritune.{name}",
            f"children of {first} to {last} layers, but the reference has {depth}",
            f"give fewer than {depth}",
            code="children-too-large",
        )
    return list(range(first, last + 1, asked.step))


def _most_tokens(search: _Planned) -> int:
    trials = len(search.sizes) * len(search.children(search.sizes[0])) * search.spec.seeds
    return trials * search.steps() * search.bench.spec.tokens_per_step


def _check_tokens(search: _Planned) -> None:
    """Refuse a search whose trials could train more than the run file allows."""
    run = search.bench.spec
    most, tokens = run.limits.search_tokens, _most_tokens(search)
    steps = search.bench.reference.mix.steps
    if most is not None and tokens > most.steps(steps, run.tokens_per_step) * run.tokens_per_step:
        raise InputError(
            search.bench.where,
            "inheritune",
            f"the trials may train {tokens:,} tokens, more than {most}, the run file's "
            "limits.search_tokens",
            "try fewer sizes (inheritune.last), or leave out the random ones; or raise the limit",
            code="search-too-large",
        )


def _begin(work: Workspace, search: _Planned) -> _Planned:
    """Measure the reference where it was not, and claim the search."""
    bench = search.bench
    missing = [name for name in bench.measured if not is_kept(work, bench.source, name)]
    if missing:
        measure(work, bench.source, missing)
    known = [_nats_per_token(work, bench.source, name) for name in bench.measured]
    claim, fence = claim_search(work, search.spec, bench.reference.corpora[0], bench.source)
    return replace(
        search,
        bench=replace(
            bench,
            manifests=work.manifests(),
            reference_loss=fmean(known),
            claim=claim,
            fence=fence,
        ),
    )


def _nats_per_token(work: Workspace, checkpoint: str, corpus: str) -> float:
    kept = kept_losses(work.store, checkpoint, corpus) or []
    return sum(loss.nats for loss in kept) / sum(loss.tokens for loss in kept)


def _run(work: Workspace, search: _Planned, steps: int) -> Values:
    """Train the children of one size after the other, until one is at parity."""
    # Imported late: Ray Tune takes seconds to load, and planning a search does not need it.
    from perennial.search.tune_runner import Trials, try_children

    trials = Trials(search.bench, search.spec.concurrent, search.spec.seeds, work.log)
    values: dict[Child, tuple[float, float]] = {}
    tried: dict[int, float] = {}
    while (layers := next_layers(tried, search.sizes, search.inheritune.margin)) is not None:
        children = search.children(layers)
        values |= try_children(trials, children, steps)
        tried[layers] = values[children[0]][1]
    return values


def _summarize(work: Workspace, search: _Planned, values: Values) -> LayerSearchResult:
    bench, steps = search.bench, search.steps()
    length = bench.spec.tokens_per_step
    intervals = _intervals(work, search, list(values))
    children = tuple(
        ChildResult(
            name=child.name,
            layers=child.layers,
            init=child.init,
            parameters=search.costs[child.layers].parameters,
            steps=steps,
            tokens=steps * length,
            flops=search.flops(child.layers, steps),
            loss=loss,
            above=above,
            low=intervals[child][0],
            high=intervals[child][1],
            folder=f"branches/{bench.branched(child).trial}",
            checkpoints=_checkpoints(work, search, child),
        )
        for child, (loss, above) in values.items()
    )
    searched = [i for i, child in enumerate(children) if child.init != "random"]
    at_parity = [i for i in searched if children[i].above <= search.inheritune.margin]
    smallest = at_parity[0] if at_parity else None
    stage = bench.reference
    reference = ReferenceResult(
        stage=stage.name,
        source=bench.source,
        corpora=stage.corpora,
        layers=bench.depth,
        parameters=search.costs[bench.depth].parameters,
        steps=stage.mix.steps,
        tokens=stage.mix.steps * length,
        flops=search.flops(bench.depth, stage.mix.steps),
        loss=bench.reference_loss,
    )
    return LayerSearchResult(
        search=search.spec.name,
        reference=reference,
        margin=search.inheritune.margin,
        children=children,
        smallest=smallest,
        cost=_cost(search, children, reference),
        fragment=None if smallest is None else _fragment(work, children[smallest], "../.."),
    )


def _checkpoints(work: Workspace, search: _Planned, child: Child) -> tuple[str, ...]:
    bench, keys = search.bench, []
    for seed in range(search.spec.seeds):
        trial = work.state.searches.trials[bench.branched(replace(child, seed=seed)).trial]
        tried = trial.at(bench.first_step + search.steps())
        assert tried is not None
        keys.append(tried.checkpoint)
    return tuple(keys)


def _intervals(
    work: Workspace, search: _Planned, children: Sequence[Child]
) -> dict[Child, tuple[float, float]]:
    """Return the 95% interval of what each child's loss is above the reference's."""
    import numpy as np

    from perennial.search.front import resample

    corpora = search.bench.measured

    def documents(checkpoint: str) -> dict[str, Array]:
        kept = {corpus: kept_losses(work.store, checkpoint, corpus) or [] for corpus in corpora}
        # As many as the reference's: a child may have been measured under another number of them.
        return {
            corpus: np.array([(loss.nats, loss.tokens) for loss in losses[: counts[corpus]]])
            for corpus, losses in kept.items()
        }

    counts = {corpus: _count_documents(work, search, children, corpus) for corpus in corpora}

    # What is above the reference, the mean over corpora, is what forgetting is to a stage.
    samples = resample(
        [[documents(key) for key in _checkpoints(work, search, child)] for child in children],
        documents(search.bench.source),
        ("adaptation", "forgetting"),
        corpora[0],
        seed=search.spec.seed,
    )[:, :, 1]
    low, high = np.quantile(samples, (0.025, 0.975), axis=0)
    return {child: (float(low[i]), float(high[i])) for i, child in enumerate(children)}


def _count_documents(
    work: Workspace, search: _Planned, children: Sequence[Child], corpus: str
) -> int:
    """Return the documents of a corpus on which the reference and all children were measured."""
    keys = [key for child in children for key in _checkpoints(work, search, child)]
    kept = (kept_losses(work.store, key, corpus) for key in (search.bench.source, *keys))
    return min(len(losses or ()) for losses in kept)


def _cost(
    search: _Planned, children: Sequence[ChildResult], reference: ReferenceResult
) -> LayerCost:
    seeds = search.spec.seeds
    flops = seeds * sum(child.flops for child in children)
    return LayerCost(
        trained_tokens=seeds * sum(child.tokens for child in children),
        flops=flops,
        share=flops / reference.flops,
        random_flops=seeds * sum(child.flops for child in children if child.init == "random"),
    )


def _fragment(work: Workspace, child: ChildResult, store: str) -> dict[str, Any]:
    """Return the part of a run file by which a run starts from a child.

    Args:
        work: the run.
        child: the child.
        store: url of the run's store, or the way to it from the folder of the file.
    """
    from perennial.corpora import load_tokenizer
    from perennial.training.checkpoint.manifest import place_of, read_manifest

    key = child.checkpoints[0]
    manifest = read_manifest(work.store, key)
    tokenizer = load_tokenizer(work.store, manifest.tokenizer).manifest
    unused = ("architecture", "config", "init", "inherit_layers")
    return {
        "model": {
            **dict.fromkeys(unused),
            "path": f"{store}/{place_of(key, manifest.attempt)}",
        },
        "tokenizer": {
            "vocabulary": None,
            "path": f"{store}/{manifest.tokenizer}/tokenizer.json",
            "end_of_document": tokenizer.end_of_document_text,
        },
    }


def _with_command(
    work: Workspace, search: _Planned, result: LayerSearchResult, output: Path | None
) -> LayerSearchResult:
    """Return the result with the command that starts a run from the smallest child at parity."""
    if result.smallest is None:
        return result
    fragment = _fragment(work, result.children[result.smallest], work.store.url.rstrip("/"))
    if output is not None:
        (output / "child.yaml").write_bytes(_yaml(fragment))
        part = str(output / "child.yaml")
    elif work.store.is_local:
        part = f"{work.store.url}/{result.files['child.yaml']}"
    else:
        part = shlex.join(_overrides(fragment))
    command = f"perennial run {search.spec.run} {part} name=NAME store=STORE"
    return replace(result, fragment=fragment, command=command)


def _yaml(fragment: Mapping[str, Any]) -> bytes:
    return yaml.safe_dump(dict(fragment), sort_keys=False).encode()


def _overrides(fragment: Mapping[str, Any]) -> list[str]:
    return [
        f"{section}.{key}={'null' if value is None else value}"
        for section, values in fragment.items()
        for key, value in values.items()
    ]


def _track(work: Workspace, result: LayerSearchResult, files: Mapping[str, bytes]) -> None:
    """Log the search and its children to MLflow, the children under the search's run."""
    tracker = mlflow_of(work).tracker(work)
    params = {"after": result.reference.stage, "source": result.reference.source}
    parent = tracker.child(f"tune-{result.search}", params=params)
    for name, data in files.items():
        parent.artifact(data, name)
    parent.log(0, {f"cost/{name}": float(value) for name, value in vars(result.cost).items()})
    parent.log(0, {"reference/loss": result.reference.loss})
    parent.finish()
    for child in result.children:
        own = {"layers": child.layers, "init": child.init, "parameters": child.parameters}
        run = tracker.child(f"tune-{result.search}/{child.name}", params=own, parent=parent)
        run.log_rows(stored_rows(work.store, child.folder, work.spec.tokens_per_step))
        run.log(child.steps, {"loss": child.loss, "above": child.above})
        run.finish()
