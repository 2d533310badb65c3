"""Event files of TensorBoard: a folder a run. Importing this module imports tensorboardX."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tensorboardX import FileWriter
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import text as text_summary

from perennial.redaction import hide_in_file
from perennial.store import open_store
from perennial.tracking.logged_steps import LoggedSteps
from perennial.tracking.outbox import (
    Artifact,
    End,
    Found,
    MetricPoint,
    Other,
    Pending,
    Registration,
    Tag,
)

_STEPS = "perennial-steps.json"
_PNG = b"\x89PNG\r\n\x1a\n"
_RGBA = 4
"""colour space of an image, as TensorBoard numbers them"""


class TensorBoardRuns:
    """The runs below one folder: the lineage's, and in it one for each stage and release.

    TensorBoard has no files but pictures: a page of the report stays in the store alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = open_store(folder)
        self._writers: dict[str, FileWriter] = {}
        self._logged: dict[str, LoggedSteps] = {}

    def attach(self, run: Pending, parent_id: str | None) -> Found:
        """Continue the run's folder, or begin it; its id is its path below the folder."""
        logged = self._logged[run.key] = LoggedSteps(self._store, f"{run.key}/{_STEPS}")
        if not logged.steps:
            rows = [f"| {name} | {text} |" for name, text in run.params.items()]
            if rows:
                table = "\n".join(["| parameter | value |", "| --- | --- |", *rows])
                self._add(run.key, text_summary("parameters", table), 0)
        return Found(run.key, dict(logged.steps), logged.complete)

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Write values; those of one step and time are one record."""
        for (step, at_ms), its in groupby(points, lambda point: (point.step, point.timestamp_ms)):
            values = [Summary.Value(tag=point.name, simple_value=point.value) for point in its]
            self._add(run_id, Summary(value=values), step, at_ms / 1000)
        self._writers[run_id].flush()
        # After the values: a process that is killed between leaves some twice, and loses none.
        self._logged[run_id].add(points)

    def put(self, run_id: str, item: Other) -> None:
        """Write a picture, or a fact as a text; other files are left out."""
        match item:
            case Artifact(name=name, data=data) if data.startswith(_PNG):
                self._add(run_id, _image(name, data), self._last_step(run_id))
            case Artifact(name=name, data=data) if name.endswith(".txt"):
                text = hide_in_file(data).decode(errors="replace")
                self._add(run_id, text_summary(name, text), self._last_step(run_id))
            case Tag(name=name, text=text):
                self._add(run_id, text_summary(name, text), self._last_step(run_id))
            case Registration(release=release, location=location):
                self._add(run_id, text_summary(f"release {release}", location), 0)
            case End(status=status, timestamp_ms=at_ms):
                step = self._last_step(run_id)
                self._add(run_id, text_summary("status", status), step, at_ms / 1000)
        if run_id in self._writers:
            self._writers[run_id].flush()

    def complete(self, run_id: str) -> None:
        """Record beside the files that they have all that the store knows."""
        self._logged[run_id].mark_complete()

    def refused(self, error: Exception) -> bool:
        """Return False: a file takes everything."""
        return False

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _last_step(self, run_id: str) -> int:
        """Return the last optimizer step; positions on the axis of tokens are none."""
        steps = self._logged[run_id].steps
        return max((step for name, step in steps.items() if name.startswith("train/")), default=0)

    def _add(
        self, run_id: str, summary: Summary, step: int, at_seconds: float | None = None
    ) -> None:
        if run_id not in self._writers:
            # Without a name of its own, a file replaces one that was begun in the same second.
            own = f".{uuid.uuid4().hex}"
            self._writers[run_id] = FileWriter(str(self._folder / run_id), filename_suffix=own)
        self._writers[run_id].add_summary(summary, step, at_seconds)


def _image(name: str, png: bytes) -> Summary:
    """Return a picture as it is; its size is in the first chunk of the file."""
    width, height = struct.unpack(">II", png[16:24])
    image = Summary.Image(height=height, width=width, colorspace=_RGBA, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=name, image=image)])
