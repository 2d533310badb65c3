"""The ways of a notification: a webhook, e-mail, a program. Each tries once, in a bounded time.

A secret is read when it is needed, and taken out of every message about a failure.
"""

from __future__ import annotations

import json
import os
import signal
import smtplib
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from email.message import EmailMessage
from email.policy import default
from email.utils import formatdate, make_msgid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from perennial.causes import describe
from perennial.redaction import HIDDEN, hide_secrets

if TYPE_CHECKING:
    from perennial.config.notify import EmailSpec, NotifySpec
    from perennial.telemetry.notices import Notice

_SHOWN = 200
"""characters of what a server or a program says about a failure"""

_LONGEST_LINE = 990
"""of a message; the protocol allows 998"""


class Undelivered(Exception):
    """A notification was not taken; says why in one line, without a secret."""


def read_secret(reference: str) -> str:
    """Return the secret of a reference, `env:NAME` or `file:/path`.

    Raises:
        Undelivered: there is none.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        secret = os.environ.get(name, "").strip()
        problem = f"the environment variable {name} is not set"
    else:
        try:
            secret, problem = Path(name).read_text(encoding="utf-8").strip(), f"{name} is empty"
        except (OSError, UnicodeDecodeError) as unreadable:
            why = getattr(unreadable, "strerror", None) or "it is no text"
            raise Undelivered(f"{name} cannot be read ({why})") from None
    if not secret:
        raise Undelivered(problem)
    return secret


class Channel(ABC):
    """A way of notifications."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def reference(self) -> str | None:
        """Return where its secret is; None for a way without one."""

    @abstractmethod
    def send(self, notice: Notice, seconds: float) -> None:
        """Send a notification; may raise anything where it is not taken.

        Args:
            notice: the notification.
            seconds: time-out of each wait.
        """

    def deliver(self, notice: Notice, seconds: float) -> None:
        """Send a notification.

        Raises:
            Undelivered: it was not taken.
        """
        secrets = [] if self.reference is None else [*_spellings(read_secret(self.reference))]
        try:
            self.send(notice, seconds)
        except Exception as failure:
            line = hide_secrets(describe(failure))
            for secret in secrets:
                line = line.replace(secret, HIDDEN)
            raise Undelivered(line) from None


def _spellings(secret: str) -> Iterator[str]:
    """Yield a secret, and what libraries show of one that is an address."""
    yield secret
    with suppress(ValueError):
        parts = urlsplit(secret)
        if parts.netloc and len(parts.path) > 1:
            yield parts.path
        if parts.query:
            yield parts.query


class Webhook(Channel):
    """An incoming webhook of Slack, or of what takes the same body."""

    name = "webhook"

    def __init__(self, reference: str) -> None:
        self._reference = reference

    @property
    def reference(self) -> str:
        """Return where the address is."""
        return self._reference

    def send(self, notice: Notice, seconds: float) -> None:
        """Post a notification; see `Channel.send`."""
        address = read_secret(self._reference)
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Undelivered(f"{self._reference} is no http(s) address")
        lines = notice.text.splitlines()[1:]
        text = _escaped("\n".join([f"*{notice.headline}*", *lines, notice.store]))
        request = urllib.request.Request(
            address,
            data=json.dumps({"text": text}).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "perennial"},
            method="POST",
        )
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds):
                pass
        except urllib.error.HTTPError as refused:
            with refused:
                said = refused.read(_SHOWN).decode(errors="replace")
            line = " ".join(said.split())
            raise Undelivered(f"HTTP {refused.code}" + (f": {line}" if line else "")) from None
        except urllib.error.URLError as unreachable:
            raise Undelivered(str(unreachable.reason)) from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Lets no redirect carry the notification to another address."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none."""


def _escaped(text: str) -> str:
    """Return a text in which nothing is a mention or a link of Slack's."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Email(Channel):
    """E-mail by an SMTP server."""

    name = "email"

    def __init__(self, spec: EmailSpec) -> None:
        self._spec = spec

    @property
    def reference(self) -> str | None:
        """Return where the password is."""
        return self._spec.password

    def send(self, notice: Notice, seconds: float) -> None:
        """Give a message to the server; see `Channel.send`."""
        spec, message = self._spec, EmailMessage(default.clone(max_line_length=_LONGEST_LINE))
        message["Subject"] = " ".join(f"[perennial] {notice.headline}".split())[:_SHOWN]
        message["From"], message["To"] = spec.sender, ", ".join(spec.to)
        message["Date"], message["Message-ID"] = formatdate(), make_msgid("perennial")
        message.set_content(f"{notice.text}\n\nrun   {notice.run}\nstore {notice.store}\n")
        context = ssl.create_default_context()
        connect: Callable[..., smtplib.SMTP] = smtplib.SMTP
        if spec.security == "tls":
            connect = partial(smtplib.SMTP_SSL, context=context)
        with connect(spec.host, spec.port, timeout=seconds) as server:
            if spec.security == "starttls":
                server.starttls(context=context)
            if spec.user is not None and spec.password is not None:
                server.login(spec.user, read_secret(spec.password))
            server.send_message(message)


class Program(Channel):
    """A program of the user's, which reads the notification from its standard input."""

    name = "command"

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    @property
    def reference(self) -> None:
        """Return None: it has no secret."""
        return None

    def send(self, notice: Notice, seconds: float) -> None:
        """Run the program, and end it with all that it started; see `Channel.send`."""
        document = json.dumps(notice.to_dict()).encode()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
            given.write(document)
            given.seek(0)
            # In a session of its own, so that all that it starts can be ended with it.
            process = subprocess.Popen(
                self._command,
                stdin=given,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise Undelivered(f"{self._command[0]} took longer than {seconds:g} s") from None
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                last = lines[-1][-_SHOWN:] if lines else "it said nothing"
                raise Undelivered(f"{self._command[0]} ended with {code}: {last}")


def channels_of(spec: NotifySpec) -> list[Channel]:
    """Return the ways that a run file gives."""
    channels: list[Channel] = []
    if spec.webhook is not None:
        channels.append(Webhook(spec.webhook))
    if spec.email is not None:
        channels.append(Email(spec.email))
    if spec.command is not None:
        channels.append(Program(spec.command))
    return channels
