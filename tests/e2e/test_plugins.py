"""A run that uses another package for whatever can be extended, and the run without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.corpora import load_tokenizer, read_holdout, read_manifest
from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.checkpoint import manifest as checkpoint
from tests.support.cli import perennial, perennial_json, start
from tests.support.plugins import install_plugins
from tests.support.tiny_run import tiny_run, write_run

STEPS = 6
SCHEDULE = {"kind": "sawtooth", "eta_max": 3e-3, "eta_min": 3e-4, "tooth_steps": 5}


@dataclass(frozen=True)
class PluginRun:
    """Two stages that the package of plug-ins had a part in.

    environment: with which a process finds the package.
    """

    run_file: Path
    environment: dict[str, str]
    store: Store


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def plugin_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginRun]:
    folder = tmp_path_factory.mktemp("plugins")
    environment = install_plugins(folder) | {"SHARE_MOUNT": str(folder)}
    document = tiny_run(folder, "share://store")
    document["training"] |= {"workers": 1, "micro_batch": 8, "checkpoint_every": "3 steps"}
    document["training"] |= {"optimizer": {"kind": "lion", "betas": [0.9, 0.98]}}
    document["stages"] |= {"budget": f"{STEPS} steps"}
    document["schedule"] = SCHEDULE
    document["replay"] |= {"weighting": "oldest"}
    document["corpora"] |= {"steps": [{"kind": "strip-menus"}]}
    run_file = write_run(folder, document)
    for name, file in _write_fortunes(folder).items():
        perennial("land", run_file, name, file, env=environment)
    perennial("run", run_file, env=environment)
    yield PluginRun(run_file, environment, open_store(folder / "store"))


def _write_fortunes(folder: Path) -> dict[str, Path]:
    """Write two small corpora as fortune files."""
    from pydoc_data.topics import topics

    texts = [f"{text[:6000]}\nHome | News | Sport\n" for text in topics.values()]
    files = {}
    for name, part in (("first", texts[::2]), ("second", texts[1::2])):
        files[name] = folder / f"{name}.fortune"
        files[name].write_text("\n%\n".join(part))
    return files


def test_each_plugin_did_its_part(plugin_run: PluginRun) -> None:
    state = Ledger(plugin_run.store).read()
    first, second = state.stages
    assert first.schedule == second.schedule == SCHEDULE
    counts = {source.corpus: source.sequences for source in second.mix.sources}
    assert counts == {"second": 6 * STEPS, "first": 2 * STEPS}
    assert second.mix.replay.weighting == "oldest"
    end = checkpoint.read_manifest(plugin_run.store, state.ends[second.name])
    assert end.optimizer == "lion"
    folder = checkpoint.place_of(state.ends[second.name], end.attempt)
    rows = plugin_run.store.read(f"{folder}/metrics.jsonl")
    norms = [json.loads(row)["weight_norm"] for row in rows.splitlines()]
    assert len(norms) == STEPS
    assert len(set(norms)) == STEPS, "the weights move at every step"
    verification = _json("verify", plugin_run)
    assert (verification["holds"], verification["findings"]) == (True, [])


def test_the_step_changed_what_was_trained(plugin_run: PluginRun) -> None:
    manifest = read_manifest(plugin_run.store, "first")
    assert list(manifest.step_cpu_seconds) == ["1 strip-menus"]
    (step,) = manifest.settings.steps
    assert step["code"] == "perennial_extras.menus:StripMenusConfig 1"
    tokenizer = load_tokenizer(plugin_run.store).build()
    held_out = [
        tokenizer.decode(d.tokens.tolist()) for d in read_holdout(plugin_run.store, manifest)
    ]
    assert held_out
    assert not any("News | Sport" in text for text in held_out)


def test_the_report_draws_the_metric(plugin_run: PluginRun, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ("report", plugin_run.run_file, "--output", page)
    perennial(*words, env=plugin_run.environment)
    assert "Weight norm" in page.read_text()


def test_without_the_package_its_url_is_refused(plugin_run: PluginRun) -> None:
    message = perennial("status", "share://store", code=2)
    assert "name a folder or a url of gs://, s3://" in message
    assert "tiny" in perennial("status", "share://store", env=plugin_run.environment)


def test_without_the_package_its_run_file_is_refused(plugin_run: PluginRun) -> None:
    message = perennial("status", plugin_run.run_file, code=2)
    assert "'strip-menus' is refused" in message, "the first of them in the file's order"
    assert "install the package that brings it" in message


def test_without_the_package_the_store_is_read(plugin_run: PluginRun, tmp_path: Path) -> None:
    document = yaml.safe_load(plugin_run.run_file.read_text())
    del document["training"]["optimizer"], document["corpora"]["steps"]
    plain = tiny_run(tmp_path)
    document["store"] = plugin_run.store.url
    run_file = write_run(tmp_path, document | {k: plain[k] for k in ("schedule", "replay")})
    status = perennial_json("status", run_file)
    assert status["corpora"] == {"first": "passed", "second": "passed"}
    process = start("verify", run_file, "--json")
    findings = [str(finding) for finding in json.loads(process.communicate()[0])["findings"]]
    assert process.returncode == 1
    named = [("sawtooth" in text, "oldest" in text) for text in findings]
    assert set(named) == {(True, False), (False, True)}, "only what needs a plug-in is unproved"
    page = tmp_path / "page.html"
    perennial("report", run_file, "--output", page)
    assert "01-second" in page.read_text()
    assert "Weight norm" not in page.read_text()


def _json(verb: str, run: PluginRun) -> Any:
    return perennial_json(verb, run.run_file, env=run.environment)
