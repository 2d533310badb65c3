"""Sections of staged files, on a folder and in a bucket."""

from __future__ import annotations

from perennial.corpora.ingest.spill import SectionFile, read_sections
from perennial.store import open_store


def test_i8_sections_come_in_the_order_of_asking_without_the_empty_ones(store_url: str) -> None:
    store = open_store(store_url)
    for run in range(40):
        with store.open(f"pieces/{run}.run", "wb") as stream:
            file = SectionFile(stream, 3)
            for section in range(3):
                file.add(b"" if (run + section) % 4 == 0 else b"%d in %d" % (section, run))
            file.close()
    places = [(f"pieces/{run}.run", section) for run in range(40) for section in (2, 0)]
    found = [section.to_pybytes() for section in read_sections(store, places)]
    runs = [(run, section) for run in range(40) for section in (2, 0)]
    assert found == [b"%d in %d" % (s, run) for run, s in runs if (run + s) % 4]
