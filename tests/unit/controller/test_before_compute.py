"""Names and files of a run file that nothing can come of are refused by `plan` and `land`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import perennial
from perennial.cli.app import app
from perennial.controller.before_compute import is_slip
from perennial.errors import InputError
from perennial.evaluation.tasks import find_unknown_tasks
from tests.support.tiny_run import tiny_run, write_run, write_texts


def _problems(caught: pytest.ExceptionInfo[InputError]) -> dict[str, str]:
    return {error.field: error.code for error in (caught.value, *caught.value.others)}


@pytest.mark.parametrize(
    ("name", "other", "slip"),
    [
        ("englsh", "english", True),
        ("wiki-enlgish-2024", "wiki-english-2024", True),
        ("news-2024-01", "news-2024-02", False),
        ("wiki-fr", "wiki-br", False),
        ("news", "books", False),
        ("english", "english-2", False),
    ],
)
def test_a_slip_is_in_the_letters_of_one_longer_word(name: str, other: str, slip: bool) -> None:
    assert is_slip(name, other) is slip


def _run(folder: Path, **changes: Any) -> perennial.Run:
    document = tiny_run(folder)
    for name, value in changes.items():
        document[name] = document.get(name, {}) | value
    return perennial.open(write_run(folder, document))


def test_everything_that_does_not_exist_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    text = write_texts(tmp_path)["help"]
    run = _run(
        tmp_path,
        stages={"order": ["documentaton", "UPPER"], "corpora": {"documentatoin": {}, "later": {}}},
        replay={"weighting": "fixed", "weights": {"code": 1}},
        gates={"tasks": {"tasks/none": {"min": 0.1}}},
        evaluation={"tasks": ["tasks/other"]},
    )
    run = perennial.open(run.where, [f"corpora.decontaminate=[{tmp_path / 'no.jsonl'}]"])
    wrong = {
        "stages.order": "corpus-unknown",
        "stages.corpora.documentatoin": "corpus-unknown",
        "corpora.decontaminate": "file-missing",
        "evaluation.tasks": "folder-missing",
        f"gates.tasks.{tmp_path}/tasks/none": "folder-missing",
    }
    with pytest.raises(InputError) as caught:
        run.land("documentation", [text])
    assert _problems(caught) == wrong | {"stages.order": "corpus-name-invalid"}
    assert any(
        "did you mean documentation?" in str(e) for e in (caught.value, *caught.value.others)
    )
    assert not (tmp_path / "store").exists()
    with pytest.raises(InputError) as caught:
        run.plan()
    # Which corpus is meant is not known before one lands.
    assert _problems(caught).keys() == wrong.keys() - {"stages.corpora.documentatoin"}


def test_a_corpus_may_be_named_before_it_lands(tmp_path: Path) -> None:
    text = write_texts(tmp_path)["help"]
    run = _run(tmp_path, stages={"order": ["help", "codes"], "only": ["help", "codes", "web"]})
    assert run.land("help", [text]).keys
    assert [stage.stage for stage in run.plan().plan.stages] == ["00-help"]


def test_files_whose_first_documents_cannot_be_read_do_not_land(tmp_path: Path) -> None:
    rows = [json.dumps({"body": f"the text of document {n} " * 20, "n": n}) for n in range(50)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(rows))
    run = _run(tmp_path)
    with pytest.raises(InputError) as caught:
        run.land("rows", [path])
    assert caught.value.code == "sample-unreadable"
    assert "none of its first 20 documents can be read" in str(caught.value)
    assert "set corpora.text_field: body" in str(caught.value)
    assert not (tmp_path / "store").exists()
    for override in ("corpora.text_field=body", "corpora.max_bad_share=0.9"):
        assert perennial.open(run.where, [override]).plan_land("rows", [path])


def test_a_corpus_below_one_step_does_not_land_and_the_batch_that_fits_is_said(
    tmp_path: Path,
) -> None:
    text = write_texts(tmp_path)["help"]
    run = _run(tmp_path, training={"global_batch": 4096, "micro_batch": 1})
    with pytest.raises(InputError) as caught:
        run.land("help", [text])
    assert caught.value.code == "corpus-too-small"
    fitting = int(caught.value.remedy.split(" to ")[1].split(" ")[0])
    assert not (tmp_path / "store").exists()
    smaller = perennial.open(run.where, [f"training.global_batch={fitting // 4}"])
    smaller.land("help", [text])
    (stage,) = smaller.plan().plan.stages
    assert (stage.basis, stage.steps >= 1) == ("estimated", True)
    assert perennial.open(run.where).plan().plan.notes[0].startswith("help: about ")


def test_files_that_the_run_copies_are_asked_for_before_it_has_them(tmp_path: Path) -> None:
    text = write_texts(tmp_path)["help"]
    run = _run(tmp_path, tokenizer={"vocabulary": None, "path": "no-tokenizer"})
    for tried in (lambda: run.land("help", [text]), run.plan):
        with pytest.raises(InputError) as caught:
            tried()
        assert _problems(caught) == {"tokenizer.path": "file-missing"}
    other = _run(tmp_path, model={"architecture": None, "config": {}, "path": "no-model"})
    with pytest.raises(InputError) as caught:
        other.plan_land("help", [text])
    assert _problems(caught) == {"model.path": "file-missing"}


def test_what_is_wrong_of_several_kinds_is_told_at_once(tmp_path: Path) -> None:
    run = _run(
        tmp_path,
        tokenizer={"vocabulary": None, "path": "no-tokenizer"},
        evaluation={"tasks": ["tasks/other"]},
        stages={"budget": "10 tokens"},
    )
    with pytest.raises(InputError) as caught:
        run.plan()
    assert _problems(caught) == {
        "tokenizer.path": "file-missing",
        "evaluation.tasks": "folder-missing",
        "stages.budget": "budget-too-small",
    }
    done = CliRunner().invoke(app, ["plan", run.where])
    told = done.stderr.splitlines()
    assert done.exit_code == 2
    assert len(told) == 3 and all(line.startswith(f"perennial: {run.where}: ") for line in told)


def test_names_are_refused_before_a_stage_trains_too(tmp_path: Path) -> None:
    text = write_texts(tmp_path)["help"]
    gates = {"max_forgetting": 0.1, "corpora": ["documentatoin", "wiki-*"]}
    run = _run(tmp_path)
    run.land("documentation", [text])
    wrong = _run(tmp_path, gates=gates)
    for tried in (wrong.plan_advance, wrong.advance, wrong.plan):
        with pytest.raises(InputError) as caught:
            tried()
        assert _problems(caught) == {"gates.corpora": "corpus-unknown"}


def test_names_that_have_not_landed_are_noted(tmp_path: Path) -> None:
    text = write_texts(tmp_path)["help"]
    run = _run(tmp_path, stages={"only": ["german", "dutch"]})
    run.land("help", [text])
    note = "wait for german and dutch, named in stages.only"
    assert note in run.plan().plan.notes
    with pytest.raises(InputError, match="only names a more than once; name each corpus once"):
        _run(tmp_path, stages={"only": ["a", "b", "a"]})


@pytest.mark.long
def test_tasks_that_lm_eval_does_not_have_are_named_with_those_like_them() -> None:
    assert find_unknown_tasks(["piqa", "mmlu", "hellaswagg"]) == {"hellaswagg": ["hellaswag"]}
