"""Addresses of feeds: what may be fetched, and how an address is stored without its secrets."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import SplitResult, unquote_plus, urlsplit

import requests

from perennial.config.sources import FeedHost, SourceSpec
from perennial.errors import PullRefused
from perennial.redaction import HIDDEN, hide_secrets, hide_variables, is_secret_parameter

IPAddress = IPv4Address | IPv6Address

_PORTS = {"http": 80, "https": 443}
_PRIVATE = [
    *map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")),
    *map(ip_network, ("127.0.0.0/8", "::1/128", "fc00::/7")),
]
# Where clouds give a machine its credentials; other such addresses are link-local.
_METADATA = [*map(ip_address, ("100.100.100.200", "fd00:ec2::254"))]
_NAT64 = ip_network("64:ff9b::/96")
_ODD_IN_URL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
# Parameters that sign an address of Azure beside `sig`; as names alone they say nothing.
_AZURE = re.compile("s[vspeirt]|srt|spr|sip|sk(oid|tid|t|e|s|v)")
_ANY_QUERY = re.compile(r"(?<=[?&])([\w.%~;-]+=)?[^&\s'\"<>]+")
_DIGEST = re.compile(r"~[0-9a-f]{12}")
_HARMLESS = re.compile(
    "page|part|shard|split|format|lang|language|year|month|day|date|offset|limit"
)
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9_.-]{1,32}")


@dataclass(frozen=True)
class AddressRules:
    """Addresses that a source may fetch from.

    Attributes:
        index: the index of the run file, in canonical form.
        hosts: other hosts of the run file.
        private: whether private addresses may be connected to.
        secrets: names of query parameters that are secret, for messages.
    """

    index: SplitResult
    hosts: tuple[FeedHost, ...]
    private: bool
    secrets: frozenset[str]

    @classmethod
    def of(cls, spec: SourceSpec) -> AddressRules:
        """Return the rules of a source of kind `index`."""
        index = canonical_url(spec.index or "")
        hosts = tuple(host.rename(_canonical_host(host.name)) for host in spec.hosts)
        return cls(urlsplit(index), hosts, spec.private, frozenset(spec.secrets))

    def check_url(self, url: str) -> str:
        """Return the canonical form of an address that the source may fetch.

        Raises:
            PullRefused: it may not; says why and how to allow it.
        """
        shown = show_address(url, self.secrets)
        if _ODD_IN_URL.search(url):
            raise PullRefused(f"{shown} holds a backslash or a control character")
        try:
            canonical = canonical_url(url)
            parts = urlsplit(canonical)
            port = port_of(parts)
        except ValueError as wrong:
            raise PullRefused(f"{shown} is no address: {hide_addresses(str(wrong))}") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise PullRefused(f"{shown} is no http address")
        if "@" in parts.netloc:
            raise PullRefused(f"{shown} holds a user or password, which no feed may choose")
        try:
            self.check_place(parts.scheme, parts.hostname, port)
            for address in _literal(parts.hostname):
                self.check_peer(parts.hostname, port, address)
        except PullRefused as refused:
            raise PullRefused(f"{shown} {refused}") from None
        return canonical

    def check_place(self, scheme: str, name: str, port: int) -> None:
        """Raise PullRefused unless a connection to this host and port may be opened."""
        host, own = _plain_host(name), self._own_host()
        hosts = [other for other in self.hosts if _plain_host(other.name) == host]
        if host != own and not hosts:
            raise PullRefused(f"is on another host; add {host} to `hosts` to allow it")
        plain = any(other.plain for other in hosts)
        if scheme == "http" and self.index.scheme == "https" and not plain:
            remedy = f"add http://{host} to `hosts` to allow it"
            raise PullRefused(f"is read over http, unlike the index; {remedy}")
        ports = set()
        if host == own:
            ports = {port_of(self.index)}
            ports |= set() if self._is_literal_private() else set(_PORTS.values())
        for other in hosts:
            ports |= set(_PORTS.values()) if other.port is None else {other.port}
        if port not in ports:
            raise PullRefused(f"is on another port; add {host}:{port} to `hosts` to allow it")

    def check_peer(self, name: str, port: int, address: IPAddress) -> None:
        """Raise PullRefused unless the source may connect to this address.

        Args:
            name: the host that has the address.
            port: the port to connect to.
            address: the address.
        """
        peer = unwrap(address)
        if is_public(peer):
            return
        private = peer not in _METADATA and any(
            peer.version == network.version and peer in network for network in _PRIVATE
        )
        own = (_plain_host(name), port) == (self._own_host(), port_of(self.index))
        if private and (self.private or (own and self._is_literal_private())):
            return
        remedy = "; `private: true` allows it" if private else ""
        raise PullRefused(f"leads to the address {peer}, which is not public{remedy}")

    def _own_host(self) -> str:
        return _plain_host(self.index.hostname or "")

    def _is_literal_private(self) -> bool:
        """Return whether the run file itself shows that the index is on a private address."""
        name = self._own_host()
        try:
            return name == "localhost" or not is_public(unwrap(ip_address(name)))
        except ValueError:
            return False


def canonical_url(url: str) -> str:
    """Return an address as it is requested: host in ASCII, everything else quoted.

    Raises:
        ValueError: it cannot be requested.
    """
    request = requests.PreparedRequest()
    request.prepare_url(url, None)
    return request.url or ""


def _canonical_host(name: str) -> str:
    place = f"[{name}]" if ":" in name else name
    return urlsplit(canonical_url(f"http://{place}/")).hostname or name


def is_public(address: IPAddress) -> bool:
    """Return whether an address is reachable from everywhere, and one machine's."""
    return address.is_global and not address.is_multicast and not address.is_reserved


