"""Which rank compares which shard, and when."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perennial.errors import Altered
from perennial.mixture import ReplayRule, StageMix, stage_mix
from perennial.mixture.batches import Batches
from perennial.mixture.row_reader import CorpusLayout
from perennial.mixture.shard_check import ShardCheck
from perennial.store import Store, open_store

ROWS, SHARDS, BATCH = 10, 5, 4
STEPS = ROWS * SHARDS // BATCH


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path)


@pytest.fixture
def layout(store: Store) -> CorpusLayout:
    data = [bytes([number]) * 100 for number in range(SHARDS)]
    keys = tuple(f"corpora/en/{number}" for number in range(SHARDS))
    for key, content in zip(keys, data, strict=True):
        store.write(key, content)
    return CorpusLayout(
        keys, (ROWS,) * SHARDS, tuple(hashlib.sha256(content).hexdigest() for content in data)
    )


@pytest.fixture
def mix(layout: CorpusLayout) -> StageMix:
    return stage_mix([], {"en": layout.rows}, STEPS, BATCH, ReplayRule())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_I10_each_shard_is_compared_by_one_rank_before_a_step_uses_it(
    store: Store, layout: CorpusLayout, mix: StageMix, world_size: int
) -> None:
    checks = [
        ShardCheck(store, {"en": layout}, mix, rank, world_size) for rank in range(world_size)
    ]
    batches, begun = Batches(mix, 0), set[int]()
    for _ in range(mix.steps):
        sources, rows = batches.take(1)
        for rank, check in enumerate(checks):
            started = check.start(sources, rows)
            for shard in started:
                shard.result()
            mine = {s for s in layout.locate(rows.ravel())[0].tolist() if s % world_size == rank}
            assert len(started) == len(mine)
            begun |= mine
        assert set(layout.locate(rows.ravel())[0].tolist()) <= begun
    assert begun == set(range(SHARDS))


def test_I10_a_shard_that_is_not_the_manifests_is_named(
    store: Store, layout: CorpusLayout, mix: StageMix
) -> None:
    store.write(layout.keys[3], b"\7" * 100)
    store.remove(layout.keys[4])
    check = ShardCheck(store, {"en": layout}, mix, 0, 1)
    everything = np.arange(layout.rows)
    *sound, damaged, missing = check.start(np.zeros_like(everything), everything)
    for shard in sound:
        shard.result()
    with pytest.raises(Altered, match="corpora/en/3 is damaged"):
        damaged.result()
    with pytest.raises(Altered, match="corpora/en/4 is missing"):
        missing.result()


def test_shards_without_a_promise_are_not_compared(
    store: Store, layout: CorpusLayout, mix: StageMix
) -> None:
    check = ShardCheck(store, {"en": replace(layout, digests=())}, mix, 0, 1)
    rows = np.arange(layout.rows)
    assert check.start(np.zeros_like(rows), rows) == []
