"""Owns sending one notice to one receiver: to an address that was checked, in bounded time, with no redirects."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import httpcore
import httpx
import structlog

import pared
from pared.state.deliveries import Claimed, Outcome, sign
from service.public_addresses import NotReachable, Resolver

TIME_LIMIT_S = 10.0
"""For one attempt, from the look-up of the name to the end of the answer."""
MAX_ANSWER_BYTES = 64 << 10
"""Of all that a receiver sends, its headers too."""
_LOOK_UPS = 256
_URL_CHARACTERS = 2000

log = structlog.get_logger()


def checked_url(text: str) -> httpx.URL:
    """The URL of a receiver. Raises ValueError, whose text says what is wrong with it."""
    if len(text) > _URL_CHARACTERS:
        raise ValueError(f"must have at most {_URL_CHARACTERS:,} characters")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ValueError(f"must be an address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must begin with https:// or http://, and name a host")
    if url.userinfo:
        raise ValueError("must hold no user name or password: notices are signed instead")
    if url.port is not None and not 0 < url.port < 1 << 16:
        raise ValueError("must name a port from 1 to 65535, or none")
    return url.copy_with(fragment=None)


class Receivers:
    """Sends notices, each over a connection of its own."""

    def __init__(self, *, allow_private: bool, time_limit_s: float = TIME_LIMIT_S) -> None:
        """Args: allow_private: whether loopback and private networks may be asked too."""
        self._backend = _CheckedAddresses(Resolver(allow_private=allow_private, most=_LOOK_UPS))
        self._time_limit_s = time_limit_s

    async def send(self, claimed: Claimed) -> Outcome:
        """One attempt. The first line of the answer decides; what follows it is read within the limits, and dropped."""
        status: int | None = None
        problem: str | None = None
        try:
            async with asyncio.timeout(self._time_limit_s):
                async with self._pool() as pool, pool.stream(**_request(claimed)) as answer:
                    status = answer.status
                    await _drop(answer.aiter_stream())
        except TimeoutError:
            problem = f"It did not answer within {self._time_limit_s:g} seconds"
        except NotReachable as error:
            problem = str(error)
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ssl.SSLError) as error:
            problem = _in_words(error)
        except Exception:
            # Ours, and no reason to try it each minute for as long as it is there.
            log.exception("webhook_not_sent", delivery=claimed.id)
            problem = "It could not be sent: this is a fault of the service"
        if status is not None:
            # Whoever answers 2xx has it, however the rest of the answer comes.
            problem = None if 200 <= status < 300 else f"It answered with status {status}{_advice(status)}"
        return Outcome(status, problem)

    def _pool(self) -> httpcore.AsyncConnectionPool:
        # It knows neither proxies nor redirects, and looks at no variable of the environment.
        return httpcore.AsyncConnectionPool(
            ssl_context=self._tls, network_backend=self._backend, max_keepalive_connections=0, retries=0
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return httpx.create_ssl_context()


class _CheckedAddresses(httpcore.AsyncNetworkBackend):
    """Looks a host up once, checks what it found, and connects to just that. TLS still checks the host's name."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver, self._inner = resolver, httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = NotReachable(f"{host} has no address")
        for address in await self._resolver.addresses_of(host, port):
            try:
                return _Bounded(await self._inner.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotReachable("Only hosts are asked.")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Bounded(httpcore.AsyncNetworkStream):
    """A connection that breaks where more comes than may."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner, self._left = inner, MAX_ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left <= 0:
            raise httpcore.ReadError(f"it answered with more than {MAX_ANSWER_BYTES:,} bytes")
        content = await self._inner.read(min(max_bytes, self._left), timeout)
        self._left -= len(content)
        return content

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Bounded(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _request(claimed: Claimed) -> dict[str, Any]:
    url, timestamp = httpx.URL(claimed.url), int(claimed.at)
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "User-Agent": f"pared/{pared.__version__}",
        "webhook-id": claimed.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(claimed.secret, claimed.id, timestamp, claimed.body),
    }
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    content = claimed.body.encode()
    return {"method": "POST", "url": target, "headers": list(headers.items()), "content": content}


async def _drop(chunks: Any) -> None:
    with contextlib.suppress(httpcore.NetworkError, httpcore.ProtocolError, OSError):
        async for _ in chunks:
            pass


def _in_words(error: BaseException) -> str:
    if isinstance(error, httpcore.ProtocolError):
        # What it says instead is not shown: where private addresses are allowed, it may be a secret of somebody else's.
        return "The connection broke off, or what it answered is not HTTP"
    said = str(error) or type(error).__name__
    if isinstance(error, httpcore.ConnectError | ssl.SSLError):
        return f"No connection: {said}"[:500]
    return f"The connection broke: {said}"[:500]


def _advice(status: int) -> str:
    return "; redirects are not followed" if 300 <= status < 400 else ""
