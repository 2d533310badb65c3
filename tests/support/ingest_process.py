"""An ingest in a process of its own, with a Ray of its own, steered line by line.

Reads JSON lines {"store", "pause_at": [pass, done] or null} and answers each with lines: {"paused"}
at that point (then any line lets it go on), and {"digest"} or {"failed"} at its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from perennial.corpora import IngestSettings

SETTINGS = IngestSettings(
    sequence_length=64, seed=1, shard_tokens=25_000, piece_bytes=40_000, max_bad_share=0.5
)
_ROOT = Path(__file__).parents[2]


class Ingester:
    """The steering wheel of one such process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, store: str, pause_at: tuple[str, int] | None = None) -> None:
        """Start the ingest of corpus "en"; returns at once."""
        self._tell({"store": store, "pause_at": pause_at})

    def wait_for_pause(self) -> None:
        """Until the ingest waits at its `pause_at`."""
        assert self._hear() == {"paused": True}

    def go_on(self) -> None:
        """Let a paused ingest go on."""
        self._tell({})

    def end(self) -> dict[str, str]:
        """{"digest"} or {"failed"} of the ingest that was begun."""
        return self._hear()

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the ingesting process died"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def ingester(environment: dict[str, str]) -> Iterator[Ingester]:
    """A process that ingests; its Ray sees this environment."""
    paths = [str(_ROOT / "platform"), str(_ROOT), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ingest_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    try:
        with process:
            yield Ingester(process)
            assert process.stdin is not None
            process.stdin.close()
    finally:
        process.kill()


def _serve() -> None:
    import ray

    # Whatever Ray prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    for line in sys.stdin:
        answers.write(json.dumps(_ingest(json.loads(line), answers)) + "\n")
        answers.flush()
    ray.shutdown()


def _ingest(task: dict[str, Any], answers: Any) -> dict[str, str]:
    from perennial.corpora.ingest.pipeline import ingest_corpus
    from perennial.store import open_store

    def progress(phase: str, done: int, _all: int) -> None:
        if [phase, done] == task["pause_at"]:
            answers.write('{"paused": true}\n')
            answers.flush()
            sys.stdin.readline()

    store = open_store(task["store"])
    try:
        manifest = ingest_corpus(store, store.sub("inbox"), "en", SETTINGS, progress=progress)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"digest": manifest.digest}


if __name__ == "__main__":
    _serve()
