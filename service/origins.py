"""Owns where a request comes from: this machine, a proxy, or a page of another site in somebody's browser."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from pared.errors import Forbidden, ParedError
from pared.state.settings import Settings, is_loopback

_LOCAL_NAMES = {"localhost", "127.0.0.1", "::1"}
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
_FORWARDED = {b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip"}
"""Beside all `X-Forwarded-…`, what a proxy adds to the requests that it passes on."""


def from_this_machine(request: HTTPConnection, settings: Settings) -> bool:
    """Whether the client itself runs on this machine, so that no key is asked for unless the settings say so.

    Settings do not know what is listened on or which proxy is before it, so each request is looked at. One that a proxy
    passed on is not from here: the proxy's address is, the client's may be anywhere. `PARED_TRUSTED_PROXIES` names
    proxies whose `X-Forwarded-For` is believed. nginx adds nothing by default, but speaks HTTP/1.0, as no client does.
    """
    peer = request.client.host if request.client else None  # None: a Unix socket
    if _through_a_proxy(request.headers):
        return peer is not None and _trusted(peer, settings) and is_loopback(_client_of(request.headers, settings))
    if request.scope.get("http_version") == "1.0" or not _is_our_name(request.headers, settings):
        return False
    return peer is None or is_loopback(peer)


def refusal(method: str, headers: Headers, settings: Settings) -> ParedError | None:
    """The refusal of a request that a page of another site made through the browser of somebody.

    Somebody who needs no key, or whose browser keeps it in a cookie.
    """
    if settings.keys_required and "cookie" not in headers:
        return None
    if method not in _SAFE_METHODS and _of_another_page(headers):
        return Forbidden("Another web site made this request. Use this server's own pages, or a client.")
    has_key = "authorization" in headers or "x-api-key" in headers
    if (
        settings.loopback
        and not settings.keys_required
        and not has_key
        and not _is_our_name(headers, settings)
        and not _through_a_proxy(headers)
    ):
        return Forbidden(
            f"This server answers to localhost, not to {_host_name(headers)}, unless a key is sent. Make one with "
            "`pared keys add NAME`; to be asked for it always, set PARED_HOST or PARED_REQUIRE_KEYS=1."
        )
    return None


def _of_another_page(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
        return True  # same-site too: another port of this machine is another program
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin.lower()).netloc != headers.get("host", "").lower()
    except ValueError:  # such as http://[, which no browser sends
        return True


def _through_a_proxy(headers: Headers) -> bool:
    return any(name in _FORWARDED or name.startswith(b"x-forwarded") for name, _ in headers.raw)


def _client_of(headers: Headers, settings: Settings) -> str:
    """The nearest address in `X-Forwarded-For` that is no trusted proxy; empty without one."""
    chain = [part.strip() for header in headers.getlist("x-forwarded-for") for part in header.split(",")]
    # The proxy added the last; what stands before it, a client may have written.
    for address in reversed(chain[1:]):
        if not _trusted(address, settings):
            return address
    return chain[0] if chain else ""


def _trusted(address: str, settings: Settings) -> bool:
    try:
        here = ip_address(address)
    except ValueError:
        return False
    return any(here in ip_network(proxy, strict=False) for proxy in settings.proxies)


def _is_our_name(headers: Headers, settings: Settings) -> bool:
    name = _host_name(headers)
    return name in _LOCAL_NAMES or name == settings.host.lower()


def _host_name(headers: Headers) -> str:
    return _name_in(headers.get("host", ""))


@lru_cache(maxsize=64)  # of a few names, many times a second
def _name_in(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or "localhost"
    except ValueError:
        return header
