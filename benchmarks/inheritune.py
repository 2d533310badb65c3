"""Inheritune's claims over seeds: fewer layers inherited beside as many random ones, to parity.

    python benchmarks/inheritune.py --seeds 0 1 2 > build/inheritune.md

For every seed the reference is trained on the quickstart's English by `pipelines/inheritune.yaml`,
in a store of its own. Children of half of its layers, and of two more while they are above it, are
trained as it was (`tuning/inheritune.yaml`) and on a tenth of its text
(`tuning/inheritune-little-data.yaml`). In the first seed the second search is killed with
everything that it started while it trains, and repeated. What is printed are the claims below with
their verdicts, and the results in the stores. May be killed and repeated: what is there already is
not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]

from perennial.config.study import ClaimSpec, PaperSpec  # noqa: E402
from perennial.evaluation.statistics import estimate  # noqa: E402
from perennial.study.results import judge_claim  # noqa: E402

RUN = ROOT / "pipelines/inheritune.yaml"
RECIPES = {
    "whole": ROOT / "tuning/inheritune.yaml",
    "little": ROOT / "tuning/inheritune-little-data.yaml",
}
HALF = 4
SIZES = (f"inheritune.first={HALF}", "inheritune.step=2")
"""the paper's, in place of the tuning files': half of the reference's 8 layers, then two more"""
BUILD = ROOT / "build/inheritune"
TEXT = ROOT / "build/quickstart/text"
REFERENCE = "reference"

CLAIMS = (
    ClaimSpec(
        says="Half of the layers, inherited, end no higher than half of them from random weights",
        arm=f"whole/inherited-{HALF}",
        against=f"whole/random-{HALF}",
        at_most=0,
        paper=PaperSpec(
            number="2.64 and 2.70, 24 of 48 layers", source="arXiv 2404.08634, logs of GPT-2 xlarge"
        ),
    ),
    ClaimSpec(
        says="Half of the layers, inherited and trained as the reference was, keep its loss",
        arm=f"whole/inherited-{HALF}",
        against=REFERENCE,
        at_most=0,
        paper=PaperSpec(
            number="2.64 and 2.66, 24 of 48 layers", source="arXiv 2404.08634, logs of GPT-2 xlarge"
        ),
    ),
    ClaimSpec(
        says="Depth buys something here: half of the layers from random weights lose to the "
        "reference; else the claim before is no finding about inheriting",
        arm=f"whole/random-{HALF}",
        against=REFERENCE,
        at_least=0,
        paper=PaperSpec(
            number="2.70 and 2.66, 24 of 48 layers", source="arXiv 2404.08634, logs of GPT-2 xlarge"
        ),
    ),
    ClaimSpec(
        says="On a tenth of the text half of the layers, inherited, end no higher than random",
        arm=f"little/inherited-{HALF}",
        against=f"little/random-{HALF}",
        at_most=0,
    ),
    ClaimSpec(
        says="On a tenth of the text they end within 0.05 of the reference",
        arm=f"little/inherited-{HALF}",
        against=REFERENCE,
        at_most=0.05,
    ),
    ClaimSpec(
        says="On a tenth of the text the search ends at parity, below the reference's layers",
        arm="little/last",
        against=REFERENCE,
        at_most=0,
    ),
)
"""written down before the first of the three seeds; one of another seed, from one layer on, had
been seen: benchmarks/results/inheritune.md"""


