"""`perennial init`: a first run file that `plan` accepts, and that is never written over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from perennial.cli.app import app
from perennial.config import RunSpec, load_run
from perennial.planning.first_run_file import DataSample, Machine, choose_length, fit
from perennial.training.cost_model import ModelSize
from tests.support.small_models import small_model
from tests.support.small_tokenizers import byte_level_json

GIB = 2**30
CPU = Machine(gpus=0, memory_bytes=16 * GIB, cpus=4)
BILLION = ModelSize(
    parameters=1_200_000_000,
    embedding=100_000_000,
    without_embeddings=1_000_000_000,
    tied=False,
    layers=24,
    hidden=2048,
    heads=16,
    vocabulary=50_304,
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


def _write_data(field: str = "text") -> str:
    rows = [json.dumps({field: f"document {n} with some words in it " * 20}) for n in range(600)]
    Path("news.jsonl").write_text("\n".join(rows) + "\n")
    return "news.jsonl"


def _init(*words: str, answers: str = "") -> Any:
    return CliRunner().invoke(app, ["init", *words], input=answers)


def _spec(*words: str) -> RunSpec:
    done = _init(*words)
    assert done.exit_code == 0, done.output
    return load_run(Path("run.yaml"))


def test_scratch_fits_a_sample_of_the_data() -> None:
    spec = _spec("--data", _write_data("body"), "--corpus", "news", "--shift", "strong")
    assert (spec.model.architecture, spec.tokenizer.vocabulary) == ("gpt_neox", 4096)
    assert (spec.corpora.text_field, spec.corpora.sequence_length) == ("body", 256)
    assert (spec.replay.share, spec.schedule.kind) == (0.25, "infinite")
    text = Path("run.yaml").read_text()
    assert "# the paper's for a strong shift; 5% for a weak one, auto measures it" in text
    assert "nine of ten sampled documents" in text


def test_a_file_that_is_there_is_not_written_over() -> None:
    Path("run.yaml").write_text("mine\n")
    done = _init("--template", "scratch")
    assert done.exit_code == 2
    assert "is not written over" in done.stderr
    assert Path("run.yaml").read_text() == "mine\n"


def test_what_cannot_work_leaves_no_file() -> None:
    Path("bad.jsonl").write_text('{"n": 1}\n' * 30)
    Path("small.jsonl").write_text('{"text": "a few words"}\n' * 30)
    for words, told in (
        (["--data", "bad.jsonl"], "its first documents cannot be read"),
        (["--data", "absent.jsonl"], "there is no such file"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--template", "open-model"], "--model: is missing"),
        (["--template", "paper", "--model", "m"], "has random weights"),
        (["--gpus", "8"], "give --gpu-memory too"),
        (["--corpus", "No Name"], "cannot be a corpus's name"),
        (["a.yaml", "b.yaml"], "a.yaml and b.yaml are two run files"),
        (["--data", "small.jsonl"], "--data: it fills 0 steps of 256 tokens, and a stage needs 4"),
    ):
        done = _init(*words)
        assert (done.exit_code, told in done.stderr) == (2, True), (words, done.output)
    assert not Path("run.yaml").exists()


def test_an_open_model_goes_on_with_its_own_tokenizer_from_the_file_of_the_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "runs").mkdir()
    tokenizer = Tokenizer.from_str(json.dumps(byte_level_json(300)))
    entries = tokenizer.get_vocab_size()
    model = small_model("llama", vocab_size=entries, max_position_embeddings=64)
    model.save_pretrained(tmp_path / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        tmp_path / "base"
    )
    words = ["runs/a.yaml", "--model", "base", "--data", _write_data(), "--name", "a", "--json"]
    done = _init(*words)
    assert done.exit_code == 0, done.output
    begun = json.loads(done.stdout)
    assert begun["fitted"]["sequence_length"] == 64, "the model's positions"
    spec = load_run(Path("runs/a.yaml"))
    assert (spec.model.path, spec.tokenizer.path, spec.store) == ("base", "base", "runs/a-store")
    assert "path: ../base" in Path("runs/a.yaml").read_text()
    assert begun["next"] == [
        "perennial land runs/a.yaml first news.jsonl",
        "perennial plan runs/a.yaml",
        "perennial run runs/a.yaml",
    ]


def test_a_terminal_is_asked_for_what_no_option_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.cli.run.init._is_terminal", lambda: True)
    done = _init(answers=f"from scratch\nscratch\n{_write_data()}\n")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("Begin with") == 2, "an answer that is none of the choices"
    assert load_run(Path("run.yaml")).replay.share == "auto", "the shift is measured"


@pytest.mark.long
def test_the_paper_s_model_is_planned_for_gpus_of_another_machine() -> None:
    spec = _spec("--template", "paper", "--gpus", "8", "--gpu-memory", "80")
    assert (spec.training.workers.max, spec.training.precision) == (8, "bf16")
    assert spec.model.config["hidden_size"] == 1024
    assert "eta_min: 3.0e-05 " in Path("run.yaml").read_text()
    done = CliRunner().invoke(app, ["plan", "run.yaml", "--gpu-memory", "80"])
    assert done.exit_code == 0, done.output


def test_a_pattern_that_the_shell_has_made_words_of_is_data() -> None:
    for number in (1, 2, 3):
        Path(f"news-{number}.jsonl").write_bytes(Path(_write_data()).read_bytes())
    for words in (["--data", *sorted(map(str, Path().glob("news-*")))], ["news-*.jsonl"]):
        done = _init(*words, "--json", "--dry-run")
        assert done.exit_code == 0, done.output
        assert "about 315k tokens here" in json.loads(done.stdout)["text"], words


def test_every_answer_is_checked_when_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perennial.cli.run.init._is_terminal", lambda: True)
    done = _init(answers=f"scratch\nabsent.jsonl\n'un\n{_write_data()}\n")
    assert done.exit_code == 0, done.output
    assert "there is no such file" in done.stderr
    assert "No closing quotation; close the quote" in done.stderr


def test_the_first_file_of_any_template_can_be_planned_with_the_data_that_it_was_made_for() -> None:
    data = _write_data()
    for template, machine in (("scratch", []), ("paper", ["--gpus", "8", "--gpu-memory", "80"])):
        run = f"{template}.yaml"
        assert _init(run, "--template", template, "--data", data, *machine).exit_code == 0
        for words in (["land", run, "first", data], ["plan", run]):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, (template, done.output)
        planned = json.loads(CliRunner().invoke(app, ["plan", run, "--json"]).stdout)
        assert planned["stages"][0]["basis"] == "estimated"
        assert planned["totals"]["steps"] >= 4


def test_without_data_a_small_model_gets_a_small_batch_and_the_papers_model_its_own() -> None:
    spec = _spec()
    assert spec.tokens_per_step == 8192
    Path("run.yaml").unlink()
    spec = _spec("--template", "paper", "--gpus", "8", "--gpu-memory", "80")
    assert (spec.training.global_batch, spec.corpora.sequence_length) == (1104, 2048)


def test_the_least_partition_that_fits_is_taken() -> None:
    def on(gpus: int, gib: int) -> tuple[int, bool, bool]:
        fitted = fit(BILLION, 2048, DataSample(), Machine(gpus, gib * GIB, 32), "scratch")
        assert fitted.global_batch % gpus == 0
        return fitted.zero_stage, fitted.recompute, fitted.fits

    assert on(8, 80) == (1, False, True)
    assert on(8, 2) == (3, True, False)
    stages = [on(8, gib)[0] for gib in (80, 16, 12, 8, 6)]
    assert stages == sorted(stages) and stages[-1] > 1


@pytest.mark.parametrize(
    ("positions", "document", "machine", "length"),
    [
        (None, 100, CPU, 256),
        (None, 300, CPU, 512),
        (None, 5000, CPU, 512),
        (None, 5000, Machine(1, 80 * GIB, 8), 4096),
        (128, 5000, CPU, 128),
        (None, 0, Machine(1, 80 * GIB, 8), 2048),
    ],
)
def test_a_sequence_holds_a_long_document_where_the_model_can_take_it(
    positions: int | None, document: int, machine: Machine, length: int
) -> None:
    sample = DataSample(tokens=(document,) * 10 if document else ())
    assert choose_length(positions, sample, machine) == length


def test_more_data_takes_a_larger_batch() -> None:
    batches = [
        fit(
            BILLION, 2048, DataSample((9,), tokens), Machine(8, 80 * GIB, 8), "scratch"
        ).global_batch
        for tokens in (10**6, 10**8, 10**10, 10**12)
    ]
    assert batches == sorted(batches)
    assert (batches[0], batches[-1]) == (8, 256)
