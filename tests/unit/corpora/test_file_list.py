"""Lists of files: as producers write them, and as a run keeps them."""

from __future__ import annotations

import json

import pytest

from perennial.corpora.file_list import (
    ListedFile,
    check_same_files,
    decode_list,
    encode_list,
    parse_list,
)
from tests.support.refusal import refused

A, B = "a" * 64, "b" * 64


def listed(content: object) -> tuple[ListedFile, ...] | None:
    return parse_list(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            {"files": [{"name": "a.txt", "bytes": 3, "sha256": A}]},
            (ListedFile("a.txt", 3, A),),
        ),
        (
            {"files": ["a.txt", "./b/c.txt"]},
            (ListedFile("a.txt", None), ListedFile("b/c.txt", None)),
        ),
        ({"files": [{"path": "a.txt", "size": 0}], "job": 7}, (ListedFile("a.txt", 0),)),
        (
            {"files": {"a.txt": {"size_bytes": 3, "sha256": A.upper()}, "b.txt": None}},
            (ListedFile("a.txt", 3, A), ListedFile("b.txt", None)),
        ),
        ({}, None),
        ({"files": []}, None),
        ({"files": 12}, None),
        ({"name": "SuccessData/1", "filenames": ["/warehouse/part-0"]}, None),
    ],
)
def test_the_lists_of_producers_are_read(
    content: object, expected: tuple[ListedFile, ...] | None
) -> None:
    assert listed(content) == expected


@pytest.mark.parametrize(
    "data", [b"", b"done 2026-11-29\n", b"a.txt\nb.txt\n", b"[1]", b"\xff\xfe"]
)
def test_what_is_no_object_is_no_list(data: bytes) -> None:
    assert parse_list(data) is None


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'{"files": [{"name": "a.t', "Unterminated"),
        (b"{not json}", "Expecting property name"),
        (b'{"files": ["s3://bucket/a.txt"]}', "no path below"),
        (b'{"files": ["/data/a.txt"]}', "no path below"),
        (b'{"files": [""]}', "no path below"),
        (b'{"files": [{"bytes": 3}]}', "no path below"),
        (b'{"files": [{"name": "a.txt", "bytes": -1}]}', "no size"),
        (b'{"files": [{"name": "a.txt", "bytes": true}]}', "no size"),
        (b'{"files": [{"name": "a.txt", "bytes": "3"}]}', "no size"),
        (b'{"files": [{"name": "a.txt", "sha256": "abc"}]}', "no sha256"),
        (b'{"files": ["a.txt", "./a.txt"]}', "twice"),
    ],
)
def test_a_list_that_is_half_or_points_elsewhere_is_wrong(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_list(data)


def test_a_kept_list_is_the_same_for_the_same_files() -> None:
    files = [ListedFile("b.txt", 2, B), ListedFile("a.txt", 1, etag="e")]
    assert encode_list(files) == encode_list(files[::-1])
    assert decode_list(encode_list(files)) == files[::-1]


@pytest.mark.parametrize(
    ("then", "now", "code"),
    [
        (ListedFile("a", 1, A), ListedFile("a", 1, A, "other"), None),
        (ListedFile("a", 1, A), ListedFile("a", 1, "", "other"), None),
        (ListedFile("a", None), ListedFile("a", 1, "", "e"), None),
        (ListedFile("a", 1, etag="e"), ListedFile("a", 1, A, "e"), None),
        (ListedFile("a", 1, A), ListedFile("b", 1, A), "file-vanished"),
        (ListedFile("a", 1, A), ListedFile("a", 2, A), "file-changed"),
        (ListedFile("a", 1, A), ListedFile("a", 1, B), "file-changed"),
        (ListedFile("a", 1, etag="e"), ListedFile("a", 1, "", "f"), "file-changed"),
        (ListedFile("a", 1, etag="e"), ListedFile("a", 1, A, "f"), "file-changed"),
    ],
)
def test_a_file_is_the_same_by_its_digest_or_else_its_etag(
    then: ListedFile, now: ListedFile, code: str | None
) -> None:
    if code is None:
        check_same_files("inbox/en", [then], [now], promised=True)
        return
    with refused(code, "a") as caught:
        check_same_files("inbox/en", [then], [now], promised=True)
    reason = code.removeprefix("file-")
    assert caught.value.problem.startswith(f"{reason}: its marker's list has {then}; ")
    assert "perennial retry RUN_FILE en" in caught.value.remedy
