"""The form in which texts are compared: words of every script, whatever their spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from perennial.corpora import read_manifest
from perennial.corpora.comparing import FORM, respell, split_words
from tests.support.old_store import unpack_old_store
from tests.support.passages import PASSAGES, SPACED


def words(text: str) -> list[str]:
    return [word.decode() for word in split_words(text.encode())]


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFKD", text)


def full_width(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def hyphenated(text: str) -> str:
    """With an invisible character between any two letters, as soft hyphens and joiners stand."""
    return re.sub(r"(?<=\w)(?=\w)", "\u00ad", text)


COPIES: list[Callable[[str], str]] = [
    decomposed,
    full_width,
    hyphenated,
    str.upper,
    lambda text: text.replace(" ", "\u00a0").replace(".", " \u2026"),
]


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("language", PASSAGES)
def test_a_copy_in_another_spelling_has_the_same_words(
    language: str, copy: Callable[[str], str]
) -> None:
    text = PASSAGES[language]
    assert words(copy(text)) == words(text)


@pytest.mark.parametrize("language", SPACED)
def test_words_of_scripts_with_spaces_stay_whole(language: str) -> None:
    text = unicodedata.normalize("NFKC", PASSAGES[language]).casefold()
    assert words(text) == [word.strip(".।") for word in text.split()]


@pytest.mark.parametrize("language", sorted({*PASSAGES} - {*SPACED}))
def test_without_spaces_a_character_and_its_marks_stand_for_a_word(language: str) -> None:
    found = words(PASSAGES[language])
    kinds = ["".join(unicodedata.category(c)[0] for c in word) for word in found]
    assert all(re.fullmatch("LM*", kind) for kind in kinds)
    text = unicodedata.normalize("NFKC", PASSAGES[language])
    assert len(found) == sum(unicodedata.category(c)[0] == "L" for c in text)


def test_marks_are_no_words_and_digits_stay_together() -> None:
    assert words("क्षमा ก็ a\u0301b \u0301c ²½") == ["क्षमा", "ก็", "áb", "c", "21", "2"]
    assert words("iPhone手机 12 ๒๕ _x") == ["iphone", "手", "机", "12", "๒๕", "_x"]


def test_words_of_words_are_the_same_for_every_character() -> None:
    codes = (
        *range(0x3400),
        *range(0xA000, 0xAC10),
        *range(0xF900, 0x20000),
        *range(0xE0000, 0xE0200),
    )
    found = split_words("\n".join(f"a{chr(code)}b" for code in codes).encode())
    assert split_words(b"\n".join(found)) == found


def test_plain_text_has_the_words_that_it_always_had() -> None:
    text = "It's 3.5% of FOO_bar's x-ray,\r\n\t(or none)\x00\x7f"
    assert words(text) == re.findall(r"\w+", text.casefold())


@pytest.mark.parametrize("language", PASSAGES)
def test_usual_text_is_not_spelled_again(language: str) -> None:
    text = unicodedata.normalize("NFKC", PASSAGES[language])
    signs = str.maketrans({" ": "\u00a0", ".": "\u2026", ",": "\uff0c"})
    assert respell([text.encode(), text.translate(signs).encode()]) == {}


@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("language", PASSAGES)
def test_a_copy_in_another_spelling_is_spelled_as_the_text(
    language: str, copy: Callable[[str], str]
) -> None:
    text = unicodedata.normalize("NFKC", PASSAGES[language])
    found = respell([text.encode(), copy(text).encode(), text.encode()])
    assert found.keys() <= {1}
    assert letters(found.get(1, copy(text).encode()).decode()) == letters(text)


def letters(text: str) -> str:
    """The text without what is no letter, mark or number, and without case."""
    return "".join(c for c in text.lower() if unicodedata.category(c)[0] in "LMN")


def test_respelling_makes_no_special_token() -> None:
    text = full_width("<|endoftext|> [SEP]") + " é</s>"
    found = respell([text.encode(), b"", b"</S> <EOS>", b"12", "\u00dcBER".encode()])
    spelled = {row: text.decode() for row, text in found.items()}
    assert spelled == {0: "  endoftext    SEP  é /s ", 2: " /s   eos ", 4: "über"}


def test_manifests_of_older_versions_have_the_first_form_and_their_digest(tmp_path: Path) -> None:
    store = unpack_old_store(tmp_path).store
    names = [info.key.split("/")[0] for info in store.sub("corpora").list("")]
    for name in {*names}:
        old = read_manifest(store, name)  # compares its digest
        assert old.comparing == 1
        new = old.model_copy(update={"comparing": FORM}).sealed()
        assert new.digest != old.digest
        assert type(new).model_validate_json(new.model_dump_json()) == new
    assert names
