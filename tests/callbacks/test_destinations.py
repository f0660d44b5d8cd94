"""Destinations: the URLs that are accepted, and the addresses that are allowed."""

import re
from ipaddress import ip_address
from itertools import product

import pytest

from taskservice.webhooks.destinations import (
    Destinations,
    RefusedError,
    check_url,
    kind_of,
    literal_address,
    read_address,
)

EXTERNAL = Destinations.parse("external")
EVERY_WORD = Destinations.parse("external,private,loopback")

ADDRESSES = {
    "external": "1.1.1.1 8.8.8.8 100.63.255.255 100.128.0.0 172.15.255.255 172.32.0.0 "
    "168.63.129.15 198.17.255.255 198.20.0.0 223.255.255.255 2000::1 2606:4700::1111 "
    "2001:200::1 2001:4860:4860::8888 3ffe:ffff::1",
    "loopback": "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 ::ffff:7f00:1",
    "private": "10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 100.64.0.1 "
    "100.127.255.255 fc00::1 fdff::1 ::ffff:10.0.0.5",
    "metadata": "169.254.169.254 168.63.129.16 192.0.0.192 100.100.100.200 fd00:ec2::254 "
    "fd20:ce::254 fd00:c1::a9fe:a9fe fd00:42::42 ::ffff:169.254.169.254",
    "link-local": "169.254.0.1 169.254.170.2 fe80::1 fe80::1%eth0 febf::1",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.1 2001:db8::1 3fff::1",
    "benchmarking": "198.18.0.1 198.19.255.255 2001:2::1",
    "NAT64": "64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::a00:1",
    "6to4": "2002:7f00:1::1 2002:808:808::1 192.88.99.1",
    "Teredo": "2001:0:7f00:1::1",
    "reserved": "0.0.0.0 0.1.2.3 192.0.0.1 192.0.0.9 192.31.196.1 192.52.193.1 192.175.48.1 "
    "240.0.0.1 255.255.255.255 :: ::127.0.0.1 ::808:808 ::ffff:0:7f00:1 100::1 100:0:0:1::1 "
    "2001:1::1 2001:3::1 2001:20::1 2001:1ff:ffff::1 2620:4f:8000::1 4000::1 5f00::1 fec0::1 "
    "fe00::1",
}
KINDS = [(kind, text) for kind, texts in ADDRESSES.items() for text in texts.split()]
SPECIAL = [text for kind, text in KINDS if kind not in ("external", "private", "loopback")]


def test_every_address_has_its_kind(subtests: pytest.Subtests) -> None:
    for kind, text in KINDS:
        with subtests.test(text):
            assert kind_of(read_address(text)) == kind


def test_each_word_allows_only_its_kind_of_address(subtests: pytest.Subtests) -> None:
    for kind, text in KINDS:
        with subtests.test(text):
            address = read_address(text)

            for word in ("external", "private", "loopback"):
                reason = Destinations.parse(word).refusal("hooks.example", address)
                assert (reason is None) == (word == kind)


def test_special_address_needs_a_network_or_a_host_pattern(subtests: pytest.Subtests) -> None:
    for text in SPECIAL:
        with subtests.test(text):
            address = read_address(text)

            assert EVERY_WORD.refusal("hooks.example", address)
            bare = text.partition("%")[0]
            assert Destinations.parse(bare).refusal("hooks.example", address) is None
            assert Destinations.parse("0.0.0.0/0, ::/0").refusal("hooks.example", address) is None
            assert Destinations.parse("hooks.example").refusal("hooks.example", address) is None


def test_network_allows_only_its_addresses() -> None:
    allowed = Destinations.parse("10.1.0.0/16, fd12::/16")

    assert allowed.refusal("hooks.lan", ip_address("10.1.255.1")) is None
    assert allowed.refusal("hooks.lan", ip_address("fd12::1")) is None
    assert allowed.refusal("hooks.lan", ip_address("10.2.0.1"))
    assert allowed.refusal("hooks.lan", ip_address("8.8.8.8"))


def test_mapped_network_is_the_ipv4_network() -> None:
    allowed = Destinations.parse("::ffff:10.0.0.0/104")

    assert allowed.refusal("hooks.lan", read_address("::ffff:10.9.9.9")) is None
    assert allowed.refusal("hooks.lan", read_address("10.9.9.9")) is None
    assert allowed.refusal("hooks.lan", read_address("11.0.0.1"))


