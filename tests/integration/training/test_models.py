"""Models that a run starts from: stored ones, and the first blocks of one (Inheritune)."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from perennial.config.training import ModelSpec
from perennial.errors import Damaged, InputError
from perennial.evaluation.evaluate import fetch
from perennial.store import Store, open_store
from perennial.training.model.config import model_config, stored_model
from perennial.training.model.inherit import inherit
from perennial.training.model.initial import (
    FOLDER,
    REFERENCE_FOLDER,
    fetch_initial,
    has_reference,
    import_model,
    read_initial,
)
from tests.support.memory_limit import run_within
from tests.support.small_models import small_model

SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 32},
    "llama": {"tie_word_embeddings": False},
    "mixtral": {"num_local_experts": 4},
    "qwen3": {"head_dim": 8, "use_sliding_window": True, "max_window_layers": 2},
}
IDS = torch.arange(24).reshape(2, 12)


def _reference(architecture: str) -> Any:
    return small_model(architecture, num_hidden_layers=4, **SPECIAL.get(architecture, {})).eval()


def _store_model(folder: Path, architecture: str = "llama") -> Any:
    model = _reference(architecture)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "mixtral", "qwen3"])
def test_an_heir_computes_what_the_reference_does_up_to_its_last_block(architecture: str) -> None:
    reference = _reference(architecture)
    heir = inherit(reference, 3).eval()
    with torch.no_grad():
        theirs = reference(IDS, output_hidden_states=True)
        ours = heir(IDS, output_hidden_states=True)
        base = reference.base_model
        norm = next(
            module
            for name, module in base.named_children()
            if name in ("norm", "ln_f", "final_layer_norm")
        )
        last = norm(theirs.hidden_states[3])
        logits = reference.get_output_embeddings()(last)
    assert len(ours.hidden_states) == 4
    for block, (mine, other) in enumerate(
        zip(ours.hidden_states[:3], theirs.hidden_states[:3], strict=True)
    ):
        assert torch.equal(mine, other), block
    assert torch.equal(ours.hidden_states[3], last)
    assert torch.equal(ours.logits, logits)


def test_an_heir_is_stored_and_loaded_with_its_own_configuration(tmp_path: Path) -> None:
    heir = inherit(_reference("qwen3"), 3)
    heir.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert (told["num_hidden_layers"], len(told["layer_types"])) == (3, 3)
    again = stored_model(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(heir.parameters(), again.parameters(), strict=True)
    )


def test_more_layers_than_the_reference_has_are_refused(tmp_path: Path) -> None:
    _store_model(tmp_path)
    spec = ModelSpec(path=str(tmp_path), inherit_layers=5)
    with pytest.raises(InputError, match="5 layers, but the reference model has 4"):
        model_config(spec, 50, 0, 16)


@pytest.mark.parametrize("layers", [None, 2])
def test_a_stored_model_is_imported_once_and_read_from_the_store(
    tmp_path: Path, layers: int | None
) -> None:
    reference = _store_model(tmp_path / "model")
    spec = ModelSpec(path=str(tmp_path / "model"), inherit_layers=layers)
    store = open_store(tmp_path / "store")
    first = import_model(store, spec, 50, 7, 16)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert import_model(store, spec, 50, 7, 16) == first
    model = _initial(store)
    assert model.config.eos_token_id == [7, 0]
    assert model.num_parameters() == first.parameters
    with torch.no_grad():
        hidden = reference(IDS, output_hidden_states=True).hidden_states[layers or 0]
        assert torch.equal(
            model.eval()(IDS, output_hidden_states=True).hidden_states[0],
            (reference.get_input_embeddings()(IDS)),
        )
        if layers:
            logits = reference.lm_head(reference.model.norm(hidden))
            assert torch.equal(model(IDS).logits, logits)


@pytest.mark.parametrize("ends", [[7, 3], 7, [3, 5], None])
def test_a_stored_models_generation_settings_stay_what_they_are(
    tmp_path: Path, ends: int | list[int] | None
) -> None:
    _store_model(tmp_path / "model")
    settings = {"temperature": 0.6, "eos_token_id": ends}
    text = json.dumps(settings)
    (tmp_path / "model" / "generation_config.json").write_text(text)
    store = open_store(tmp_path / "store")
    import_model(store, ModelSpec(path=str(tmp_path / "model")), 50, 7, 16)
    stored = store.read("models/initial/generation_config.json").decode()
    if ends in ([7, 3], 7):
        assert stored == text
    else:
        assert json.loads(stored) == settings | {"eos_token_id": [7, 3, 5] if ends else 7}


def test_a_model_in_several_files_is_copied_without_being_held(tmp_path: Path) -> None:
    """Its files are those of the folder, bit for bit, in less memory than they take."""
    model = small_model("llama", vocab_size=200_000, hidden_size=64)
    model.save_pretrained(tmp_path / "model", max_shard_size="30MB")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    del model
    run_within(40 << 20, _import_large, tmp_path)
    stored = tmp_path / "store" / "models" / "initial"
    for shard in shards:
        assert (stored / shard.name).read_bytes() == shard.read_bytes()
    again = _initial(open_store(tmp_path / "store"))
    assert again.config.eos_token_id == [7, 0]


def _import_large(folder: Path) -> None:
    spec = ModelSpec(path=str(folder / "model"))
    manifest = import_model(open_store(folder / "store"), spec, 200_000, 7, 16)
    assert manifest.parameters > 25_000_000


def test_a_model_is_cut_to_its_first_blocks_a_file_at_a_time(tmp_path: Path) -> None:
    """In less memory than the blocks that are kept take."""
    model = small_model("llama", hidden_size=512, intermediate_size=4096, num_hidden_layers=12)
    model.save_pretrained(tmp_path / "model", max_shard_size="30MB")
    del model
    run_within(120 << 20, _cut_large, tmp_path)
    whole = stored_model(tmp_path / "model").state_dict()
    heir = _initial(open_store(tmp_path / "store"))
    assert heir.config.num_hidden_layers == 8
    for name, tensor in heir.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


def _cut_large(folder: Path) -> None:
    spec = ModelSpec(path=str(folder / "model"), inherit_layers=8)
    manifest = import_model(open_store(folder / "store"), spec, 50, 7, 16)
    assert 4 * manifest.parameters > 200 << 20


def test_weights_that_are_missing_are_seen_before_any_is_copied(tmp_path: Path) -> None:
    _store_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 5}))
    store = open_store(tmp_path / "store")
    with pytest.raises(InputError, match="weights are missing or have other shapes") as refusal:
        import_model(store, ModelSpec(path=str(tmp_path / "model")), 50, 0, 16)
    assert refusal.value.code == "model-unusable"
    assert store.list() == []


def test_an_imported_model_that_was_damaged_is_noticed(tmp_path: Path) -> None:
    _store_model(tmp_path / "model")
    spec = ModelSpec(path=str(tmp_path / "model"))
    store = open_store(tmp_path / "store")
    import_model(store, spec, 50, 0, 16)
    store.write("models/initial/config.json", b"{}")
    with pytest.raises(Damaged, match=r"config\.json is damaged"):
        _initial(store)


def test_the_configuration_needs_no_weights(tmp_path: Path) -> None:
    _store_model(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    config = model_config(ModelSpec(path=str(tmp_path), inherit_layers=1), 50, 0, 16)
    assert (config.model_type, config.num_hidden_layers) == ("llama", 1)


def _break(folder: Path, what: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    told = json.loads(config.read_text())
    match what:
        case "no folder":
            for file in folder.iterdir():
                file.unlink()
        case "pickled":
            weights.rename(folder / "pytorch_model.bin")
        case "no causal model":
            config.write_text(json.dumps(told | {"model_type": "vit"}))
        case "own code":
            auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
            config.write_text(json.dumps(told | {"model_type": "mine", "auto_map": auto}))
        case "quantized":
            config.write_text(json.dumps(told | {"quantization_config": {"quant_method": "gptq"}}))


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("no folder", "there is no config.json"),
        ("pickled", "there is no model.safetensors; pickled weights are not read"),
        ("no causal model", "'vit' is not a causal language model"),
        ("own code", "'mine' is not a causal language model"),
        ("quantized", "its weights are quantized"),
    ],
)
def test_a_folder_that_cannot_be_trained_is_refused(tmp_path: Path, what: str, told: str) -> None:
    _store_model(tmp_path)
    _break(tmp_path, what)
    with pytest.raises(InputError, match=told) as refusal:
        model_config(ModelSpec(path=str(tmp_path)), 50, 0, 16)
    assert refusal.value.field == "model.path"


def test_a_model_that_does_not_fit_the_run_is_refused_with_both_numbers(tmp_path: Path) -> None:
    _store_model(tmp_path)
    spec = ModelSpec(path=str(tmp_path))
    with pytest.raises(InputError, match="a vocabulary of 50, the run's tokenizer one of 51"):
        model_config(spec, 51, 0, 16)
    with pytest.raises(InputError, match="sequences of 64 tokens are longer than the 32 positions"):
        model_config(spec, 50, 0, 64)


def test_weights_that_the_configuration_asks_for_and_the_file_lacks_are_an_error(
    tmp_path: Path,
) -> None:
    _store_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 5}))
    with pytest.raises(RuntimeError, match="weights are missing"):
        stored_model(tmp_path)


def _initial(store: Store) -> Any:
    with TemporaryDirectory() as folder:
        fetch_initial(store, Path(folder))
        return stored_model(Path(folder))


@pytest.mark.parametrize("layers", [None, 2])
def test_an_imported_model_is_read_as_any_model_is_that_is_measured(
    tmp_path: Path, store_url: str, layers: int | None
) -> None:
    """Also the whole one whose layers are inherited, which no worker needs (I8)."""
    model = _store_model(tmp_path / "model")
    store = open_store(store_url)
    spec = ModelSpec(path=str(tmp_path / "model"), inherit_layers=layers)
    imported = import_model(store, spec, 50, 7, 16)
    assert has_reference(store) == (layers is not None)
    assert import_model(store, spec, 50, 7, 16) == imported
    fetch(store, FOLDER, tmp_path / "base")
    assert len(stored_model(tmp_path / "base").base_model.layers) == (layers or 4)
    if layers is not None:
        fetch(store, REFERENCE_FOLDER, tmp_path / "whole")
        whole = stored_model(tmp_path / "whole")
        assert torch.equal(whole(IDS).logits, model(IDS).logits)
        assert read_initial(store, REFERENCE_FOLDER)[0].inherit_layers is None
