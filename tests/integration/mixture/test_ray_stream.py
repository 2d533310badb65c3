"""The stream through a real Ray: what the plan says, for any workers, restart and prefetch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.causes import find_cause
from perennial.corpora import IngestSettings, land, read_manifest, train_tokenizer
from perennial.corpora.ingest.pipeline import ingest_corpus
from perennial.errors import Altered
from perennial.mixture import ReplayRule, Source, StageMix, stage_mix
from perennial.mixture import ray_stream as stream_room
from perennial.mixture.batches import slice_rank_rows
from perennial.mixture.ray_stream import build_rank_dataset, read_step_batches
from perennial.mixture.row_reader import CorpusLayout
from perennial.runs.job_factory import layout
from perennial.store import Store, open_store
from tests.support.tiny_run import write_texts

pytestmark = pytest.mark.usefixtures("ray_local")

LENGTH = 64
ROW_BYTES = 2 * LENGTH
UINT16 = np.dtype("<u2")
BATCH = 8
STEPS = 30
NAMES = ("help", "code")

Tokens = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def tokenised(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two corpora of real text, ingested into a local store."""
    folder = tmp_path_factory.mktemp("tokenised")
    store, inbox = open_store(str(folder / "store")), open_store(str(folder / "inbox"))
    settings = IngestSettings(sequence_length=LENGTH, seed=1, shard_tokens=20_000)
    for name, path in write_texts(folder).items():
        land(inbox, name, [path])
    train_tokenizer(store, inbox, NAMES[0], 500, settings)
    for name in NAMES:
        ingest_corpus(store, inbox, name, settings)
    return store


@pytest.fixture
def layouts(tokenised: Store) -> dict[str, CorpusLayout]:
    return {name: layout(read_manifest(tokenised, name)) for name in NAMES}


@pytest.fixture
def store(store_url: str, tokenised: Store) -> Store:
    """A store of each kind with the two corpora's shards."""
    store = open_store(store_url)
    for info in tokenised.list("corpora"):
        store.write(info.key, tokenised.read(info.key))
    return store


@pytest.fixture
def mix(layouts: dict[str, CorpusLayout]) -> StageMix:
    """A second stage with replay, whose replayed corpus wraps."""
    first = stage_mix([], {"help": layouts["help"].rows}, 5, BATCH, ReplayRule())
    return stage_mix([first], {"code": layouts["code"].rows}, STEPS, BATCH, ReplayRule(share=0.3))


@pytest.fixture
def batches(tokenised: Store, layouts: dict[str, CorpusLayout], mix: StageMix) -> list[Tokens]:
    """The tokens of every step, from whole tables and the plan's counts alone."""
    corpora = {
        name: np.concatenate([shard(tokenised, key) for key in found.keys])
        for name, found in layouts.items()
    }
    expected = []
    for step in range(mix.steps):
        counts = zip(mix.sources, mix.count_taken(step), mix.count_taken(step + 1), strict=True)
        parts = [
            corpora[source.corpus][(source.start + np.arange(before, after)) % source.extent]
            for source, before, after in counts
        ]
        expected.append(np.concatenate(parts).astype(np.int64))
    return expected


def shard(store: Store, key: str) -> npt.NDArray[np.uint16]:
    column = pq.read_table(Path(store.url, key))["tokens"]
    return np.array([np.frombuffer(row, UINT16) for row in column.to_pylist()])


def rank_batches(
    store: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    rank: int,
    workers: int,
    first_step: int,
    prefetch: int = 1,
) -> Iterator[tuple[int, Tokens]]:
    """(step, tokens) of one rank's stream."""
    dataset = build_rank_dataset(
        store, layouts, mix, ROW_BYTES, rank=rank, world_size=workers, first_step=first_step
    )
    tables = dataset.iter_batches(
        batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch
    )
    mine = slice_rank_rows(mix.global_batch, rank, workers)
    return read_step_batches(tables, mine.stop - mine.start, first_step, UINT16)


