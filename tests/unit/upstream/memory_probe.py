"""Run by test_upstream_memory: sends requests whose key exists nowhere but in the injected buffer.

Reads from stdin, a line each: the endpoint (host, port, CA file or "-", connect address or "-"),
the key XOR 0x5A in hex, "go" for each of COUNT requests. Prints "ready", then a line for each
request when it is at the point to look at.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from ironwork_server.core.ports import Injector
from ironwork_server.core.values import ScreenedRequest
from ironwork_server.upstream import HttpUpstream, UpstreamEndpoint

MASK = 0x5A


class MaskedInjector:
    """Writes the key byte by byte from its masked form: it exists in target alone."""

    def __init__(self, masked: bytes) -> None:
        self._masked = masked
        self.length = len(masked)

    def inject(self, target: memoryview) -> None:
        for index, byte in enumerate(self._masked):
            target[index] = byte ^ MASK

    def discard(self) -> None:
        self._masked = b""


class Progress:
    sent = False


async def no_body() -> AsyncIterator[bytes]:
    for part in ():
        yield part


def request() -> ScreenedRequest:
    return ScreenedRequest("GET", "/v1/models", "", (), None, False, 0, "models")


async def main() -> None:
    loop = asyncio.get_running_loop()

    async def line() -> str:
        return (await loop.run_in_executor(None, sys.stdin.readline)).strip()

    host, port, ca_file, address = (await line()).split()
    masked = bytes.fromhex(await line())
    endpoint = UpstreamEndpoint(
        host,
        int(port),
        tls=ca_file != "-",
        ca_file=None if ca_file == "-" else Path(ca_file),
        connect_address=None if address == "-" else address,
    )
    upstream = HttpUpstream(endpoint)

    async def credential() -> Injector:
        return MaskedInjector(masked)

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while await line() == "go":
        async with upstream.send(request(), no_body(), credential, Progress()) as response:
            await anext(response.chunks())
            sys.stdout.write("streaming\n")
            sys.stdout.flush()
            await line()
            async for _ in response.chunks():
                pass
        sys.stdout.write("done\n")
        sys.stdout.flush()
    await upstream.close()


if __name__ == "__main__":
    asyncio.run(main())
