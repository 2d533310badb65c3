"""A real pretrained model is inherited to half its layers, trained, annealed and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perennial.store import open_store
from tests.support.cli import perennial, perennial_json
from tests.support.tiny_run import write_run, write_texts

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "build" / "smollm" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not MODEL.exists(), reason="pipelines/fetch_smollm.py has not fetched SmolLM2")
def test_a_real_model_is_inherited_trained_and_exported(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    document = yaml.safe_load((ROOT / "pipelines" / "inherit.yaml").read_text())
    document |= {"store": str(tmp_path / "store"), "tokenizer": {"path": str(MODEL)}}
    document["model"]["path"] = str(MODEL)
    document["stages"]["budget"] = "6 steps"
    document["evaluation"]["documents"] = 3
    run_file = write_run(tmp_path, document)
    perennial("land", run_file, "help", write_texts(tmp_path)["help"])
    perennial("run", run_file)
    perennial_json("release", run_file)
    store = open_store(document["store"])
    manifest = next(e.key for e in store.list("releases") if e.key.endswith("manifest.json"))
    folder = Path(store.url) / Path(manifest).parent
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.num_parameters()) == (15, 81_413_568)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, ids.shape[1] + 3)
