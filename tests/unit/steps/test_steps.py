"""Each step on the smallest text that it is about, kept and dropped; and steps in a row."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from perennial.config import load_run
from perennial.corpora.formats.base import Record, counts_as_bad
from perennial.corpora.ingest.sample import apply_steps
from perennial.corpora.manifest import IngestSettings
from perennial.errors import InputError
from perennial.steps import STEPS, Dropped, StepPipeline
from tests.support.refusal import refused
from tests.support.tiny_run import tiny_run, write_run

PROSE = (
    "The people of the town have always kept to the river, and that is where they built the first "
    "houses of stone. When winter comes, the water rises to the doors, and everybody helps with "
    "boards and sand until it falls again. Nobody remembers a year in which it did not happen. "
    "Those who live higher up bring bread."
)
"""real prose of more than fifty words"""


def _pipeline(*sections: dict[str, Any]) -> StepPipeline:
    return StepPipeline([STEPS[s["kind"]].model_validate(s).describe() for s in sections])


def _apply(text: str, kind: str, **keys: Any) -> str | Dropped:
    return _pipeline({"kind": kind, **keys}).apply(text)


WORDS = PROSE.split()
DROPPED = {
    "gopher-quality/too-few-words": PROSE[:100],
    "gopher-quality/too-many-words": "of the sea " * 40_000,
    "gopher-quality/word-length": "to be of a " * 30,
    "gopher-quality/symbols": PROSE + " #" * 20,
    "gopher-quality/bullets": "\n".join(f"- {' '.join(WORDS[n : n + 6])}" for n in range(0, 54, 6)),
    "gopher-quality/ellipses": "\n".join(
        f"{' '.join(WORDS[n : n + 18])} ..." for n in range(0, 54, 18)
    ),
    "gopher-quality/too-few-alphabetic-words": PROSE + " 123 4567 89012" * 8,
    "gopher-quality/too-few-stop-words": "Zwei Menschen gehen morgens gern spazieren. " * 12,
    "gopher-repetition/duplicate-lines": "first line here\n" + "a line again\n" * 3,
    "gopher-repetition/duplicate-paragraphs": "\n\n".join(
        ["\n".join(f"{n} of {m}" for m in range(5)) for n in range(4)] + ["again"] * 4
    ),
    "gopher-repetition/top-2-words": "my dog " * 5 + " ".join(WORDS[:10]),
    "gopher-repetition/duplicate-5-words": " ".join(
        f"word{n}" for n in [*range(100), *range(20, 45)]
    ),
    "c4-quality/filler-text": PROSE + " Lorem ipsum dolor sit amet.",
    "c4-quality/curly-bracket": PROSE + " if (x) { return; }",
    "c4-quality/too-few-sentences": "Home\nAbout us\nThis is the only sentence that is left.",
    "fineweb-quality/too-little-punctuation": "\n".join(
        f"an entry of a long menu without an end {n}" for n in range(10)
    ),
    "fineweb-quality/short-lines": "Home.\nNews.\nSport.\nWeather.",
    "fineweb-quality/duplicate-lines": "\n".join(
        [PROSE, "This line of some words stands here again and again."] * 3
    ),
    "language/other-language": "Die Leute der Stadt haben immer am Fluss gelebt und gebaut.",
}


@pytest.mark.parametrize("reason", DROPPED)
def test_a_text_is_dropped_with_its_reason(reason: str) -> None:
    kind = reason.partition("/")[0]
    keys = {"keep": ["en", "fr"]} if kind == "language" else {}
    result = _apply(DROPPED[reason], kind, **keys)
    assert isinstance(result, Dropped)
    assert result.reason == reason
    assert not counts_as_bad(result.reason), "it is dropped on purpose"


@pytest.mark.parametrize("kind", ["gopher-quality", "gopher-repetition", "fineweb-quality"])
def test_prose_is_kept_as_it_is(kind: str) -> None:
    assert _apply(PROSE, kind) == PROSE
    assert _apply(PROSE, "language", keep=["en"]) == PROSE


def test_c4_keeps_the_sentences_of_a_page() -> None:
    script, policy = "Please enable JavaScript to use this.", "Read our privacy policy now, please."
    page = f"Home\n{script}\n{PROSE}[3]\n{policy}\n"
    assert _apply(page, "c4-quality") == PROSE


def test_a_sentence_ends_in_every_script() -> None:
    chinese = "\n".join(f"{n} a b c d \u4e2d\u6587\u53e5\u5b50\u3002" for n in range(3))
    assert _apply(chinese, "c4-quality") == chinese


def test_every_threshold_is_a_key() -> None:
    assert (
        _apply("the and of", "gopher-quality", min_words=1, min_mean_word_length=2) == "the and of"
    )
    kept = _apply("un deux trois de la", "gopher-quality", min_words=1, stop_words=["de", "la"])
    assert kept == "un deux trois de la"


def test_personal_data_is_replaced_and_what_only_looks_like_it_is_not() -> None:
    text = "mail j.doe+x@mail.example.org from 8.8.8.8, not 192.168.0.1, 1.2.3 or 999.1.1.1; @home"
    assert _apply(text, "personal-data") == (
        "mail email@example.com from 192.0.2.1, not 192.168.0.1, 1.2.3 or 999.1.1.1; @home"
    )
    assert _apply(text, "personal-data", email=None, ip=None) == text
    assert _apply("a@b.de", "personal-data", email=r"\1") == r"\1", "it is no pattern"
    odd = "a@b.c.d, ..x@y.zz @n.oo \u00e9a.b@c.dd a@b@c.dd !a@b.cc-d a..b@c.dd"
    assert _apply(odd, "personal-data", email="E") == "a@b.c.d, ..E @n.oo E a@E !E-d a..E"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The server is 8.8.8.8.", "The server is I."),
        ("At 8.8.8.8...", "At I..."),
        ("x.8.8.8.8, 1.2.3.4.5", "x.I, 1.2.3.4.5"),
        ("\u90ae\u7bb1abc@b.com\u8054\u7cfb", "\u90ae\u7bb1E\u8054\u7cfb"),
        ("m\u00fcller@b.de, info@m\u00fcller.de", "E, E"),
        ("\u0438\u0432\u0430\u043d@\u043f\u043e\u0447\u0442\u0430.\u0440\u0444", "E"),
    ],
)
def test_personal_data_is_found_in_sentences_of_every_script(text: str, expected: str) -> None:
    assert _apply(text, "personal-data", email="E", ip="I") == expected


def test_keys_that_would_keep_nothing_are_refused() -> None:
    keys: dict[str, Any]
    for keys in (
        {"min_words": 10, "max_words": 9},
        {"max_mean_word_length": -1},
        {"stop_words": []},
        {"stop_words": ["of the", "and", "to"]},
    ):
        with pytest.raises(ValueError, match=r"nothing is kept|would be found nowhere"):
            STEPS["gopher-quality"].model_validate(keys)
    kept = _apply(
        "The end OF it",
        "gopher-quality",
        min_words=1,
        min_mean_word_length=2,
        stop_words=["The", "Of"],
    )
    assert kept == "The end OF it", "case is ignored"


def test_runs_longer_than_a_text_take_no_time() -> None:
    assert _apply("a b c", "gopher-repetition", max_top={10**12: 0.1}) == "a b c"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("personal-data", "a-" * 1_000_000 + " @b.cc"),
        ("personal-data", "@a.bc " * 100_000),
        ("c4-quality", "Three words or more before " + "." * 2_000_000 + "x."),
    ],
)
def test_a_run_of_signs_is_read_once(kind: str, text: str) -> None:
    """Read again from each of its places, it would take days."""
    assert _apply(text, kind, **{"min_sentences": 1} if kind == "c4-quality" else {}) == text


def test_repeated_runs_are_counted_without_making_them() -> None:
    words = [f"w{n * n % 7919}" for n in range(200_000)]
    tracemalloc.start()
    result = _apply(" ".join(words), "gopher-repetition")
    assert tracemalloc.get_traced_memory()[1] < 200 * len(words)
    tracemalloc.stop()
    assert isinstance(result, Dropped)
    assert result.reason == "gopher-repetition/duplicate-5-words"


OWN = "tests.support.own_step"


def test_a_function_by_its_path_keeps_drops_and_changes() -> None:
    steps = _pipeline(
        {"kind": "call", "function": f"{OWN}:drop_short", "parameters": {"least": 5}},
        {"kind": "call", "function": f"{OWN}:shout"},
    )
    assert steps.apply("long enough") == "LONG ENOUGH"
    assert steps.apply("no") == Dropped("call/drop-short")
    assert steps.apply("LOUD ALREADY") == "LOUD ALREADY"
    assert set(steps.cpu_seconds) == {"1 call", "2 call"}
    assert steps.changed == {"2 call": 1}, "neither what is dropped nor what stays is changed"


def test_a_function_that_raises_costs_one_document() -> None:
    result = _apply("it", "call", function=f"{OWN}:fail")
    assert result == Dropped("call/raised", "ValueError: no luck with it")
    block = {"kind": "datatrove", "block": f"{OWN}:FailingBlock", "parameters": {"word": "luck"}}
    result = _pipeline(block).apply("it")
    assert result == Dropped("datatrove/raised", "ValueError: no luck with it")
    assert counts_as_bad(result.reason), "nobody meant to drop it"
    block["parameters"] = {"words": 1}
    with refused("step-unusable") as caught:
        _pipeline(block)
    assert "FailingBlock: TypeError: " in str(caught.value)


@pytest.mark.parametrize(
    ("function", "detail"),
    [
        ("leave", "SystemExit: 3"),
        ("fail_without_words", "WordlessError"),
        ("return_half_a_character", "it returned half a character: "),
    ],
)
def test_a_function_that_does_anything_costs_one_document(function: str, detail: str) -> None:
    result = _pipeline(
        {"kind": "call", "function": f"{OWN}:{function}"}, {"kind": "language", "keep": ["en"]}
    ).apply("it")
    assert isinstance(result, Dropped)
    assert (result.reason, result.detail[: len(detail)]) == ("call/raised", detail)


@pytest.mark.parametrize("parameters", [{"text": "a"}, {"at_least": 3}])
def test_parameters_that_the_function_has_not_are_refused(parameters: dict[str, Any]) -> None:
    with refused("step-unusable") as caught:
        _apply("a text", "call", function=f"{OWN}:drop_short", parameters=parameters)
    assert "drop_short: it cannot be called with a text, " in str(caught.value)
    assert "give the parameters that the function has" in str(caught.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), b"\xff"])
def test_parameters_that_the_manifest_would_not_give_back_are_refused(value: object) -> None:
    keys = {"function": f"{OWN}:drop_short", "parameters": {"least": value}}
    with pytest.raises(ValueError, match="texts, finite numbers, lists and mappings"):
        STEPS["call"].model_validate(keys)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no.such.module:f", "No module named 'no'"),
        (f"{OWN}:nothing", "has no attribute 'nothing'"),
        (f"{OWN}:annotations", "it is a _Feature and no function"),
        ("math:sqrt", "it has no Python source"),
        ("builtins:str", "it has no Python source"),
        ("module_that_leaves:f", "SystemExit: usage"),
        (f"{OWN}:return_a_number", "it returned int and no text"),
    ],
)
def test_what_is_no_step_is_refused_by_name(
    path: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_that_leaves.py").write_text("raise SystemExit('usage')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with refused("step-unusable") as caught:
        _apply("a text", "call", function=path)
    assert path in str(caught.value)
    assert problem in str(caught.value)


def test_a_block_of_datatrove_filters() -> None:
    block = {"block": "datatrove.pipeline.filters:RegexFilter", "parameters": {"regex_exp": "bad"}}
    steps = _pipeline({"kind": "datatrove", **block})
    assert steps.apply("a good text") == "a good text"
    assert steps.apply("a bad text") == Dropped("datatrove/dropped")
    assert "datatrove 0." in STEPS["datatrove"].model_validate(block).fingerprint()


def test_code_that_changed_since_the_ingest_began_is_refused(
    tmp_path: Path, monkeypatch: Any
) -> None:
    module = tmp_path / "cleaning_of_mine.py"
    module.write_text("def clean(text):\n    return text\n")
    monkeypatch.syspath_prepend(tmp_path)
    section = {"kind": "call", "function": "cleaning_of_mine:clean"}
    described = STEPS["call"].model_validate(section).describe()
    assert StepPipeline([described]).apply("a") == "a"
    module.write_text("def clean(text):\n    return text + '!'\n")
    with refused("step-changed") as caught:
        StepPipeline([described])
    assert "install the same version on every node" in str(caught.value)


SETTINGS = IngestSettings(sequence_length=8, seed=0, max_document_bytes=100)


@pytest.mark.parametrize(
    ("function", "text", "expected"),
    [
        ("shout", b"ok", Record(7, b"OK", "web")),
        ("drop_short", b"short", Record(7, domain="web", reason="call/drop-short")),
        (
            "shout",
            "\u0149".encode() * 50,
            Record(7, reason="too-long", detail="a text of 150 bytes"),
        ),
    ],
)
def test_what_a_step_leaves_is_checked_like_what_was_read(
    function: str, text: bytes, expected: Record
) -> None:
    step = STEPS["call"].model_validate({"function": f"{OWN}:{function}"}).describe()
    settings = SETTINGS.model_copy(update={"steps": (step,)})
    found = apply_steps(StepPipeline((step,)), Record(7, text, "web"), settings)
    assert found == expected
    bad = Record(9, reason="invalid-json")
    assert apply_steps(StepPipeline((step,)), bad, settings) is bad


def _run_file(folder: Path, *steps: Any) -> Path:
    document = tiny_run(folder)
    document["corpora"]["steps"] = list(steps)
    return write_run(folder, document)


def test_a_run_file_names_its_steps_in_their_order(tmp_path: Path) -> None:
    path = _run_file(
        tmp_path, {"kind": "personal-data"}, {"kind": "c4-quality", "min_sentences": 1}
    )
    spec = load_run(path)
    assert [step.kind for step in spec.corpora.steps] == ["personal-data", "c4-quality"]
    again = type(spec).model_validate(spec.model_dump(mode="json"))
    assert again == spec, "the ledger's copy is the same"


@pytest.mark.parametrize(
    ("step", "field", "remedy"),
    [
        ({"kind": "gopher"}, "corpora.steps.0.kind", "gopher-quality"),
        ({}, "corpora.steps.0.kind", "gopher-quality"),
        ("gopher-quality", "corpora.steps.0.kind", "gopher-quality"),
        (
            {"kind": "c4-quality", "min_sentence": 1},
            "corpora.steps.0.min_sentence",
            "min_sentences",
        ),
        ({"kind": "call", "function": "nonsense"}, "corpora.steps.0.function", "import path"),
    ],
)
def test_a_wrong_step_is_named_with_its_place(
    tmp_path: Path, step: Any, field: str, remedy: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_run(_run_file(tmp_path, step))
    assert caught.value.field == field
    assert remedy in str(caught.value)
