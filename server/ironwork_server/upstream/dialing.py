"""TCP connections that somebody owns at every moment, also when the attempt is cancelled.

`loop.create_connection` races addresses in tasks of its own (RFC 8305) and, in Python 3.11, drops a
socket that has just been connected when its caller is cancelled in that turn: such a socket stays
open until the collector finds it. Here each attempt closes its own socket unless it hands it over,
and what was handed over and not chosen is closed by the race.
"""

import asyncio
import itertools
import socket
from collections.abc import Iterable

# After this without an answer the next address is tried beside it (RFC 8305 section 5), seconds.
_NEXT_AFTER_S = 0.25
# Of what a resolver says, at most so many addresses are tried.
_MAX_ADDRESSES = 8

_Address = tuple[int, tuple[object, ...]]


async def dial(host: str, port: int) -> socket.socket:
    """A connected, non-blocking socket, which is the caller's to close. host is a name or an IP
    address. The deadline is the caller's. Raises OSError; socket.gaierror where host has no
    address.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return await _Race().run(_interleaved((family, address) for family, *_, address in found))


class _Race:
    """One connection to whichever address takes it first."""

    def __init__(self) -> None:
        self._connected: list[socket.socket] = []
        self._attempts: set[asyncio.Task[None]] = set()
        self._error: OSError | None = None

    async def run(self, addresses: Iterable[_Address]) -> socket.socket:
        try:
            for family, address in addresses:
                self._attempts.add(asyncio.create_task(self._attempt(family, address)))
                if await self._wait(_NEXT_AFTER_S):
                    break
            while self._attempts and not self._connected:
                await self._wait(None)
            if not self._connected:
                raise self._error or OSError("no address")
            return self._connected.pop(0)
        finally:
            for attempt in self._attempts:
                attempt.cancel()  # closes its own socket
            for sock in self._connected:
                sock.close()

    async def _wait(self, timeout_s: float | None) -> bool:
        """Until one attempt has ended; whether there is a connection."""
        _, self._attempts = await asyncio.wait(
            self._attempts, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
        )
        return bool(self._connected)

    async def _attempt(self, family: int, address: tuple[object, ...]) -> None:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # a family that this kernel does not have
            self._error = error
            return
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as error:
            sock.close()
            self._error = error
        except BaseException:
            sock.close()
            raise
        else:
            self._connected.append(sock)


def _interleaved(found: Iterable[_Address]) -> list[_Address]:
    """Families in turn (RFC 8305 section 4), beginning with the resolver's first."""
    families: dict[int, list[_Address]] = {}
    for family, address in found:
        families.setdefault(family, []).append((family, address))
    rounds = itertools.zip_longest(*families.values())
    turns = [one for each in rounds for one in each if one is not None]
    return turns[:_MAX_ADDRESSES]
