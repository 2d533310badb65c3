"""Naming where the sequences of a step come from."""

from __future__ import annotations

import numpy as np

from perennial.mixture import Source, StageMix
from perennial.mixture.batches import Batches
from perennial.mixture.provenance import trace_origins
from perennial.mixture.row_reader import CorpusLayout

LAYOUTS = {
    "new": CorpusLayout(("new/0", "new/1"), (10, 30)),
    "old": CorpusLayout(("old/0",), (6,)),
}
MIX = StageMix(("new",), 5, 8, (Source("new", 30, 0, 40), Source("old", 10, 4, 6)))


def test_every_row_of_the_batch_is_named_once_and_found_in_its_shard() -> None:
    for step in range(MIX.steps):
        named = [
            (origin.corpus, origin.first + i, origin.shard, origin.shard_first + i)
            for origin in trace_origins(MIX, LAYOUTS, step)
            for i in range(origin.last - origin.first + 1)
        ]
        sources, rows = (part[0] for part in Batches(MIX, step).take(1))
        right = []
        for source, row in zip(sources.tolist(), rows.tolist(), strict=True):
            corpus = MIX.sources[source].corpus
            shard, inside = LAYOUTS[corpus].locate(np.array([row]))
            right.append((corpus, row, LAYOUTS[corpus].keys[shard[0]], int(inside[0])))
        assert sorted(named) == sorted(right)


def test_rows_that_follow_each_other_are_one_run_and_a_shards_end_cuts_it() -> None:
    mix = StageMix(("new",), 1, 12, (Source("new", 12, 4, 40),))
    assert [str(origin) for origin in trace_origins(mix, LAYOUTS, 0)] == [
        "rows 4 to 9 of new/0",
        "rows 0 to 5 of new/1",
    ]
