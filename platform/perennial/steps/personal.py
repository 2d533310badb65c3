"""Personal data: addresses of people and of their machines."""

from __future__ import annotations

import ipaddress
import re
from typing import ClassVar, Literal

from perennial.steps.base import STEPS, Apply, Dropped, RawDocument, StepConfig

# Letters of alphabets that set words apart by spaces: Latin, Greek, Cyrillic. In Chinese, Japanese
# or Thai an address has words right before and behind it, which are no part of it.
_LETTERS = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u052f\u1e00-\u1fff"
_WORD = rf"{_LETTERS}0-9_"
_LOCAL = rf"{_LETTERS}0-9!#$%&'*+/=?^_`{{|}}~-"
_LABEL = rf"[{_LETTERS}0-9](?:[{_LETTERS}0-9-]*[{_LETTERS}0-9])?"
_TOP = rf"(?:[A-Za-z]{{2,}}|xn--[A-Za-z0-9-]*[A-Za-z0-9]|[{_LETTERS}]{{2,}})"
_DOMAIN = re.compile(rf"@(?:{_LABEL}\.)+{_TOP}(?![{_WORD}])")
_REVERSED_LOCAL = re.compile(rf"[{_LOCAL}]+(?:\.[{_LOCAL}]+)*")
_LOCAL_BEGIN = re.compile(rf"(?<![{_WORD}])(?=[{_WORD}])|(?<=[{_WORD}])(?![{_WORD}.])")
# A period behind an address ends a sentence, unless it goes on as a longer number does.
_IP = re.compile(r"(?<!\d)(?<!\d\.)(?:\d{1,3}\.){3}\d{1,3}(?!\d)(?!\.\d)")


@STEPS.register("personal-data")
class PersonalDataConfig(StepConfig):
    """Replace e-mail addresses, and public addresses of machines (IPv4), by constant ones.

    Private addresses such as 192.168.0.1 stay: they name no machine. A number of that form, such
    as the version 1.2.3.4, is replaced as well. E-mail addresses may have the letters of Latin,
    Greek and Cyrillic. The replacements are of ranges that are reserved for documentation (RFC
    2606, RFC 5737).
    """

    version: ClassVar[int] = 2

    kind: Literal["personal-data"] = "personal-data"
    """name of the step"""
    email: str | None = "email@example.com"
    """what stands for an e-mail address; null leaves them"""
    ip: str | None = "192.0.2.1"
    """what stands for a public IPv4 address; null leaves them"""

    def build(self) -> Apply:
        """Return the step as a function."""
        return self._replace

    def _replace(self, document: RawDocument) -> str | Dropped:
        text, email, ip = document.text, self.email, self.ip
        if email is not None and "@" in text:
            text = _replace_emails(text, email)
        if ip is not None:
            text = _IP.sub(lambda match: ip if _is_public(match[0]) else match[0], text)
        return text


def _replace_emails(text: str, email: str) -> str:
    """Return a text with a constant in the place of every e-mail address.

    An address is looked for from its sign backwards. From its beginning on, every part of a long
    run without a sign (encoded data, a ruled line) would be searched through to its end.
    """
    parts, done = [], 0
    for domain in _DOMAIN.finditer(text):
        at = domain.start()
        before = text[max(done, text.rfind("@", done, at) + 1) : at]
        local = _REVERSED_LOCAL.match(before[::-1])
        begin = local and _LOCAL_BEGIN.search(text, at - len(local[0]), at)
        if begin and begin.start() < at:
            parts += [text[done : begin.start()], email]
            done = domain.end()
    return "".join([*parts, text[done:]])


def _is_public(address: str) -> bool:
    try:
        return ipaddress.IPv4Address(address).is_global
    except ValueError:
        return False
