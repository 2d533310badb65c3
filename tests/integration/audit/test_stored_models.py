"""The stored models that a trunk starts from are verified in a folder and in a bucket (I8, I11)."""

from __future__ import annotations

from pathlib import Path

import pytest

from perennial.audit.verify import verify
from perennial.config.training import ModelSpec
from perennial.runs.events import Imported, Opened
from perennial.runs.ledger import Ledger
from perennial.store import Store, open_store
from perennial.training.model.initial import FOLDER, REFERENCE_FOLDER, import_model, read_initial
from tests.support.event_factory import AT
from tests.support.small_models import small_model
from tests.support.tiny_run import tiny_run


@pytest.fixture
def store(store_url: str, tmp_path: Path) -> Store:
    """A run that has imported one layer of a model, and the whole of it."""
    small_model("llama").save_pretrained(tmp_path / "model")
    store, path = open_store(store_url), str(tmp_path / "model")
    import_model(store, ModelSpec(path=path, inherit_layers=1), 50, 0, 16)
    ledger = Ledger(store)
    ledger.append(Opened(at=AT, spec=tiny_run(tmp_path)))
    for name, folder in (("base", FOLDER), ("reference", REFERENCE_FOLDER)):
        manifest, sha256 = read_initial(store, folder)
        ledger.append(
            Imported.model_validate(
                manifest.model_dump(include={"path", "inherit_layers", "parameters"})
                | {"at": AT, "name": name, "folder": folder, "manifest": sha256}
            )
        )
    return store


def _found(store: Store) -> list[str]:
    return [str(finding) for finding in verify(store).findings]


def test_stored_models_hold_until_a_file_of_them_does_not(store: Store) -> None:
    assert _found(store) == []
    store.write(f"{REFERENCE_FOLDER}/config.json", b"{}")
    store.remove(f"{FOLDER}/model.safetensors")
    altered, missing = sorted(_found(store), key=lambda line: "is missing" in line)
    assert altered.startswith(f"{REFERENCE_FOLDER}/config.json")
    assert missing.startswith(f"{FOLDER}/model.safetensors: is missing")


def test_the_ledger_knows_the_manifest_of_its_base(store: Store) -> None:
    manifest = f"{FOLDER}/manifest.json"
    store.write(manifest, store.read(manifest) + b"\n")
    (found,) = _found(store)
    assert found.startswith(f"{manifest}: sha256")
    store.remove(manifest)
    (found,) = _found(store)
    assert found.startswith(f"{manifest}: is missing")
