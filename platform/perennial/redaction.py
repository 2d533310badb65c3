"""Keeping credentials out of what is stored, sent to MLflow or shown."""

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
_URL_USER = re.compile(r"(?<=://)[^/?#\s'\"]+(?=@)")
# Names of query parameters: signed addresses of AWS, Google, Azure, Alibaba, CloudFront, Akamai and
# nginx, and what web services call their keys.
_SECRET_PARAMETER = (
    r"(?:[\w.%~-]*(?:password|passwd|passphrase|secret|token|signature|credential|auth(?!or(?!i[sz]))|jwt"
    r"|session|api[_.-]?key|access[_.-]?key)[\w.%~-]*"
    r"|[\w.%~-]*[_.-]key|x-(?:amz|goog|oss|cos|obs|ms)-[\w-]+|key-pair-id|googleaccessid"
    r"|key|pass|pwd|pin|code|sid|sig|sign|hmac|md5|hash|policy|expires?|exp|otp|nonce"
    r"|hdnea|hdnts|__gda__)"
)
_SECRET_NAME = re.compile(_SECRET_PARAMETER, re.IGNORECASE)
_SECRET_QUERY = re.compile(
    # `;` also ends the `&amp;` of a page.
    rf"(?<=[?&;#])({_SECRET_PARAMETER})=[^&#\s'\"<>]+",
    re.IGNORECASE,
)


def hide_secrets(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a text without credentials of URLs and values of secret environment variables.

    Of URLs the user information goes, and the value of every query parameter whose name says that
    it is secret. A variable is secret when its name ends in password, secret, token, key or
    credentials.

    Args:
        text: what may hold secrets.
        environment: the variables; default those of this process.
    """
    text = hide_variables(text, environment)
    return _SECRET_QUERY.sub(rf"\1={HIDDEN}", _URL_USER.sub(HIDDEN, text))


def hide_variables(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a text without the values of secret environment variables; see `hide_secrets`."""
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    return text


def is_secret_parameter(name: str) -> bool:
    """Return whether a query parameter of this name holds a secret."""
    return _SECRET_NAME.fullmatch(name) is not None


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
