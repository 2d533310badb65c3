"""The run file: amounts, overrides, and one line for every mistake."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from perennial.config import load_run, parse_amount, stage_settings
from perennial.errors import InputError
from tests.support.tiny_run import tiny_run

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("2%", Fraction(2), "percent"),
        ("0.5 %", Fraction(1, 2), "percent"),
        ("500 steps", Fraction(500), "steps"),
        ("1 step", Fraction(1), "steps"),
        ("4M tokens", Fraction(4_000_000), "tokens"),
        ("1.5B tokens", Fraction(1_500_000_000), "tokens"),
        ("10_000 tokens", Fraction(10_000), "tokens"),
    ],
)
def test_an_amount_says_its_unit(text: str, number: Fraction, unit: str) -> None:
    amount = parse_amount(text)
    assert (amount.number, amount.unit, str(amount)) == (number, unit, text)


@pytest.mark.parametrize("text", ["500", 500, "4M", "4 sequences", "-1 steps", "4M %", "", None])
def test_an_amount_without_its_unit_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"amount|percentage"):
        parse_amount(text)


def test_an_amount_in_steps_is_rounded_down() -> None:
    assert parse_amount("50%").steps(total_steps=7, tokens_per_step=10) == 3
    assert parse_amount("99 tokens").steps(total_steps=7, tokens_per_step=10) == 9
    assert parse_amount("12 steps").steps(total_steps=7, tokens_per_step=10) == 12


@pytest.mark.parametrize(
    ("mixture", "field", "problem"),
    [
        ({"a": 1, "b": 0}, "release.mixture.b", "0 is refused (input should be greater than 0)"),
        ({"a": "x"}, "release.mixture.a", "'x' is refused (input should be a valid number"),
        ("evenly", "release.mixture", "'evenly' is refused (input should be 'stage', 'seen' or"),
        ([1], "release.mixture", "[1] is refused"),
    ],
)
def test_a_value_of_several_forms_is_refused_as_what_it_is_most_like(
    tmp_path: Path, mixture: Any, field: str, problem: str
) -> None:
    document = tiny_run(tmp_path)
    document["release"]["mixture"] = mixture
    with pytest.raises(InputError) as caught:
        load_run(_write(tmp_path, document))
    assert (caught.value.field, caught.value.code) == (field, "invalid-value")
    assert caught.value.problem.startswith(problem)


def test_every_committed_run_file_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    files = sorted((ROOT / "pipelines").rglob("*.yaml"))
    files = [path for path in files if not {"tasks", "studies"} & {*path.parts}]
    assert files
    for path in files:
        load_run(path)


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    base = _write(tmp_path, tiny_run(tmp_path) | {"stages": {"corpora": {"a": {"priority": 1}}}})
    path = tmp_path / "other.yaml"
    path.write_text(f"base: {base}\nname: other\nreplay: {{share: 0}}\nstages: {{corpora: null}}\n")
    spec, told = load_run(path), load_run(base)
    assert (spec.name, spec.replay.share, spec.stages.corpora) == ("other", 0, {})
    kept = told.model_copy(update={"name": spec.name, "replay": spec.replay, "stages": spec.stages})
    assert spec == kept
    assert load_run(path, ["replay.share=0.5"]).replay.share == 0.5


def test_a_file_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(f"base: {second}\n")
    second.write_text(f"base: {first}\n")
    with pytest.raises(InputError, match="is based on this file"):
        load_run(first)
    first.write_text("base: [a]\n")
    with pytest.raises(InputError, match=r"\['a'\] is not a path"):
        load_run(first)
    first.write_text(f"base: {tmp_path / 'absent.yaml'}\n")
    with pytest.raises(InputError, match=r"absent\.yaml: there is no such file"):
        load_run(first)


def test_overrides_replace_fields(tmp_path: Path) -> None:
    path = _write(tmp_path, tiny_run(tmp_path))
    spec = load_run(path, ["replay.share=0.5", "stages.corpora.b.budget=3 steps"])
    assert spec.replay.share == 0.5
    assert str(stage_settings(spec, "b").budget) == "3 steps"
    assert stage_settings(spec, "a").budget == spec.stages.budget


def test_the_resolved_spec_loads_to_itself(tmp_path: Path) -> None:
    spec = load_run(_write(tmp_path, tiny_run(tmp_path)))
    again = load_run(_write(tmp_path, spec.model_dump(mode="json")))
    assert again == spec


def test_workers_are_a_number_or_a_range(tmp_path: Path) -> None:
    path = _write(tmp_path, tiny_run(tmp_path))
    fixed = load_run(path, ["training.workers=3"]).training.workers
    assert (fixed.min, fixed.max, fixed.elastic, str(fixed)) == (3, 3, False, "3")
    elastic = load_run(path, ["training.workers={min: 1, max: 3}"]).training.workers
    assert (elastic.min, elastic.max, elastic.elastic, str(elastic)) == (1, 3, True, "1 to 3")


@pytest.mark.parametrize(("cpus", "threads"), [(0.8, 1), (1, 1), (1.8, 2), (4, 4)])
def test_a_worker_computes_with_as_many_threads_as_it_reserves_cpus(
    tmp_path: Path, cpus: float, threads: int
) -> None:
    path = _write(tmp_path, tiny_run(tmp_path))
    training = load_run(path, [f"training.cpus_per_worker={cpus}"]).training
    assert training.threads_per_worker == threads


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"replay": {"shares": 0.1}}, "replay.shares: there is no such key; did you mean share?"),
        ({"replai": {}}, "replai: there is no such key; did you mean replay?"),
        ({"replay": {"share": 1.5}}, "replay.share: 1.5 is refused"),
        ({"replay": {"share": -0.1}}, "replay.share: -0.1 is refused"),
        ({"replay": {"share": "lots"}}, "replay.share: 'lots' is refused"),
        ({"stages": {"batch_arrivals": {"max_corpora": 1}}}, "max_corpora: 1 is refused"),
        ({"stages": {"batch_arrivals": {"max_tokens": "50%"}}}, "not a percentage"),
        ({"replay": {"weighting": "old"}}, "replay.weighting: 'old' is refused"),
        ({"replay": {"weighting": "fixed"}}, "give `weights: {corpus: number}`"),
        ({"replay": {"weighting": "fixed", "weights": {"a": -1}}}, "replay.weights.a: -1 is"),
        ({"replay": {"weights": {"a": 1}}}, "weights are not used with weighting seen"),
        ({"replay": {"max_epochs": 0}}, "replay.max_epochs: 0 is refused"),
        ({"schedule": {"eta_min": 0}}, "schedule.eta_min: 0 is refused"),
        ({"schedule": {"eta_max": 1e-5}}, "use eta_min <= eta_max"),
        ({"schedule": {"warmup": "50%"}}, "overlap"),
        ({"schedule": {"warmup": "50"}}, "schedule.warmup: '50' is not an amount"),
        ({"training": {"global_batch": 1}}, "use a global_batch of at least 2, or fewer workers"),
        ({"training": {"workers": 0}}, "training.workers: 0 is refused"),
        ({"training": {"workers": True}}, "training.workers: True is refused"),
        ({"training": {"workers": {"min": 1}}}, "training.workers.max: is missing"),
        ({"training": {"workers": {"min": 0, "max": 2}}}, "training.workers.min: 0 is refused"),
        ({"training": {"workers": {"min": 3, "max": 2}}}, "min 3 is above max 2; use min <= max"),
        ({"training": {"workers": {"min": 1, "max": 9}}}, "leaves some of 9 workers without one"),
        ({"training": {"workers": "two"}}, "training.workers: 'two' is refused"),
        ({"training": {"zero_stage": 7}}, "training.zero_stage: 7 is refused"),
        ({"tokenizer": {"path": "x"}}, "exactly one of vocabulary and path"),
        ({"name": "../up"}, "name: '../up' is refused"),
        ({"model": {"architecture": None}}, "model: architecture and path: neither given"),
        ({"model": {"path": "x"}}, "model: architecture and path: both given"),
        ({"model": {"inherit_layers": 2}}, "inherit_layers needs a reference model"),
    ],
)
def test_a_mistake_is_one_line_with_file_field_problem_and_remedy(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    document = tiny_run(tmp_path)
    for section, value in change.items():
        document[section] = document.get(section, {}) | value if isinstance(value, dict) else value
    path = _write(tmp_path, document)
    with pytest.raises(InputError) as caught:
        load_run(path)
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


def test_a_missing_section_says_what_to_give(tmp_path: Path) -> None:
    document = tiny_run(tmp_path)
    del document["schedule"]["eta_max"]
    with pytest.raises(InputError, match=r"schedule\.eta_max: is missing; give peak learning rate"):
        load_run(_write(tmp_path, document))


@pytest.mark.parametrize(
    ("content", "told"),
    [("a: [", "line"), ("- 1\n", "not a mapping"), ("\xff", "cannot be read")],
)
def test_a_file_that_is_no_run_file_is_refused(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=told):
        load_run(path)


@pytest.mark.parametrize("override", ["replay.share", "=1", "name.deeper=1"])
def test_an_override_that_is_none_is_refused(tmp_path: Path, override: str) -> None:
    path = _write(tmp_path, tiny_run(tmp_path))
    with pytest.raises(InputError, match="command line"):
        load_run(path, [override])


def _write(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_corpus_is_read_by_its_name_then_by_the_longest_glob(tmp_path: Path) -> None:
    read = {
        "c4-*": {"text_field": "doc.text", "max_document": "64 MiB"},
        "c4-en": {"txt_documents": "line"},
        "*": {"domain_field": "source"},
    }
    document = tiny_run(tmp_path)
    document["corpora"] |= {"read": read, "domain_field": "topic"}
    spec = load_run(_write(tmp_path, document)).corpora

    def options(name: str) -> list[object]:
        own = spec.for_corpus(name)
        return [own.text_field, own.domain_field, own.txt_documents, own.max_document]

    assert options("c4-fr") == ["doc.text", "topic", "paragraph", 64 << 20]
    assert options("c4-en") == ["text", "topic", "line", 8 << 20]
    assert options("books") == ["text", "source", "paragraph", 8 << 20]
    assert spec.for_corpus("books").sequence_length == spec.sequence_length


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("corpora.read.books.text_feild=x", "corpora.read.books.text_feild"),
        ("corpora.read.books.txt_documents=word", "corpora.read.books.txt_documents"),
        ("corpora.read.books.max_document=64", "corpora.read.books.max_document"),
        ("corpora.read.Books.max_document=1 MiB", "corpora.read.Books.[key]"),
        (
            "corpora.read.ids={text_field: a, tokens: {tokenizer: a.json}}",
            "corpora.read.ids",
        ),
        ("corpora.about.My Books.kind=public", "corpora.about.My Books.[key]"),
        ("corpora.max_document=2 GiB", "corpora.max_document"),
    ],
)
def test_a_wrong_reading_option_is_named(tmp_path: Path, override: str, field: str) -> None:
    with pytest.raises(InputError) as wrong:
        load_run(_write(tmp_path, tiny_run(tmp_path)), [override])
    assert wrong.value.field == field


def test_a_size_is_shown_as_it_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, tiny_run(tmp_path))
    for text in ("8 MiB", "1 GiB", "10 MB", "1023 B"):
        spec = load_run(path, [f"corpora.read.books.max_document={text}"])
        shown = spec.model_dump(mode="json")["corpora"]["read"]["books"]["max_document"]
        assert shown == text


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ({"corpora": {"web": {"role": "replay", "budget": "5 steps"}}}, "has no stage that budget"),
        ({"corpora": {"web": {"role": "replay"}}, "only": ["web"]}, "is never a stage"),
        ({"corpora": {"web": {"role": "replay"}}, "order": ["web", "a"]}, "is never a stage"),
        ({"corpora": {"web": {"role": "proxy"}}}, "role"),
    ],
)
def test_what_cannot_hold_of_a_corpus_that_is_only_replayed_is_refused(
    tmp_path: Path, stages: dict[str, Any], told: str
) -> None:
    document = tiny_run(tmp_path)
    document["stages"] |= stages
    with pytest.raises(InputError, match=told):
        load_run(_write(tmp_path, document))


COSINE = {"kind": "cosine", "eta_max": 3e-3, "eta_min": 3e-4}


def test_a_stage_has_its_own_values_of_a_schedule_that_every_stage_makes(tmp_path: Path) -> None:
    own = {"corpora": {"b": {"schedule": {"eta_max": 1e-3, "warmup": "5 steps"}}}}
    path = _write(tmp_path, tiny_run(tmp_path) | {"schedule": COSINE, "stages": own})
    spec = load_run(path)
    assert stage_settings(spec, "a").schedule == spec.schedule
    changed = {"eta_max": 1e-3, "warmup": parse_amount("5 steps")}
    assert stage_settings(spec, "b").schedule == spec.schedule.model_copy(update=changed)
    assert load_run(_write(tmp_path, spec.model_dump(mode="json"))) == spec


@pytest.mark.parametrize(
    ("schedule", "own", "problem"),
    [
        (None, {"eta_max": 1e-3}, "and a stage of the schedule infinite has none of its own"),
        (COSINE, {"eta_min": 5e-3}, "eta_min 0.005 is above eta_max 0.003"),
        (COSINE, {"warmup_start": 5e-3}, "warmup_start 0.005 is above the rate 0.003"),
    ],
)
def test_a_stages_own_rates_that_cannot_be_are_refused(
    tmp_path: Path, schedule: dict[str, Any] | None, own: dict[str, Any], problem: str
) -> None:
    document = tiny_run(tmp_path) | {"stages": {"corpora": {"b": {"schedule": own}}}}
    if schedule is not None:
        document["schedule"] = schedule
    with pytest.raises(InputError) as caught:
        load_run(_write(tmp_path, document))
    assert "stages.corpora.b.schedule" in str(caught.value)
    assert problem in str(caught.value)
    assert caught.value.remedy
