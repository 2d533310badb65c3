"""The section `sources` of the run file: places that new data is pulled from, and times."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_serializer,
    model_validator,
)

from perennial.config.cron import Duration, TimetableText, parse_duration
from perennial.fields import FREE, ExpandedText, PathText, Section
from perennial.redaction import HIDDEN, hide_secrets

_SIZE = re.compile(r"(\d+)\s*(|[kMGT]|[KMGT]i)B")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SCALE |= {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def parse_size(value: Any) -> int:
    """Read `0`, `500 kB`, `10 MB`, `8 MiB` or `2 GB` as bytes.

    Raises:
        ValueError: the value is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return 0
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size such as 500 kB, 10 MB or 2 GB")
    return int(match[1]) * _SCALE[match[2]]


def show_size(size_bytes: int) -> str:
    """Return a size, in bytes, as the text that `parse_size` reads."""
    for unit in ("T", "G", "M", "k", "Ti", "Gi", "Mi", "Ki"):
        if size_bytes and size_bytes % _SCALE[unit] == 0:
            return f"{size_bytes // _SCALE[unit]} {unit}B"
    return f"{size_bytes} B"


Size = Annotated[
    int,
    BeforeValidator(parse_size),
    PlainSerializer(show_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "$comment": "size",
            "anyOf": [{"type": "string", "pattern": f"^{_SIZE.pattern}$"}, {"const": 0}],
        }
    ),
]


@dataclass(frozen=True)
class FeedHost:
    """A host that a feed may name besides its own.

    Attributes:
        name: of the host.
        port: the only one that is allowed; None for those of http and https.
        plain: whether http is allowed where the index is read over https.
    """

    name: str
    port: int | None
    plain: bool

    def rename(self, name: str) -> FeedHost:
        """Return the host under another spelling of its name."""
        return replace(self, name=name)

    def __str__(self) -> str:
        name = f"[{self.name}]" if ":" in self.name else self.name
        port = "" if self.port is None else f":{self.port}"
        return f"{'http://' if self.plain else ''}{name}{port}"


def parse_feed_host(value: Any) -> FeedHost:
    """Read `cdn.example.org`, `cdn.example.org:8443` or `http://mirror.example.org`.

    Raises:
        ValueError: the value is none of them.
    """
    if isinstance(value, FeedHost):
        return value
    text = value if isinstance(value, str) else ""
    plain = text.startswith("http://")
    place = text.removeprefix("http://")
    parts = urlsplit(f"//{place}")
    if not parts.hostname or parts.netloc != place or set(place) & set("@*\\ "):
        raise ValueError(
            f"{value!r} is no host; write cdn.example.org, with :PORT for a port of its own, or "
            "http://cdn.example.org to allow plain http"
        )
    return FeedHost(parts.hostname, parts.port, plain)


FeedHostText = Annotated[
    FeedHost,
    BeforeValidator(parse_feed_host),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string"}),
]
ParameterName = Annotated[str, Field(pattern=r"^[^&=?#\s]+$"), AfterValidator(str.lower)]
SourceName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class SourceSpec(Section):
    """A place that new data comes from: give exactly one of prefix, index and command."""

    prefix: Annotated[PathText | None, FREE] = None
    """a folder or a bucket's url; every new or changed file in it is new data"""
    index: Annotated[ExpandedText | None, FREE] = None
    """the http(s) address of a page of links to files, or of a JSON list of files"""
    command: Annotated[tuple[str, ...] | None, FREE] = None
    """a program and its arguments, run without a shell; it writes files into the folder $OUT"""
    schedule: Annotated[TimetableText, FREE]
    """times to pull: a period such as `6h` or `1d`, or five cron fields such as `0 2 * * *`, in
    UTC"""
    match: Annotated[str, FREE] = "*"
    """pattern of the file names to take, such as `*.jsonl.gz`"""
    minimum: Annotated[Size, FREE] = 0
    """bytes that must be pulled before they land as a corpus, such as `10 MB`"""
    max_age: Annotated[Duration | None, FREE] = None
    """longest time that data waits for `minimum`, such as `7d`; default no limit"""
    timeout: Annotated[Duration, FREE] = Field(default_factory=lambda: parse_duration("1h"))
    """longest time of one pull: the run time of a command, or the copying of files, of which the
    rest then comes with the next pull"""
    file_timeout: Annotated[Duration, FREE] = Field(default_factory=lambda: parse_duration("30m"))
    """longest time that the copying of one file may take, with all its attempts"""
    max_file: Annotated[Size, FREE] = parse_size("10 GB")
    """bytes of the largest file that is taken"""
    max_pull: Annotated[Size, FREE] = parse_size("100 GB")
    """bytes that one pull copies at most, at least `max_file`; the rest comes with the next pull"""
    hosts: Annotated[tuple[FeedHostText, ...], FREE] = ()
    """hosts besides the index's own that its files, and redirects, may be on: `cdn.example.org`,
    `cdn.example.org:8443`, or `http://cdn.example.org` to allow plain http under an index of
    https"""
    private: Annotated[bool, FREE] = False
    """true lets an index and its hosts have private addresses, such as 10.0.0.7 or localhost; an
    index that is itself written as one needs it only for others"""
    proxy: Annotated[bool, FREE] = False
    """true sends requests through the proxy that HTTP_PROXY or HTTPS_PROXY names. The proxy looks
    up the hosts, so that private addresses behind it cannot be refused"""
    unsized: Annotated[bool, FREE] = False
    """true takes files whose end the server does not mark (no Content-Length, not chunked) and of
    which the index gives neither `bytes` nor `sha256`: one that was cut off looks like a whole
    one"""
    secrets: Annotated[tuple[ParameterName, ...], FREE] = ()
    """further query parameters of addresses that hold a secret, or change while the file stays the
    same; those called token, key, signature, expires and the like are known"""

    @field_serializer("index", when_used="json")
    def _hide_secrets(self, index: str | None) -> str | None:
        """Return the index as the store and MLflow keep it."""
        if index is None:
            return None
        for name in self.secrets:
            pattern = rf"(?<=[?&])({re.escape(name)})=[^&#]+"
            index = re.sub(pattern, rf"\1={HIDDEN}", index, flags=re.IGNORECASE)
        return hide_secrets(index)

    @model_validator(mode="after")
    def _one_of_three(self) -> SourceSpec:
        given = [self.prefix, self.index, self.command]
        if sum(value is not None for value in given) != 1 or self.command == ():
            raise ValueError("a source has exactly one of prefix, index and command; give one")
        return self

    @model_validator(mode="after")
    def _fields_of_the_kind(self) -> SourceSpec:
        if self.index is None:
            for name in ("hosts", "private", "proxy", "unsized", "secrets"):
                if getattr(self, name):
                    raise ValueError(f"{name} is used with `index` alone; leave it out")
        if self.max_pull < self.max_file:
            raise ValueError(
                f"max_pull {show_size(self.max_pull)} is less than max_file "
                f"{show_size(self.max_file)}, so that such a file never fits; raise max_pull or "
                "lower max_file"
            )
        return self

    @model_validator(mode="after")
    def _plain_address(self) -> SourceSpec:
        if self.index is None:
            return self
        parts = urlsplit(self.index)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"index {parts.path!r} is no http address; write https://host/path/")
        if "@" in parts.netloc:
            # The run file is kept in the ledger and in MLflow.
            raise ValueError(
                "index holds a user or password; "
                f"write it without them and put them into ~/.netrc for {parts.hostname}"
            )
        return self
