"""Items from held-out documents, local task folders, and reading lm-eval's results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from perennial.errors import InputError
from perennial.evaluation import TaskScore
from perennial.evaluation.cache import keep_items, kept_items
from perennial.evaluation.heldout import continuation_items, prompts, spread
from perennial.evaluation.scores import paired_stderr, plain
from perennial.evaluation.tasks import LocalTask, read_task, scores
from perennial.store import open_store


def text(name: str, words: int = 40) -> str:
    return " ".join(f"{name}{i}" for i in range(words))


def test_an_item_asks_in_which_order_the_words_follow_the_opening() -> None:
    items = continuation_items([text(name) for name in "abcdefgh"], seed=0)
    assert len(items) == 8
    for name, item in zip("abcdefgh", items, strict=True):
        assert item["opening"] == text(name, 24)
        right = text(name, 36).removeprefix(text(name, 24) + " ")
        assert item["choices"][item["answer"]] == right
        assert len(set(item["choices"])) == 4
        assert all(sorted(choice.split()) == sorted(right.split()) for choice in item["choices"])


def test_items_depend_on_the_seed_alone_and_answers_stand_in_every_place() -> None:
    texts = [text(f"w{i}x") for i in range(60)]
    items = continuation_items(texts, seed=3)
    assert continuation_items(texts, seed=3) == items
    assert continuation_items(texts, seed=4) != items
    assert {item["answer"] for item in items} == {0, 1, 2, 3}


def test_documents_that_are_short_or_say_one_word_give_no_item() -> None:
    assert len(continuation_items([text("a"), text("e", 35)], seed=0)) == 1
    assert continuation_items([text("a", 24) + " no" * 12], seed=0) == []


def test_prompts_are_first_words_of_documents_far_apart() -> None:
    texts = [text(name) for name in "abcdefgh"] + [" "]
    assert prompts(texts, 2) == [text("a", 6), text("e", 6)]


@pytest.mark.parametrize(("total", "limit"), [(0, 5), (5, 9), (10, 3), (100, 100)])
def test_a_spread_is_within_the_limit_ordered_and_without_repeats(total: int, limit: int) -> None:
    chosen = spread(total, limit)
    assert len(chosen) == min(total, limit)
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < total for i in chosen)


def test_a_name_is_an_lm_eval_task_and_a_folder_is_a_local_one(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text("task: mine_${corpus}")
    assert read_task("hellaswag") == "hellaswag"
    local = read_task(str(tmp_path))
    assert isinstance(local, LocalTask)
    assert local.per_corpus


def test_the_words_are_filled_in_and_other_dollars_are_left_alone(tmp_path: Path) -> None:
    yaml = b"task: t_${corpus}\nfile: ${folder}/x ${continuations}\nregex: ($[0-9]+) ${other}"
    local = LocalTask("mine", {"a/task.yaml": yaml, "data.jsonl": b"${corpus}"})
    local.write(tmp_path, {"${corpus}": "french", "${folder}": "/f", "${continuations}": "/c"})
    written = (tmp_path / "a" / "task.yaml").read_text()
    assert written == "task: t_french\nfile: /f/x /c\nregex: ($[0-9]+) ${other}"
    assert (tmp_path / "data.jsonl").read_text() == "${corpus}"


def test_a_local_task_without_a_corpus_runs_once() -> None:
    assert not LocalTask("mine", {"t.yaml": b"task: t", "x.py": b"# ${corpus}"}).per_corpus


@pytest.mark.parametrize("task", ["no/such/folder", "missing.yaml"])
def test_a_missing_folder_is_refused(task: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        read_task(task)


def test_a_folder_without_a_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no \.yaml file"):
        read_task(str(tmp_path))


def test_scores_carry_standard_error_version_and_sample_count() -> None:
    results = {
        "results": {
            "hellaswag": {
                "name": "hellaswag",
                "alias": "hellaswag",
                "sample_len": 40,
                "acc,none": 0.25,
                "acc_stderr,none": 0.07,
            },
            "nq_open": {
                "alias": "nq_open",
                "sample_len": 7,
                "exact_match,remove_whitespace": 0.5,
                "exact_match_stderr,remove_whitespace": "N/A",
            },
        },
        "versions": {"hellaswag": 1.0, "nq_open": 4.0},
    }
    assert scores(results) == [
        TaskScore("hellaswag", "acc", 0.25, 0.07, "1.0", 40),
        TaskScore("nq_open", "exact_match,remove_whitespace", 0.5, None, "4.0", 7),
    ]


def test_scores_hold_their_items_where_lm_eval_tells_them() -> None:
    samples = [
        {"doc_hash": "a" * 64, "filter": "none", "acc": 1.0},
        {"doc_hash": "b" * 64, "filter": "none", "acc": 0.0},
        {"doc_hash": "b" * 64, "filter": "other", "acc": 1.0},
    ]
    results = {
        "results": {"t": {"sample_len": 2, "acc,none": 0.5, "f1,none": 0.5}},
        "versions": {"t": 1.0},
        "samples": {"t": samples},
    }
    acc, f1 = scores(results)
    assert acc.items == (("a" * 16, 1.0), ("b" * 16, 0.0))
    assert f1.items == ()
    assert "items" not in plain(acc)


def test_a_change_is_as_sure_as_its_items_are_alike() -> None:
    before = [("a", 1.0), ("b", 0.0), ("c", 1.0), ("d", 0.0)]
    same = [("a", 0.0), ("b", 0.0), ("c", 1.0), ("d", 0.0)]
    assert paired_stderr(same, before) == pytest.approx(0.25)
    assert paired_stderr(before, before) == 0.0
    assert paired_stderr(same[:3], before) is None
    assert paired_stderr([("x", 1.0), *same[1:]], before) is None
    assert paired_stderr([("a", 1.0)], [("a", 1.0)]) is None


def test_items_are_kept_by_what_the_run_file_asked(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    score = TaskScore("a/task", "acc", 0.5, 0.1, "1", 2, "folder/one", items=(("x", 1.0),))
    keep_items(store, "checkpoints/00-a/1", score)
    assert kept_items(store, "checkpoints/00-a/1", score) == score.items
    other = replace(score, asked="folder/two")
    assert kept_items(store, "checkpoints/00-a/1", other) == ()
    (key,) = [info.key for info in store.list("evaluations")]
    assert key.startswith("evaluations/checkpoints/00-a/1/tasks/a-task-acc-")