PATTERNS = (
    ("hooks.internal", "hooks.internal", True),
    ("hooks.internal", "HOOKS.internal.", True),
    ("Hooks.Internal", "hooks.internal", True),
    ("hooks.internal", "a.hooks.internal", False),
    ("hooks.internal", "hooks.internal.example.com", False),
    ("hooks.internal", "hooksxinternal", False),
    ("*.lan", "a.lan", True),
    ("*.lan", "a.b.lan", True),
    ("*.lan", "lan", False),
    ("*.lan", "a.lan.example.com", False),
    ("*.lan", "example.com", False),
    ("web-*", "web-1", True),
    ("my_service", "my_service", True),
    ("localhost", "localhost", True),
    ("internal", "internal", True),
)


def test_host_pattern_lets_through_its_hosts(subtests: pytest.Subtests) -> None:
    for pattern, host, passes in PATTERNS:
        with subtests.test(f"{pattern} {host}"):
            allowed = Destinations.parse(pattern)

            for address in ("10.0.0.5", "169.254.169.254", "8.8.8.8", "127.0.0.1"):
                assert (allowed.refusal(host, ip_address(address)) is None) == passes


def test_host_pattern_never_matches_an_address_in_disguise() -> None:
    allowed = Destinations.parse("*x7f, 0x7f, *a")

    with pytest.raises(RefusedError):
        check_url("http://0x7f/", allowed)
    with pytest.raises(RefusedError):
        check_url("http://127.0.0.0xa/", allowed)


def test_empty_entries_are_skipped_and_an_empty_list_allows_nothing() -> None:
    assert Destinations.parse(" External ,, private,") == Destinations.parse("external,private")
    assert Destinations.parse("").refusal("hooks.example", ip_address("8.8.8.8"))


UNCLEAR = (
    "*", "hooks.*", "10.0.0.*", "10.0.0.0/33", "10.0.0.5/8", "10.0.0", "fd00::/129", "a b",
    "http://hooks.lan", "hooks.lan:8000", "hooks.lan/8", "müller.lan", "a..lan", "[::1]",
    "fe80::1%eth0", "fe80::%eth0/64", "?.lan", "[a-z].lan", "everything!",
    "*.lan.", "http://hooks", "10.0.0.0/-1", "10.0.0.o/8", "exernal", "externl", "privat",
    "loopbak", "lopback", "external private",
)  # fmt: skip


