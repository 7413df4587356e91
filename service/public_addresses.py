"""Owns which addresses the server sends requests to on behalf of owners: public ones alone, unless all are allowed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Of IANA's registries of special addresses, all that are not reached from everywhere, and 6to4's relays.
_NOT_PUBLIC = [
    ip_network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "3fff::/20",
    )
]  # fmt: skip
_UNICAST = ip_network("2000::/3")
_MAPPED, _NAT64, _6TO4 = ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96"), ip_network("2002::/16")
_ISATAP = (0x00005EFE, 0x02005EFE)
"""The third quarter of an address whose last one is an IPv4 address."""

LOOK_UP_S = 5.0


class NotReachable(Exception):
    """The host has no address that may be asked; the text says why."""


def is_public(text: str) -> bool:
    """Whether an IP address is one of the public Internet, also where it stands for an IPv4 address in IPv6."""
    address = ip_address(text.partition("%")[0])
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC)
    inner = _inside(address)
    if inner is not None and not is_public(str(inner)):
        return False
    if address in _NAT64 or address in _MAPPED:
        return True
    return address in _UNICAST and not any(address in network for network in _NOT_PUBLIC)


def _inside(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that a translator or a tunnel would send to."""
    number = int(address)
    if address in _MAPPED or address in _NAT64 or number >> 32 & 0xFFFFFFFF in _ISATAP:
        return IPv4Address(number & 0xFFFFFFFF)
    return IPv4Address(number >> 80 & 0xFFFFFFFF) if address in _6TO4 else None


class Resolver:
    """Looks names up, and takes none that is not public, unless all are allowed."""

    def __init__(self, *, allow_private: bool, most: int) -> None:
        """Args: most: look-ups at once; a name server that does not answer holds one for half a minute."""
        self._allow_private = allow_private
        self._places = threading.BoundedSemaphore(most)

    async def addresses_of(self, host: str, port: int) -> list[str]:
        """The addresses of a host, of which the caller connects to one as it stands here, without asking again.

        Raises:
            NotReachable: it has none, or one that is not public, though only these may be asked.
        """
        try:
            async with asyncio.timeout(LOOK_UP_S):
                found = await self._look_up(host, port)
        except TimeoutError:
            raise NotReachable(f"no name server says within {LOOK_UP_S:g} seconds which address {host} has") from None
        except OSError as error:
            raise NotReachable(f"{host} has no address: {error.strerror or error}") from None
        except ValueError:
            raise NotReachable(f"{host[:100]} is no name of a host") from None
        refused = [] if self._allow_private else [address for address in found if not is_public(address)]
        if refused:
            named = "" if refused[0] == host else f" ({refused[0]})"
            raise NotReachable(
                f"{host}{named} is not a public address. Whoever runs this server can allow these with "
                "PARED_ALLOW_PRIVATE_WEBHOOKS=1"
            )
        return found

    async def _look_up(self, host: str, port: int) -> list[str]:
        if not self._places.acquire(blocking=False):
            raise NotReachable("too many names are being looked up; try again in a minute")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def tell(found: list[str], error: Exception | None) -> None:
            if not answer.done():
                answer.set_result(found) if error is None else answer.set_exception(error)

        def ask() -> None:
            found: list[str] = []
            failure: Exception | None = None
            try:
                rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found = list(dict.fromkeys(str(row[4][0]) for row in rows))
            except (OSError, ValueError) as error:
                failure = error
            finally:
                self._places.release()
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(tell, found, failure)

        # A thread of its own, which nobody waits for: the C library's look-up cannot be broken off.
        threading.Thread(target=ask, name="look-up", daemon=True).start()
        return await answer
