"""Keeping credentials out of what is sent to MLflow and out of warnings."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
_SHORTEST_SECRET = 8  # a shorter value of a variable like X_KEY is a word that occurs anywhere
_SECRET_VARIABLE = re.compile(r"(password|passwd|secret|token|key|credentials?)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    # Not every token or key: `end_of_document_token` is a parameter that people want to see.
    r"(password|passwd|secret|credentials?|(api|auth|access|secret|session)[_-]?(key|token))$",
    re.IGNORECASE,
)
_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_SIGNATURE = re.compile(
    r"(?<=[?&])(X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|Signature|sig)=[^&\s'\"]+",
    re.IGNORECASE,
)


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """`text` without URL credentials, URL signatures and values of secret environment variables.

    A variable is secret when its name ends in password, secret, token, key or credentials.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    return _SIGNATURE.sub(rf"\1={HIDDEN}", _URL_USER.sub(HIDDEN, text))


def hide_values(values: Mapping[str, object]) -> dict[str, str]:
    """Parameters or tags as text; those whose own name says that they are secret are hidden."""
    return {
        name: HIDDEN if _SECRET_VALUE.search(name) else hide_secrets(str(value))
        for name, value in values.items()
    }


def hide_in_file(data: bytes) -> bytes:
    """A text file without secrets; any other file as it is."""
    try:
        return hide_secrets(data.decode()).encode()
    except UnicodeDecodeError:
        return data