def test_unclear_entry_is_an_error(subtests: pytest.Subtests) -> None:
    for entry in UNCLEAR:
        with subtests.test(entry[:40]):
            with pytest.raises(ValueError, match=re.escape(entry)) as caught:
                Destinations.parse(f"external, {entry}")

            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (
            "http://10.0.0.5/",
            "10.0.0.5 is a private address; add it to TASKSERVICE_CALLBACK_ALLOWED",
        ),
        (
            "http://2130706433/",
            "2130706433 is 127.0.0.1, a loopback address; add it to TASKSERVICE_CALLBACK_ALLOWED",
        ),
        ("http://[::1]:80/", "::1 is a loopback address; add it to TASKSERVICE_CALLBACK_ALLOWED"),
    ],
)
def test_refused_literal_is_explained(url: str, sentence: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check_url(url, EXTERNAL)

    assert str(caught.value) == sentence


def test_external_address_is_explained_where_only_private_ones_are_allowed() -> None:
    reason = Destinations.parse("private").refusal("hooks.com", ip_address("8.8.8.8"))

    assert str(reason).startswith("hooks.com resolves to 8.8.8.8, an external address")


LOOPBACK_SPELLINGS = [
    "127.0.0.1", "127.0.0.1.", "2130706433", "017700000001", "0x7f000001", "0X7F000001",
    "0177.0.0.1", "0x7f.0.0.1", "0x7f.1", "127.1", "127.0.1", "0177.1", "0x7F.0x1",
    "00000177.0.0.1", "127.000.000.001", "127.0.0.0x1", "%31%32%37.0.0.1", "127.255.255.255",
    "[::1]", "[0:0:0:0:0:0:0:1]", "[0000::0001]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::FFFF:7F00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0", "0", "0x0", "00", "[::]",
]  # fmt: skip


def test_loopback_is_refused_in_every_spelling(subtests: pytest.Subtests) -> None:
    advice = "add it to TASKSERVICE_CALLBACK_ALLOWED"
    for host, form in product(
        LOOPBACK_SPELLINGS, ("http://{}/", "https://{}:8443/hook?x=1", "HTTP://{}")
    ):
        url = form.format(host)
        with subtests.test(url), pytest.raises(RefusedError, match=advice):
            check_url(url, EXTERNAL)


AMBIGUOUS_HOSTS = (
    "１２７.0.0.1", "127。0。0。1", "①27.0.0.1", "127.0.0.1\u200b", "ⓛocalhost", "127.0.0.١",
    "[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%25lo]", "[127.0.0.1]", "[::1", "::1", "[v1.x]",
    "[::1].example.com", "[]", "1.2.3.4.5", "256.1", "4294967296", "08.0.0.1", "0x", "1.2.3.4..",
    "example.1", "a..b", ".lan", "*.lan", "a,b", "a%2fb", "a%00b", "x" * 64, "a." * 128, ".", "",
    "127.0.0.1\\", "example.com\\@127.0.0.1", "a|b", "a;b", "a'b", 'a"b', "a<b>", "a`b", "a{b}",
)  # fmt: skip


def test_host_that_could_be_read_two_ways_is_refused(subtests: pytest.Subtests) -> None:
    for host in AMBIGUOUS_HOSTS:
        with subtests.test(host[:40]), pytest.raises(RefusedError):
            check_url(f"http://{host}/", Destinations.parse("0.0.0.0/0,::/0"))


ODD_URLS = (
    "", " ", "hook", "/hook", "//example.com/", "example.com", "ftp://example.com/", "http:",
    "http:/example.com/", "http:example.com", "http://", "http:///hook", "http://?x", "https://#",
    "file:///etc/passwd", "javascript:alert(1)", "gopher://example.com/", "httpx://example.com/",
    "http+unix://x/", "http\\://example.com", "http://user@example.com/", "http://@example.com/",
    "http://user:secret@example.com/", "http://127.0.0.1:80@example.com/", "http://a:b@c:d@e/",
    "http://example.com/#x", "http://example.com#", "http://example.com?a#b",
    "http://example.com:0/", "http://example.com:00/", "http://example.com:65536/",
    "http://example.com:99999999999/", "http://example.com:-1/", "http://example.com:+80/",
    "http://example.com:8 0/", "http://example.com:８０/", "http://example.com:80:90/",
    "http://example.com:x/", "http://exa mple.com/", "http://example.com/a b", "\thttp://a.com/",
    "http://example.com/\n", "http://example.com\r\nHost: x/", "http://example.com/\x00",
    "http://example.com/\x7f", "http://example.com/\u2028", "http://example.com/\u00a0",
    "http://example.com/\u202e", "http://example.com/\ud800", "http://example.com\\hook",
    "http://example.com/a\\b", "http://127.0.0.1\\@example.com/", "http:\\\\example.com\\",
)  # fmt: skip


def test_url_that_is_not_a_plain_one_is_refused(subtests: pytest.Subtests) -> None:
    for url in ODD_URLS:
        with subtests.test(url[:40]):
            with pytest.raises(RefusedError) as caught:
                check_url(url, Destinations.parse("0.0.0.0/0,::/0"))

            assert "secret" not in str(caught.value)


PLAIN_URLS = (
    ("http://example.com", "http", "example.com", 80),
    ("https://example.com", "https", "example.com", 443),
    ("HTTPS://Example.COM:8443/Hook?a=@b:c", "https", "example.com", 8443),
    ("http://example.com./", "http", "example.com.", 80),
    ("http://example.com:/", "http", "example.com", 80),
    ("http://example.com:65535/", "http", "example.com", 65535),
    ("http://example.com:1?x", "http", "example.com", 1),
    ("http://müller.example/ü?ü=ü", "http", "xn--mller-kva.example", 80),
    ("http://my_service:8000/", "http", "my_service", 8000),
    ("http://localhost:3000/", "http", "localhost", 3000),
    ("http://8.8.8.8/", "http", "8.8.8.8", 80),
    ("http://[2606:4700::1111]:81/", "http", "2606:4700::1111", 81),
    ("http://1e100.net/", "http", "1e100.net", 80),
    ("http://0xcafe.example/", "http", "0xcafe.example", 80),
)


def test_plain_url_is_taken(subtests: pytest.Subtests) -> None:
    for url, scheme, host, port in PLAIN_URLS:
        with subtests.test(url[:40]):
            target = check_url(url, EXTERNAL)

            assert (target.scheme, target.host, target.port) == (scheme, host, port)


def test_url_has_at_most_2000_bytes_of_utf8() -> None:
    start = "http://example.com/"

    check_url(start + "x" * (2000 - len(start)), EXTERNAL)
    with pytest.raises(RefusedError, match="2,000"):
        check_url(start + "x" * (2001 - len(start)), EXTERNAL)
    with pytest.raises(RefusedError, match="2,000"):
        check_url(start + "ü" * 1000, EXTERNAL)


def test_name_is_not_judged_before_it_is_resolved() -> None:
    assert check_url("http://localhost/", EXTERNAL).literal is None


@pytest.mark.parametrize("host", ["127.0.0.1.", "0x7f.1", "::ffff:7f00:1"])
def test_literal_is_the_address_that_will_be_connected_to(host: str) -> None:
    assert literal_address(host) == ip_address("127.0.0.1")
