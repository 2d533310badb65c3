"""Text, images, text: one trunk, drawn samples, and a machine that lacks the code that draws."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from perennial.evaluation.kept_samples import read_samples
from perennial.evaluation.samples import PNG, Sample
from perennial.runs.ledger import Ledger
from perennial.store import open_store
from tests.support.cli import SOURCE, perennial, perennial_json
from tests.support.id_files import lines
from tests.support.tiny_run import tiny_run, write_run, write_texts

EXAMPLES = SOURCE.parent / "examples"
SIDE = 8
IMAGES = [
    [
        16 if column in (bar, 7 - bar) or row == (bar + ink) % 8 else ink
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    for bar in range(4)
    for ink in range(16)
] * 4


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_one_trunk_trains_text_and_images_and_its_samples_are_pictures(tmp_path: Path) -> None:
    # Each command starts a cluster of its own: only the first one's workers find the code.
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "PYTHONPATH": str(SOURCE)}
    drawing = {**env, "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, EXAMPLES)))}
    document = tiny_run(tmp_path)
    document["training"] |= {"workers": 1, "micro_batch": 8}
    document["stages"] |= {"corpora": {"digits": {"extend_tokenizer": {"ids": 17}}}}
    document["corpora"] |= {"read": {"digits*": {"tokens": {"brought_by": "digits"}}}}
    document["evaluation"] |= {"render": {"digits": {"function": "digits:draw"}}}
    run_file = write_run(tmp_path, document)
    texts = write_texts(tmp_path)
    (tmp_path / "digits.jsonl").write_bytes(lines(IMAGES))
    perennial("land", run_file, "help", texts["help"], env=env)
    perennial("land", run_file, "digits", tmp_path / "digits.jsonl", env=env)
    perennial("run", run_file, env=drawing)
    # The rest on a machine without the code.
    perennial("land", run_file, "code", texts["code"], env=env)
    perennial("run", run_file, env=env)
    perennial("evaluate", run_file, env=env)
    _check_losses(perennial_json("run", run_file, env=env))
    store = open_store(document["store"])
    state = Ledger(store).read()
    drawn, undrawn = (
        _of_digits(read_samples(store, state.stage_samples[name]))
        for name in ("01-digits", "02-code")
    )
    for sample in drawn:
        assert sample.rendering is not None
        assert base64.b64decode(sample.rendering.png).startswith(PNG)
        assert sample.rendering.by.startswith("digits:draw sha256 ")
        assert len(sample.prompt.split()) == SIDE * SIDE // 2
    _check_mlflow(env["MLFLOW_TRACKING_URI"], drawn, tmp_path)
    missing = "digits:draw: ModuleNotFoundError"
    assert [s.rendering and s.rendering.by for s in undrawn] == ["digits:draw"] * 2
    assert missing in perennial("status", run_file, env=env)
    assert missing in perennial_json("status", run_file, env=env)["undrawn"]["digits"]
    perennial("report", run_file, env=env)
    page = store.read("report/report.html").decode()
    assert f"data:image/png;base64,{drawn[0].rendering and drawn[0].rendering.png}" in page
    assert "drawn by digits:draw sha256 " in page
    assert missing in page
    released = perennial_json("release", run_file, env=env)
    _check_release(Path(document["store"], released["folder"]))
    proof = perennial_json("verify", run_file, env=env)
    assert (proof["holds"], proof["findings"]) == (True, [])


def _of_digits(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.corpus == "digits"]


def _check_mlflow(uri: str, drawn: list[Sample], folder: Path) -> None:
    """The stage's run has the pictures themselves, and the numbers as text."""
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name != 'Default'")
    runs = client.search_runs([experiment.experiment_id])
    (run_id,) = (run.info.run_id for run in runs if run.info.run_name == "01-digits")
    # The artifacts of a database in a file lie beside it.
    (kept,) = folder.rglob(f"{run_id}/artifacts")
    assert (kept / "samples.txt").is_file()
    for number, sample in enumerate(drawn, start=1):
        assert sample.rendering is not None
        picture = (kept / f"sample-{number}-digits.png").read_bytes()
        assert picture == base64.b64decode(sample.rendering.png)


def _check_losses(done: Any) -> None:
    """Each stage is measured on all corpora, in nats per token of the corpus's own vocabulary."""
    first, second, third = (stage["losses"] for stage in done["matrix"]["stages"])
    assert {"help", "digits"} <= set(first) and set(third) == {"help", "digits", "code"}
    counted = [losses["digits"]["tokens"] for losses in (first, second, third)]
    assert counted == [counted[0]] * 3 and counted[0] % (SIDE * SIDE + 1) == 0
    # A model without the entries reads their spelling, which is many tokens long.
    before, after = first["digits"]["nats_per_token"], second["digits"]["nats_per_token"]
    assert after < before / 2
    assert second["digits"]["bits_per_byte"] is None and second["help"]["bits_per_byte"] > 0


def _check_release(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == 317
    assert tokenizer("<|digits:3|><|digits:16|>")["input_ids"] == [303, 316]
