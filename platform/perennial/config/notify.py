"""The section `notify` of the run file: who is notified of what happened to the run, and how."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from perennial.config.cron import Duration, parse_duration
from perennial.fields import FREE, Section

Happening = Literal["gate", "failure", "release", "source", "stall"]

_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:/\S+")
_ADDRESS = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+")


def check_reference(value: Any) -> str:
    """Return a reference to a secret.

    Raises:
        ValueError: it is none. The text does not have the value, which may be the secret itself.
    """
    if not isinstance(value, str) or not _REFERENCE.fullmatch(value):
        raise ValueError(
            "a run file holds no secret and no address that is one, and this is not the name of "
            "one: write env:NAME for an environment variable, or file:/path"
        )
    return value


def _check_mail_address(value: str) -> str:
    if not _ADDRESS.fullmatch(value):
        raise ValueError(f"{value!r} is not an address such as ops@example.org")
    return value


SecretReference = Annotated[
    str,
    BeforeValidator(check_reference),
    WithJsonSchema({"type": "string", "pattern": f"^({_REFERENCE.pattern})$"}),
]
MailAddress = Annotated[
    str,
    AfterValidator(_check_mail_address),
    WithJsonSchema({"type": "string", "pattern": f"^{_ADDRESS.pattern}$"}),
]


class _WithSecrets(Section):
    """A section in whose place a user may write a secret, which no message may show."""

    @model_validator(mode="before")
    @classmethod
    def _is_section(cls, value: object) -> object:
        if not isinstance(value, dict | cls):
            raise ValueError("is a section with keys of its own")
        return value


class EmailSpec(_WithSecrets):
    """A server that e-mail is given to."""

    to: Annotated[tuple[MailAddress, ...], Field(min_length=1), FREE]
    """addresses that are written to, such as `[ops@example.org]`"""
    sender: Annotated[MailAddress, FREE]
    """address of the sender, such as `perennial@example.org`"""
    host: Annotated[str, Field(min_length=1), FREE]
    """name of the SMTP server"""
    port: Annotated[int, Field(ge=1, le=65535), FREE] = 587
    """its port; usually 587 with starttls, 465 with tls, 25 with none"""
    security: Annotated[Literal["starttls", "tls", "none"], FREE] = "starttls"
    """starttls (the connection is encrypted before anything is said), tls (from its first byte) or
    none, for a server on the same machine"""
    user: Annotated[str | None, FREE] = None
    """name that the server asks for; default: it asks for none"""
    password: Annotated[SecretReference | None, FREE] = None
    """where the password of `user` is: env:NAME of an environment variable, or file:/path"""

    @model_validator(mode="after")
    def _login_is_whole(self) -> EmailSpec:
        if (self.user is None) != (self.password is None):
            raise ValueError("user and password belong together; give both or neither")
        if self.user is not None and self.security == "none":
            raise ValueError(
                "security none would send the password as plain text; use starttls or tls"
            )
        return self


class NotifySpec(_WithSecrets):
    """Notifications: each is tried once by every way that is given, and never holds up the run."""

    events: Annotated[tuple[Happening, ...], FREE] = (
        "gate",
        "failure",
        "release",
        "source",
        "stall",
    )
    """what is sent: gate (a stage that a gate stopped), failure (of a corpus or a release, or a
    look of `watch` that could do nothing), release (one was made), source (one that failed three
    times in a row, or a file of it), stall (training without a step)"""
    webhook: Annotated[SecretReference | None, FREE] = None
    """where the address of an incoming webhook of Slack, Mattermost or the like is: env:NAME of an
    environment variable, or file:/path"""
    email: EmailSpec | None = None
    """a server that e-mail is given to; default: none"""
    command: Annotated[Annotated[tuple[str, ...], Field(min_length=1)] | None, FREE] = None
    """a program and its arguments, run without a shell; it reads the notification as JSON from its
    standard input"""
    timeout: Annotated[Duration, FREE] = Field(default_factory=lambda: parse_duration("10s"))
    """longest time that one notification may take, and that a command waits for the last ones at
    its end"""
    stall_after: Annotated[Duration, FREE] = Field(default_factory=lambda: parse_duration("30m"))
    """time without an optimizer step after which training counts as stalled"""

    @model_validator(mode="after")
    def _times_are_positive(self) -> NotifySpec:
        for name in ("timeout", "stall_after"):
            if getattr(self, name) <= timedelta(0):
                raise ValueError(f"{name} is no time; give at least 1s")
        return self

    @property
    def has_a_way(self) -> bool:
        """Return whether anything is sent."""
        ways = (self.webhook, self.email, self.command)
        return bool(self.events) and any(way is not None for way in ways)
