"""Only addresses of the public Internet are asked, and just those that were looked at."""

from __future__ import annotations

import asyncio
import socket
import threading

import httpcore
import pytest

from pared.state.deliveries import Claimed, Outcome
from service import public_addresses
from service.public_addresses import Resolver, is_public
from service.receivers import Receivers, checked_url

PRIVATE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1",
    "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.7",
    "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1",
    "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::8.8.8.8",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "3fff::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:7f00:1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2a00:1450:4001:80e::200e", "2606:4700::1111",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
]  # fmt: skip
NAMES = {
    # What names of hosts come to, as the C library reads them.
    "localhost": ["127.0.0.1", "::1"],
    "2130706433": ["127.0.0.1"],
    "0x7f.1": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "mixed.example": ["8.8.8.8", "10.0.0.1"],
}
_RECEIVERS = {allowed: Receivers(allow_private=allowed) for allowed in (False, True)}


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_told(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str):
    assert is_public(address)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where connections were made to; none comes about."""
    to: list[str] = []

    async def connect_tcp(self, host, *args, **kwargs):
        to.append(host)
        raise httpcore.ConnectError("nobody is there")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    return to


def resolves(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names resolve to these addresses, one answer after the other. Returns the names that are asked for."""
    asked: list[str] = []

    def getaddrinfo(host, port, *args, **kwargs):
        asked.append(host)
        return [(0, 0, 0, "", (address, port)) for address in answers[min(len(asked), len(answers)) - 1]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def sent_to(url: str, *, allow_private: bool = False) -> Outcome:
    claimed = Claimed("dlv_1", "whk_1", "local", "job.failed", url, "whsec_AAAA", "{}", 1, 1, 1.0)
    return asyncio.run(_RECEIVERS[allow_private].send(claimed))


def test_no_connection_is_made_to_an_address_that_is_not_public(connected, monkeypatch):
    for address in PRIVATE:
        host = f"[{address.replace('%', '%25')}]" if ":" in address else address
        if "%" not in address:
            assert "not a public address" in sent_to(f"http://{host}:8080/hook").problem, address
    for name, addresses in NAMES.items():
        resolves(monkeypatch, addresses)
        for scheme in ("http", "https"):
            assert "not a public address" in sent_to(f"{scheme}://{name}/").problem, name
    assert connected == []


def test_a_name_is_looked_up_once_an_attempt_and_connected_to_as_it_was_checked(connected, monkeypatch):
    asked = resolves(monkeypatch, ["8.8.8.8", "2606:4700::1111"], ["127.0.0.1"])
    assert "No connection" in sent_to("https://rebound.example/").problem
    assert (asked, connected) == (["rebound.example"], ["8.8.8.8", "2606:4700::1111"])
    assert "not a public address" in sent_to("https://rebound.example/").problem
    assert len(connected) == 2


def test_name_servers_that_do_not_answer_take_up_so_many_threads_and_no_more(connected, monkeypatch):
    silent = threading.Event()

    def getaddrinfo(host, port, *args, **kwargs):
        if host == "silent.example":
            silent.wait(60)
        return [(0, 0, 0, "", ("8.8.8.8", port))]

    async def look_up() -> list[str]:
        resolver = Resolver(allow_private=False, most=3)
        said = await asyncio.gather(
            *(resolver.addresses_of(host, 1) for host in ["silent.example"] * 3 + ["quick.example"]),
            return_exceptions=True,
        )
        silent.set()
        return [str(each) for each in said]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(public_addresses, "LOOK_UP_S", 0.2)
    *unanswered, refused = asyncio.run(look_up())
    assert all("no name server says" in each for each in unanswered)
    assert "too many names" in refused


def test_private_addresses_can_be_allowed(connected):
    assert "No connection" in sent_to("http://127.0.0.1:1/", allow_private=True).problem
    assert connected == ["127.0.0.1"]


def test_a_proxy_of_the_environment_is_not_asked(connected, monkeypatch):
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:3128")
    sent_to("http://8.8.8.8/")
    sent_to("https://8.8.8.8/")
    assert connected == ["8.8.8.8"] * 2


@pytest.mark.parametrize(
    "url",
    [
        "", "example.org", "ftp://example.org/", "file:///etc/passwd", "gopher://example.org/", "http://", "http:///x",
        "http://user:word@example.org/", "http://user@example.org/", "http://example.org:0/", "http://exa mple.org:x/",
        "http://example.org:99999/", "https://example.org/\r\nHost: x", f"https://example.org/{'x' * 2000}",
        "unix:///run/docker.sock", "http://[::1", "javascript:alert(1)",
        "http://0177.0.0.1/",
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_receiver_is_refused(url: str):
    with pytest.raises(ValueError, match="must"):
        checked_url(url)


def test_the_fragment_of_a_url_is_dropped_and_names_are_ascii():
    assert str(checked_url("https://Bücher.example/a?b=c#d")) == "https://xn--bcher-kva.example/a?b=c"
