"""Addresses of feeds: which may be fetched, and what is stored of them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perennial.config import SourceSpec, parse
from perennial.errors import InputError, PullRefused
from perennial.redaction import hide_secrets
from perennial.sources.address import AddressRules, hide_addresses, identify, show_address
from perennial.sources.events import FilesPulled, decode_event
from perennial.sources.state import SourceState


def rules(index: str = "https://feed.org/data/", **fields: Any) -> AddressRules:
    document = {"index": index, "schedule": "1d", **fields}
    return AddressRules.of(parse(document, SourceSpec, "run.yaml"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://evil.org/a.txt", "another host; add evil.org"),
        ("https://feed.org.evil.org/a.txt", "another host"),
        ("https://feed.org@evil.org/a.txt", "user or password"),
        ("https://me:pw@feed.org/a.txt", "user or password"),
        ("https://feed.org\\@evil.org/a.txt", "backslash"),
        ("https://evil.org\t/a.txt", "control character"),
        ("https://feed.org:8443/a.txt", "another port; add feed.org:8443"),
        ("https://feed.org:99999/a.txt", "no address"),
        ("http://feed.org/a.txt", "over http, unlike the index; add http://feed.org"),
        ("file:///etc/passwd", "no http address"),
        ("ftp://feed.org/a.txt", "no http address"),
        ("//feed.org/a.txt", "no address"),
        ("https://[::1/a.txt", "no address"),
        ("https://\ud800.org/a.txt", "no address"),
    ],
)
def test_an_address_elsewhere_is_refused_with_what_allows_it(url: str, reason: str) -> None:
    with pytest.raises(PullRefused, match=reason) as refused:
        rules().check_url(url)
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("https://feed.org/other/a.txt", {}),
        ("https://FEED.org./a.txt", {}),
        ("https://feed.org:443/a b.txt", {}),
        ("https://cdn.org/a.txt", {"hosts": ["cdn.org"]}),
        ("https://cdn.org:8443/a.txt", {"hosts": ["cdn.org:8443"]}),
        ("http://cdn.org/a.txt", {"hosts": ["http://cdn.org"]}),
        ("https://xn--bcher-kva.org/a.txt", {"hosts": ["bücher.org"]}),
        ("https://bücher.org/a.txt", {"index": "https://xn--bcher-kva.org/"}),
        ("https://feed.org/a.txt", {"index": "http://feed.org/"}),
        ("http://127.0.0.1:80/a.txt", {"index": "http://127.0.0.1/"}),
        ("http://[::1]:99/a.txt", {"index": "http://[::1]:99/"}),
    ],
)
def test_an_address_of_the_feed_or_an_allowed_host_is_taken(
    url: str, fields: dict[str, Any]
) -> None:
    assert rules(**fields).check_url(url)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1"),
        *("169.254.169.254", "0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1"),
        # IPv4 in the clothes of IPv6: mapped, compatible, 6to4, NAT64, Teredo.
        *("::ffff:127.0.0.1", "::127.0.0.1", "2002:7f00:1::", "64:ff9b::a9fe:a9fe"),
        "2001:0:7f00:1::",
    ],
)
def test_a_name_that_leads_to_no_public_address_is_refused(address: str) -> None:
    with pytest.raises(PullRefused, match="not public"):
        rules().check_peer("feed.org", 443, ip_address(address))


@pytest.mark.parametrize("name", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]"])
def test_an_address_of_another_form_is_refused_also_behind_a_proxy(name: str) -> None:
    with pytest.raises(PullRefused, match="not public"):
        rules(hosts=[name], proxy=True).check_url(f"https://{name}/a.txt")


def test_private_addresses_are_allowed_by_a_field_and_credentials_of_clouds_by_none() -> None:
    allowed = rules(private=True, hosts=["other.org"])
    for address in ("10.1.2.3", "::1", "::ffff:192.168.0.1", "93.184.215.14"):
        allowed.check_peer("other.org", 443, ip_address(address))
    for address in ("169.254.169.254", "fe80::1", "fd00:ec2::254", "100.100.100.200", "0.0.0.0"):
        with pytest.raises(PullRefused, match=r"not public$"):
            allowed.check_peer("feed.org", 443, ip_address(address))


def test_an_index_on_a_private_address_allows_its_own_host_and_port_alone() -> None:
    own = rules("http://127.0.0.1:8000/")
    own.check_peer("127.0.0.1", 8000, ip_address("127.0.0.1"))
    with pytest.raises(PullRefused, match="another port"):
        own.check_url("http://127.0.0.1/a.txt")
    with pytest.raises(PullRefused, match="another host"):
        own.check_url("http://localhost:8000/a.txt")
    # A name may come to lead anywhere, and does not show that the user meant it.
    with pytest.raises(PullRefused, match="private: true"):
        rules("http://intranet/").check_peer("intranet", 80, ip_address("10.0.0.7"))


@pytest.mark.parametrize("host", ["", "a b", "https://x.org", "x.org/", "me@x.org", 7, "*.org"])
def test_a_wrong_host_is_refused(host: object) -> None:
    with pytest.raises(InputError, match="hosts"):
        rules(hosts=[host])


@pytest.mark.parametrize("fields", [{"private": True}, {"hosts": ["x.org"]}, {"unsized": True}])
def test_fields_of_an_index_are_refused_elsewhere(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="used with `index` alone"):
        parse({"prefix": "crawl", "schedule": "1d", **fields}, SourceSpec, "run.yaml")


@pytest.mark.parametrize(
    "name",
    [
        *("token", "key", "sig", "signature", "X-Amz-Signature", "X-Amz-Credential", "Expires"),
        *("access_token", "api_key", "apikey", "auth", "Authorization", "password", "pwd", "sid"),
        *("client_secret", "sessionid", "X-Goog-Signature", "Key-Pair-Id", "Policy", "jwt"),
    ],
)
def test_a_parameter_that_is_known_to_be_secret_is_hidden_everywhere(name: str) -> None:
    url = f"https://h.org/a.txt?page=2&{name}=hunter2&id=7"
    for text in (show_address(url), hide_secrets(f"GET {url} failed"), hide_addresses(url)):
        assert "hunter2" not in text
        assert f"{name}=***" in text
    assert identify(show_address(url)) == identify(show_address(url.replace("hunter2", "new")))
    assert "hunter2" not in hide_secrets(f"see #{name}=hunter2 and ;{name}=hunter2")


def test_what_is_no_secret_is_kept_in_texts() -> None:
    url = "postgresql://db/x?sslmode=require&author=me&monkey=1"
    assert hide_secrets(url) == url
    assert hide_secrets("s3://me:p@ss@h/x") == "s3://***@h/x"


NAMES = st.from_regex(r"[a-zA-Z_]{1,12}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="&#", exclude_categories=["Cs"]), min_size=9)


@given(st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=4))
def test_no_value_is_shown_and_an_address_stays_itself(query: list[tuple[str, str]]) -> None:
    items = [f"{name}={quote(value)}" for name, value in query]
    url = f"https://h.org/a.txt?{'&'.join(items)}"
    shown = show_address(url, {"page", "part"})
    assert show_address(shown) == shown
    assert identify(shown) == identify(url) == identify(identify(url))
    values = [item.partition("=")[2] for item in shown.partition("?")[2].split("&")]
    plain = [value for value in values if value != "***" and not value.startswith("~")]
    assert not [value for value in plain if len(value) > 32]


def test_files_that_a_parameter_tells_apart_stay_two() -> None:
    first, second = (show_address(f"https://h.org/get.txt?id={number}") for number in "12")
    assert identify(first) != identify(second)
    assert identify(show_address("https://h.org/get.txt?id=1", {"id"})) == identify(second, {"id"})


OLD_ENTRY = """{"at": "2026-11-01T00:00:00Z", "kind": "pulled", "folder": "pulled/000000-0",
 "files": [{"name": "000000-000000-a.txt", "origin": "https://h.org/a.txt?token=january",
 "version": "etag:1", "size_bytes": 1, "sha256": ""}], "watermark": "", "passed_over": 0}"""


def test_a_token_that_an_earlier_version_stored_makes_no_file_new() -> None:
    state = SourceState()
    event = decode_event(OLD_ENTRY.encode())
    assert isinstance(event, FilesPulled)
    state.apply(event)
    origin = show_address("https://h.org/a.txt?token=february")
    assert state.seen[identify(origin)] == "etag:1"
    assert (state.bad, state.rest) == ((), 0)


def test_the_stored_run_file_has_no_secret() -> None:
    document = {"index": "https://h.org/?token=hunter2&q=1&mine=x9", "schedule": "1d"}
    spec = parse({**document, "secrets": ["Mine"]}, SourceSpec, "run.yaml")
    assert spec.index is not None
    assert "hunter2" in spec.index
    assert spec.model_dump(mode="json")["index"] == "https://h.org/?token=***&q=1&mine=***"
    assert "hunter2" not in spec.model_dump_json()