@dataclass(frozen=True)
class Seed:
    """One seed of the reference: its run file and store lie in a folder of their own."""

    number: int

    @property
    def folder(self) -> Path:
        return BUILD / f"seed-{self.number}"

    @property
    def run(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def killed(self) -> Path:
        """Return the file of what the second search had measured when it was killed."""
        return self.folder / "killed.json"

    def tune(self, recipe: str) -> list[str]:
        """Return the words of the command that searches by a recipe."""
        return ["tune", str(RECIPES[recipe]), f"run={self.run}", *SIZES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    seeds = [Seed(number) for number in parser.parse_args().seeds]
    load = os.getloadavg()[0]
    searches: dict[str, dict[int, Any]] = {recipe: {} for recipe in RECIPES}
    findings = 0
    for seed in seeds:
        train_reference(seed)
        searches["whole"][seed.number] = json.loads(perennial(*seed.tune("whole"), "--json"))
        if seed is seeds[0] and not seed.killed.exists():
            kill_search(seed)
        searches["little"][seed.number] = json.loads(perennial(*seed.tune("little"), "--json"))
        findings += len(json.loads(perennial("verify", seed.run, "--json"))["findings"])
        log(f"seed {seed.number} is done")
    report(seeds, searches, load)
    report_kill(seeds[0], findings)


def log(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def perennial(*words: object) -> str:
    """Run a command of the product and return what it printed; ends the benchmark if it fails."""
    log(f"perennial {' '.join(map(str, words))}")
    done = subprocess.run(command(*words), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"perennial {words[0]} failed")
    return done.stdout


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "perennial.cli", *map(str, words)]


def train_reference(seed: Seed) -> None:
    import yaml

    from perennial.sources.sample_text import fetch_text

    files = fetch_text(TEXT, log)
    seed.folder.mkdir(parents=True, exist_ok=True)
    run = {"base": os.path.relpath(RUN, seed.folder), "store": "store", "seed": seed.number}
    seed.run.write_text(yaml.safe_dump(run))
    perennial("land", seed.run, files[0].stem, files[0])
    perennial("run", seed.run)


def kill_search(seed: Seed) -> None:
    """Kill the second search in its second trial, and keep what it had measured."""
    import psutil

    from tests.support.ray_nodes import kill_tree

    with subprocess.Popen(command(*seed.tune("little")), cwd=ROOT, stdout=sys.stderr) as search:
        while not measured(seed) or not trains():
            if search.poll() is not None:
                raise SystemExit("the search ended before it could be killed")
            time.sleep(1)
        kill_tree(psutil.Process(search.pid))
    seed.killed.write_text(json.dumps(measured(seed)))
    log(f"killed with {len(measured(seed))} measured")


def measured(seed: Seed) -> dict[str, list[Any]]:
    """Return the measurements of the second search by trial."""
    from perennial.config import load_run
    from perennial.runs.ledger import Ledger
    from perennial.store import open_store

    trials = Ledger(open_store(load_run(seed.run).store)).read().searches.trials
    return {
        name: [tried.model_dump(mode="json") for tried in trial.tried]
        for name, trial in trials.items()
        if trial.tried and name.startswith(f"tune-{RECIPES['little'].stem}-")
    }


def trains() -> bool:
    """Return whether a worker of a trial is at work."""
    import psutil

    started = psutil.Process().children(recursive=True)
    titles = (process.as_dict(["cmdline"])["cmdline"] or [""] for process in started)
    return any(title[0].startswith("ray::RayTrain") for title in titles)


def losses(searches: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, float]]:
    """Return held-out losses by model and seed."""
    by_model: dict[str, dict[int, float]] = {}
    for recipe, by_seed in searches.items():
        for seed, search in by_seed.items():
            by_model.setdefault(REFERENCE, {})[seed] = search["reference"]["loss"]
            for child in search["children"]:
                names = [f"{recipe}/{child['init']}-{child['layers']}"]
                # Children come in the order of the search, so the last to write is the largest.
                names += [f"{recipe}/last"] if child["init"] == "inherited" else []
                for name in names:
                    by_model.setdefault(name, {})[seed] = child["loss"]
    return by_model


def report(seeds: list[Seed], searches: Mapping[str, Mapping[int, Any]], load: float) -> None:
    numbers = " ".join(str(seed.number) for seed in seeds)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "ray"))
    reference = searches["whole"][seeds[0].number]["reference"]
    print("# Inheritune over seeds\n")
    print(f"`python benchmarks/inheritune.py --seeds {numbers}`  ")
    print(f"{libraries}; {os.cpu_count()} cores, no GPU; load {load:.1f} at the start\n")
    print(
        "Inheritune (arXiv 2404.08634) claims that a model which begins with the first half of "
        "a trained model's layers\nand is trained as that one was keeps its loss, that one as "
        "small from random weights does not, and that little\ntext is enough. "
        f"Here a GPT-NeoX of {reference['layers']} layers is trained on "
        f"{reference['tokens']:,} tokens of the quickstart's English. A\nchild begins with its "
        "embeddings, first n layers, final norm and head; n starts at half, and grows by two "
        "while\nthe child's held-out loss is above the reference's. A seed is one of the "
        "weights, the order and the held-out\ndocuments. Losses are in nats a token, the mean "
        "over seeds with its 95% interval; differences are taken seed by\nseed.\n"
    )
    print("## Claims, written down before the results\n")
    by_model = losses(searches)
    report_claims(by_model)
    titles = {"whole": "Trained as the reference was", "little": "On a tenth of its text, twice"}
    for recipe, by_seed in searches.items():
        print(f"\n## {titles[recipe]}\n")
        report_recipe(recipe, by_seed, by_model)