def global_batches(
    store: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    workers: int,
    first_step: int,
    prefetch: int = 1,
) -> Iterator[tuple[int, Tokens]]:
    """(step, tokens) of all ranks' streams, side by side, in the order of the ranks."""
    ranks = [
        rank_batches(store, layouts, mix, rank, workers, first_step, prefetch)
        for rank in range(workers)
    ]
    even = {mix.global_batch // workers, -(-mix.global_batch // workers)}
    for parts in zip(*ranks, strict=True):
        (step,) = {step for step, _ in parts}
        assert {len(tokens) for _, tokens in parts} == even
        yield step, np.concatenate([tokens for _, tokens in parts])


@pytest.mark.parametrize("workers", [1, 2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("first_step", [0, 11, STEPS - 1])
@pytest.mark.parametrize(("prefetch", "steps_per_block"), [(0, 1), (1, 4), (3, 1000)])
def test_I3_every_step_is_the_plans_for_any_workers_restart_and_prefetch(
    tokenised: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    batches: list[Tokens],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    first_step: int,
    prefetch: int,
    steps_per_block: int,
) -> None:
    rank_step_bytes = -(-BATCH // workers) * ROW_BYTES
    monkeypatch.setattr(stream_room, "BLOCK_BYTES", steps_per_block * rank_step_bytes)
    streamed = global_batches(tokenised, layouts, mix, workers, first_step, prefetch)
    expected = first_step
    for step, tokens in streamed:
        assert step == expected
        assert np.array_equal(tokens, batches[step])
        expected += 1
    assert expected == STEPS


def test_I2_I8_a_run_that_is_killed_and_resized_sees_every_step_once(
    store: Store,
    layouts: dict[str, CorpusLayout],
    mix: StageMix,
    batches: list[Tokens],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream_room, "BLOCK_BYTES", 4 * BATCH * ROW_BYTES)
    step = 0
    for workers, until in [(2, 3), (5, 17), (1, 18), (2, STEPS)]:
        for found, tokens in global_batches(store, layouts, mix, workers, step):
            assert found == step
            assert np.array_equal(tokens, batches[step])
            step += 1
            if step == until:
                break
    assert step == STEPS


def test_I2_a_seek_far_into_a_terabyte_touches_one_shard(
    tokenised: Store, layouts: dict[str, CorpusLayout]
) -> None:
    present, absent, shards = layouts["code"].keys[0], "corpora/absent/shard.parquet", 200_000
    rows = layouts["code"].shard_rows[0]
    keys = [absent] * shards
    keys[-1] = present
    large = CorpusLayout(tuple(keys), (rows,) * shards)
    steps = rows * shards // BATCH
    mix = StageMix(("c",), steps, BATCH, (Source("c", steps * BATCH, 0, rows * shards),))
    step, tokens = next(global_batches(tokenised, {"c": large}, mix, 1, steps - 2))
    assert step == steps - 2
    first = rows - (rows * shards - step * BATCH)
    assert np.array_equal(tokens, shard(tokenised, present)[first : first + BATCH])


def test_a_missing_shard_stops_the_stream(
    store: Store, layouts: dict[str, CorpusLayout], mix: StageMix
) -> None:
    store.remove(layouts["code"].keys[0])
    with pytest.raises(Exception, match=r"shard-00000\.parquet"):
        next(global_batches(store, layouts, mix, 1, 0))


def test_workers_that_cannot_share_a_batch_are_refused(
    tokenised: Store, layouts: dict[str, CorpusLayout], mix: StageMix
) -> None:
    with pytest.raises(ValueError, match="9 workers cannot share batches of 8"):
        next(global_batches(tokenised, layouts, mix, 9, 0))


def table(*steps: int) -> pa.Table:
    """Rows of one token, which is their step."""
    tokens = pa.array([np.uint16(step).tobytes() for step in steps], pa.binary(2))
    return pa.table({"step": pa.array(steps, pa.int64()), "tokens": tokens})


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (0, 5), (1, 1, 4)])
def test_steps_are_the_same_however_the_tables_are_cut(cuts: tuple[int, ...]) -> None:
    whole = table(4, 4, 5, 5, 6, 6)
    bounds = [0, *cuts, 6]
    parts = [whole.slice(a, b - a) for a, b in pairwise(bounds)]
    found = [(step, tokens.tolist()) for step, tokens in read_step_batches(parts, 2, 4, UINT16)]
    assert found == [(4, [[4], [4]]), (5, [[5], [5]]), (6, [[6], [6]])]
    joined = list(read_step_batches([pa.concat_tables(parts)], 2, 4, UINT16))
    assert [(step, tokens.tolist()) for step, tokens in joined] == found


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ((5, 5), "a row of step 5 at step 4"),
        ((4, 4, 6, 6), "a row of step 6 at step 5"),
        ((4, 5, 4, 5), "a row of step 5 at step 4"),
        ((4, 4, 5), "ended inside step 5"),
        ((4, 4, 4), "ended inside step 5"),
    ],
)
def test_rows_out_of_order_or_of_another_step_raise(steps: tuple[int, ...], told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        list(read_step_batches([table(*steps)], 2, 4, UINT16))


@pytest.mark.parametrize("workers", [1, 2])
def test_I10_a_damaged_shard_ends_a_stream_before_any_step_has_its_rows(
    store: Store,
    layouts: dict[str, CorpusLayout],
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """One rank's stream ends; the others cannot take a step without it."""
    found = layouts["code"]
    mix = stage_mix([], {"code": found.rows}, found.rows // BATCH, BATCH, ReplayRule())
    monkeypatch.setattr(stream_room, "BLOCK_BYTES", 4 * BATCH * ROW_BYTES // workers)
    data = bytearray(store.read(found.keys[1]))
    data[len(data) // 2] ^= 1
    store.write(found.keys[1], bytes(data))
    for rank in range(workers):
        stream, steps = rank_batches(store, {"code": found}, mix, rank, workers, 0), list[int]()
        if rank != 1 % workers:
            assert [step for step, _ in stream] == list(range(mix.steps))
            continue
        with pytest.raises(Exception) as raised:
            steps.extend(step for step, _ in stream)
        altered = find_cause(raised.value, Altered)
        assert altered is not None, raised.value
        assert altered.key == found.keys[1]
        assert 0 < len(steps) <= found.shard_rows[0] // BATCH
