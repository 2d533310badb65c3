"""Write real multiple-choice items as local lm-eval tasks, for use without a data hub.

Usage: python pipelines/fetch_items.py FOLDER
Writes FOLDER/mmlu_dev (the examples of MMLU's 57 subjects that lm-eval itself carries, MIT), and
FOLDER/german_exams (questions of German school exams, out of the wheel of evals, MIT), which pip
fetches; it is unzipped, never imported. Name either folder in `evaluation.tasks`. These items are
for evaluation: never train on them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from perennial.sources.sample_text import fetch_wheel

PACKAGE = "evals==3.0.1.post1"
MEMBER = "evals/registry/data/german-exams-qa/samples.jsonl"
Item = dict[str, Any]

_OPTION = re.compile(r"\(([A-D])\) ?")
_ANSWER = re.compile(r"[Tt]he answer is \(?([A-D])\)?")

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: ${{folder}}/items.jsonl
  cache_dir: ${{folder}}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\n{answer}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def main(folder: Path) -> None:
    write(folder / "mmlu_dev", "Answer:", list(mmlu_items()))
    german = german_items()
    if german:
        write(folder / "german_exams", "Antwort:", german)


def write(folder: Path, answer: str, items: list[Item]) -> None:
    """Write a local task folder of these items."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(item, ensure_ascii=False) for item in items)
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "task.yaml").write_text(TASK.format(name=folder.name, answer=answer))
    print(f"{folder}: {len(items):,} items")


def mmlu_items() -> Iterator[Item]:
    """Yield question, options and the index of the right one, of every subject's examples."""
    place = resources.files("lm_eval.tasks") / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json"
    for prompt in json.loads(place.read_text(encoding="utf-8")).values():
        for part in prompt.split("\n\nQ: ")[1:]:
            asked, _, reasoning = part.partition("\nA: ")
            question, *pieces = _OPTION.split(asked)
            options = [text.strip() for text in pieces[1::2]]
            answer = _ANSWER.search(reasoning)
            if answer and pieces[0::2] == ["A", "B", "C", "D"]:
                index = "ABCD".index(answer[1])
                yield {"question": question.strip(), "options": options, "answer": index}


def german_items() -> list[Item]:
    """Yield items of German school exams; none when no registry answers."""
    with fetch_wheel(PACKAGE) as wheel:
        if wheel is None:
            print(f"{PACKAGE} cannot be fetched: no German items")
            return []
        lines = wheel.read(MEMBER).decode("utf-8").splitlines()
    return [_german_item(json.loads(line)) for line in lines if line.strip()]


def _german_item(sample: Item) -> Item:
    asked = sample["input"][-1]["content"].removesuffix("Answer:").strip()
    question, *pieces = re.split(r"\n([A-E])\. ", asked)
    options = [text.strip() for text in pieces[1::2]]
    answer = pieces[0::2].index(sample["ideal"].strip("[]"))
    return {"question": question.strip(), "options": options, "answer": answer}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