def report_claims(by_model: Mapping[str, Mapping[int, float]]) -> None:
    print("| # | claim | measure | here | holds if | in the paper | verdict |")
    print("| ---: | --- | --- | ---: | --- | --- | --- |")
    for number, claim in enumerate(CLAIMS, 1):
        judged = judge_claim(claim, lambda name, _measure: by_model.get(name, {}))
        value = "-" if judged.measured is None else judged.measured.text(signed=True)
        low, high = claim.at_least, claim.at_most
        bound = f"at most {high:g}" if low is None else f"at least {low:g}"
        paper = "-" if claim.paper is None else f"{claim.paper.number} ({claim.paper.source})"
        print(
            f"| {number} | {claim.says} | {claim.arm} - {claim.against} | {value} | {bound} | "
            f"{paper} | {judged.verdict} |"
        )


def report_recipe(
    recipe: str, by_seed: Mapping[int, Any], by_model: Mapping[str, Mapping[int, float]]
) -> None:
    """Print the table of a recipe, and the smallest children at parity."""
    print("| begins with | layers | parameters | tokens | loss | above | seeds | FLOPs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    base = by_model[REFERENCE]
    reference = next(iter(by_seed.values()))["reference"]
    print(
        f"| reference | {reference['layers']} | {reference['parameters']:,} | "
        f"{reference['tokens']:,} | {estimate(list(base.values())).text()} | | {len(base)} | "
        f"{reference['flops']:.3g} |"
    )
    for child in different(by_seed.values()):
        mine = by_model[f"{recipe}/{child['init']}-{child['layers']}"]
        above = estimate([mine[seed] - base[seed] for seed in mine])
        print(
            f"| {child['init']} | {child['layers']} | {child['parameters']:,} | "
            f"{child['tokens']:,} | {estimate(list(mine.values())).text()} | "
            f"{above.text(signed=True)} | {len(mine)} | {child['flops']:.3g} |"
        )
    at_parity = ", ".join(f"{smallest(search)} (seed {seed})" for seed, search in by_seed.items())
    shares = [search["cost"]["share"] for search in by_seed.values()]
    print(
        f"\nSmallest n at parity: {at_parity}. Compute of the search: "
        f"{estimate(shares).mean:.2f} times the reference's training."
    )


def different(searches: Iterable[Any]) -> list[Any]:
    """Return the children of all seeds, each kind once."""
    kinds = {
        (child["layers"], child["init"]): child
        for search in searches
        for child in search["children"]
    }
    return [kinds[kind] for kind in sorted(kinds)]


def smallest(search: Any) -> str:
    index = search["smallest"]
    return "none" if index is None else str(search["children"][index]["layers"])


def report_kill(seed: Seed, findings: int) -> None:
    before, after = json.loads(seed.killed.read_text()), measured(seed)
    same = "the same" if all(after[name] == its for name, its in before.items()) else "NOT the same"
    print(
        f"\nThis search was killed in seed {seed.number} (SIGKILL to it and to all that it "
        f"started) when {len(before)} of {len(after)} children were\nmeasured, and repeated: "
        f"these measurements are {same} afterwards. `perennial verify` has {findings} findings."
    )


if __name__ == "__main__":
    main()
