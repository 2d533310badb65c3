"""Train two corpora and release a model from Python, without a run file on disk beforehand.

    python examples/train_from_python.py FOLDER

Two CPU cores need about two minutes. The text is Python's own help, so nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import perennial

RUN_FILE = """\
name: example
store: {folder}/store
corpora: {{sequence_length: 128, holdout: 0.1}}
tokenizer: {{vocabulary: 300}}
model:
  architecture: gpt_neox
  config: {{hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1, num_attention_heads: 2}}
training: {{workers: 1, cpus_per_worker: 0.8, global_batch: 8, micro_batch: 8}}
schedule: {{kind: infinite, eta_max: 3.0e-3, eta_const: 1.65e-3, eta_min: 3.0e-4}}
replay: {{share: 0.25}}
stages: {{budget: 12 steps}}
release: {{anneal: 4 steps, sample_tokens: 8}}
evaluation: {{documents: 5}}
"""


def main(folder: Path) -> None:
    """Write a run file and two corpora below `folder`, train them, and release the result."""
    folder.mkdir(parents=True, exist_ok=True)
    run_file = folder / "run.yaml"
    run_file.write_text(RUN_FILE.format(folder=folder))
    texts = [text[:6000] for text in topics.values()]
    run = perennial.open(run_file)
    run.on("stage_started", lambda event: print("started", event.subject))
    run.on("evaluated", lambda event: print("evaluated", event.subject, dict(event.losses)))
    run.on("released", lambda event: print("released", event.folder))
    for name, documents in (("first", texts[::2]), ("second", texts[1::2])):
        corpus = folder / f"{name}.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        run.land(name, [corpus])
        run.advance()
    run.release()
    print(run.matrix())


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
