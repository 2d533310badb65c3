"""The fewest first layers that keep a model's loss, by both recipes of Inheritune.

The reference is trained on the quickstart's English by `pipelines/inheritune.yaml`. Children are
trained as it was (`tuning/inheritune.yaml`), and on a tenth of its text
(`tuning/inheritune-little-data.yaml`). The second search is killed with everything that it started
while its second size trains, repeated to its end, and the run verified. What is printed are the
results in the store, and what the kill left. What is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT)]
RUN = ROOT / "pipelines/inheritune.yaml"
WHOLE, LITTLE = ROOT / "tuning/inheritune.yaml", ROOT / "tuning/inheritune-little-data.yaml"
TEXT = ROOT / "build/quickstart/text"
KILL_AFTER = 2
"""trials that are measured when the search is killed: the first size, inherited and random"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    load = os.getloadavg()[0]
    train_reference()
    whole = json.loads(perennial("tune", WHOLE, "--json"))
    before = kill_search()
    little = json.loads(perennial("tune", LITTLE, "--json"))
    after = measured()
    findings = json.loads(perennial("verify", RUN, "--json"))["findings"]
    libraries = ("torch", "deepspeed", "ray")
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    reference = whole["reference"]
    print("# Inheritune to parity\n")
    print("`python benchmarks/inheritune.py`  ")
    print(f"{versions}; {os.cpu_count()} cores, no GPU; load {load:.1f} at the start\n")
    print(
        f"A GPT-NeoX of {reference['layers']} layers is trained on {reference['tokens']:,} tokens "
        "of the quickstart's English.\nA child begins with its embeddings, first n layers, final "
        "norm and head. While its held-out loss is above the\nreference's, n grows. `above` is in "
        "nats a token, with the 95% interval of a bootstrap over documents.\n"
    )
    print("## Trained as the reference was\n")
    report(whole)
    print("\n## On a tenth of the reference's text, twice\n")
    report(little)
    same = "the same" if all(after[name] == its for name, its in before.items()) else "NOT the same"
    print(
        f"\nThis search was killed (SIGKILL to it and to all that it started) when {len(before)} "
        f"of {len(little['children'])} children were\nmeasured, and repeated: these measurements "
        f"are {same} afterwards. `perennial verify` has {len(findings)} findings."
    )


def perennial(*words: object) -> str:
    """Run a command of the product and return what it printed; ends the benchmark if it fails."""
    done = subprocess.run(command(*words), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"perennial {words[0]} failed")
    return done.stdout


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "perennial.cli", *map(str, words)]


def train_reference() -> None:
    from perennial.sources.sample_text import fetch_text

    files = fetch_text(TEXT, lambda line: print(line, file=sys.stderr))
    perennial("land", RUN, files[0].stem, files[0])
    perennial("run", RUN)


def kill_search() -> dict[str, Any]:
    """Return what the second search had measured when it was killed, in its next size."""
    import psutil

    from tests.support.ray_nodes import kill_tree

    with subprocess.Popen(command("tune", LITTLE), cwd=ROOT, stdout=sys.stderr) as search:
        while len(measured()) < KILL_AFTER or not trains():
            if search.poll() is not None:
                raise SystemExit("the search ended before it could be killed")
            time.sleep(1)
        kill_tree(psutil.Process(search.pid))
    return measured()


def measured() -> dict[str, Any]:
    from perennial.config import load_run
    from perennial.runs.ledger import Ledger
    from perennial.store import open_store

    trials = Ledger(open_store(load_run(RUN).store)).read().searches.trials
    return {
        name: trial.tried
        for name, trial in trials.items()
        if trial.tried and name.startswith(f"tune-{LITTLE.stem}-")
    }


def trains() -> bool:
    """Return whether a worker of a trial is at work."""
    import psutil

    started = psutil.Process().children(recursive=True)
    titles = (process.as_dict(["cmdline"])["cmdline"] or [""] for process in started)
    return any(title[0].startswith("ray::RayTrain") for title in titles)


def report(found: dict[str, Any]) -> None:
    """Print the table of a result."""
    reference, cost = found["reference"], found["cost"]
    print("| begins with | layers | parameters | tokens | loss | above | FLOPs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| reference | {reference['layers']} | {reference['parameters']:,} | "
        f"{reference['tokens']:,} | {reference['loss']:.3f} | | {reference['flops']:.3g} |"
    )
    for child in found["children"]:
        print(
            f"| {child['init']} | {child['layers']} | {child['parameters']:,} | "
            f"{child['tokens']:,} | {child['loss']:.3f} | {child['above']:+.3f} "
            f"({child['low']:+.3f} to {child['high']:+.3f}) | {child['flops']:.3g} |"
        )
    smallest = found["smallest"]
    parity = "no child" if smallest is None else f"{found['children'][smallest]['layers']} layers"
    print(
        f"\nSmallest n at parity: {parity}. Compute of the search: "
        f"{cost['trained_tokens']:,} "
        f"tokens, {cost['flops']:.3g} FLOPs, {cost['share']:.2f} times the reference's training; "
        f"{cost['random_flops']:.3g} of them for random weights."
    )


if __name__ == "__main__":
    main()
