"""The section `notify`: no secret stands in a run file, and none is shown where somebody tries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perennial.config import RunSpec, load_run, parse
from perennial.config.notify import NotifySpec
from perennial.errors import InputError
from tests.support.tiny_run import tiny_run, write_run

EMAIL = {"to": ["a@example.org"], "sender": "b@example.org", "host": "mail"}
HUSH = "https://hooks.example.org/services/hush-hush"


@pytest.mark.parametrize(
    "notify",
    [
        {"webhook": HUSH},
        {"webhook": [HUSH]},
        {"webhook": {"url": HUSH}},
        {"webhook": f"env:{HUSH}"},
        HUSH,
        [HUSH],
        {"email": HUSH},
        {"email": {**EMAIL, "user": "me", "password": "hush-hush"}},
        {"email": {**EMAIL, "user": "me", "password": ["hush-hush"]}},
    ],
)
def test_a_secret_in_the_file_is_refused_and_not_shown(tmp_path: Path, notify: Any) -> None:
    with pytest.raises(InputError) as wrong:
        load_run(write_run(tmp_path, tiny_run(tmp_path) | {"notify": notify}))
    error = wrong.value
    assert error.field.startswith("notify")
    assert "hush" not in json.dumps(error.to_dict())
    assert error.code in ("invalid-value", "invalid-section")


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        ({"email": {**EMAIL, "user": "me"}}, "user and password belong together"),
        (
            {"email": {**EMAIL, "user": "me", "password": "env:P", "security": "none"}},
            "security none would send the password as plain text",
        ),
        ({"email": {**EMAIL, "to": []}}, "at least 1 item"),
        ({"email": {**EMAIL, "to": ["ops"]}}, "'ops' is not an address such as ops@example.org"),
        ({"command": []}, "at least 1 item"),
        ({"events": ["gates"]}, "'gate', 'failure'"),
        ({"timeout": "0s"}, "timeout is no time"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_happens(notify: Any, told: str) -> None:
    with pytest.raises(InputError) as wrong:
        parse(notify, NotifySpec, "run.yaml")
    assert told in str(wrong.value)


def test_references_alone_are_resolved_into_the_ledger(tmp_path: Path) -> None:
    notify = {
        "webhook": "env:OPS_HOOK",
        "email": {**EMAIL, "user": "me", "password": "file:/run/secrets/mail"},
        "command": ["page", "--team", "ops"],
        "events": ["gate"],
        "stall_after": "2h",
    }
    spec = RunSpec.model_validate(tiny_run(tmp_path) | {"notify": notify})
    assert spec.notify.has_a_way
    stored = spec.model_dump(mode="json")
    assert stored["notify"]["webhook"] == "env:OPS_HOOK"
    assert RunSpec.model_validate(stored) == spec
    assert not RunSpec.model_validate(tiny_run(tmp_path)).notify.has_a_way