def unwrap(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address leads to; the address itself without one."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def _plain_host(name: str) -> str:
    return name.lower().rstrip(".")


def port_of(parts: SplitResult) -> int:
    """Return the port of an address. Raises ValueError for one that is no number."""
    return parts.port or _PORTS.get(parts.scheme, 0)


def _literal(name: str) -> Iterator[IPAddress]:
    """Yield the address that a host's name is, in any form that systems read as one."""
    try:
        yield ip_address(name)
    except ValueError:
        with suppress(OSError, ValueError):
            yield IPv4Address(socket.inet_aton(name))  # 0x7f.1, 017700000001, 2130706433


def storable(text: str) -> str:
    """Return a text that can be encoded; names of files may hold bytes that are no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def show_address(url: str, secrets: Set[str] = frozenset()) -> str:
    """Return an address as it may be stored and shown.

    The user goes; a parameter that is known to be secret keeps its name alone; another one keeps a
    digest of its value, so that `?id=1` and `?id=2` stay two files.

    Args:
        url: the address, or one that this function returned.
        secrets: lower-case names of further parameters that are secret.
    """
    return _rewrite(storable(url), secrets, shown=True)


def identify(origin: str, secrets: Set[str] = frozenset()) -> str:
    """Return the identity of a file's origin: the same with other secrets, as stored or as given.

    Args:
        origin: as `show_address` or an earlier version wrote it; what is no http address is its
            own identity.
        secrets: lower-case names of further parameters that are secret.
    """
    return _rewrite(origin, secrets, shown=False)


def _rewrite(url: str, secrets: Set[str], *, shown: bool) -> str:
    if not url.lower().startswith(("http://", "https://")):
        return url
    url = hide_variables(url) if shown else url
    head, mark, query = url.partition("#")[0].partition("?")
    scheme, _, rest = head.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if user and shown:
        host = f"{HIDDEN}{at}{host}"
    items = [_Parameter.parse(item) for item in query.split("&")] if mark else []
    signed = any(item.name == "sig" for item in items)
    kept = []
    for item in items:
        secret = item.name in secrets or is_secret_parameter(item.name)
        if secret or item.value == HIDDEN or (signed and _AZURE.fullmatch(item.name)):
            kept += [f"{item.written}={HIDDEN}"] if shown and item.value else []
        else:
            kept.append(item.show(plain=shown))
    text = f"{scheme}://{host}{slash}{path}"
    return text + (f"?{'&'.join(kept)}" if kept else "")


@dataclass(frozen=True)
class _Parameter:
    """One parameter of a query: its name as written and in lower case, and its value."""

    written: str
    name: str
    value: str

    @classmethod
    def parse(cls, item: str) -> _Parameter:
        written, _, value = item.partition("=")
        if not value and not item.endswith("="):
            written, value = "", item  # a query without names, which may itself be a token
        return cls(written, unquote_plus(written).lower(), value)

    def show(self, *, plain: bool) -> str:
        """Return the parameter with a digest instead of its value."""
        value = self.value
        harmless = plain and _HARMLESS.fullmatch(self.name) and _PLAIN_VALUE.fullmatch(value)
        if value and not harmless and not _DIGEST.fullmatch(value):
            value = f"~{hashlib.sha256(value.encode()).hexdigest()[:12]}"
        return f"{self.written}={value}" if self.written else value


def hide_addresses(text: str) -> str:
    """Return a message without any value of a query, whatever its parameter is called."""
    return _ANY_QUERY.sub(rf"\1{HIDDEN}", hide_secrets(text))
