"""Which of a checkpoint's files a worker reads, and which it asks for first."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.errors import Damaged
from perennial.store import open_store
from perennial.training.checkpoint import manifest as checkpoints
from perennial.training.checkpoint.peer_copy import divide
from perennial.training.checkpoint.reader import _read_sound, nearest_first
from perennial.training.model.shards import INDEX, file_names

SIZES = st.integers(1, 40)


@given(SIZES, SIZES, st.data())
def test_every_part_once_and_those_that_overlap_the_share_first(
    parts: int, world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    order = nearest_first(parts, rank, world_size)
    assert sorted(order) == list(range(parts))
    overlapping = {
        part
        for part in range(parts)
        if part * world_size < (rank + 1) * parts and rank * parts < (part + 1) * world_size
    }
    assert set(order[: len(overlapping)]) == overlapping


@given(SIZES, st.data())
def test_a_group_of_the_same_size_asks_for_its_own_file_first(
    world_size: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    assert nearest_first(world_size, rank, world_size)[0] == rank


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 1000)), SIZES)
def test_nodes_divide_files_among_them(sizes: dict[str, int], nodes: int) -> None:
    shares = divide(sizes, nodes)
    assert len(shares) == nodes
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


@pytest.mark.parametrize("missing", [*file_names(2), INDEX])
def test_i10_a_manifest_that_lists_not_all_files_of_a_model_is_damaged(
    tmp_path: Path, missing: str
) -> None:
    """Such a manifest is not what was committed: absent is not read as smaller."""
    store, key = open_store(tmp_path / "store"), "checkpoints/00-text/00000040"
    source = tmp_path / "source"
    source.mkdir()
    for name in (*file_names(2), INDEX, "config.json"):
        (source / name).write_text(name)
    files = checkpoints.upload(store, checkpoints.place_of(key, "a"), sorted(source.iterdir()))
    checkpoints.commit(store, key, _manifest(files))
    assert _read_sound(store, key).files == files

    later = "checkpoints/00-text/00000050"
    checkpoints.upload(store, checkpoints.place_of(later, "a"), sorted(source.iterdir()))
    del files[missing]
    checkpoints.commit(store, later, _manifest(files))
    with pytest.raises(Damaged, match=f"{later}/manifest.json does not list {missing}"):
        _read_sound(store, later)


def _manifest(files: dict[str, checkpoints.FileEntry]) -> checkpoints.CheckpointManifest:
    return checkpoints.CheckpointManifest(
        name="00-text",
        step=40,
        phase="constant",
        eta=1e-3,
        schedule={},
        mix={},
        mix_step=40,
        tokens_seen={},
        optimizer_steps=40,
        world_size=2,
        code_version="0",
        tracking_run="",
        attempt="a",
        files=files,
    )
