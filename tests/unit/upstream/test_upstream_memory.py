"""Where the key is in the process's memory: nowhere, once the write has returned."""

import asyncio
import re
import sys
from pathlib import Path

from unit.upstream import memory_probe
from unit.upstream.raw_server import RawServer

KEY = b"sk-ant-api03-MEMORY-CANARY-" + bytes(range(0x41, 0x5B)) + b"-wxyz"
REQUESTS = 20
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n"


def copies(pid: int, pattern: bytes) -> int:
    """How often pattern is in the writable memory of a process."""
    found = 0
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if match is None or line.endswith("[vvar]"):
                continue
            start, end = (int(part, 16) for part in match.groups())
            memory.seek(start)
            found += (memory.read(end - start) or b"").count(pattern)
    return found


async def test_no_copy_of_the_key_is_left_in_the_process(server: RawServer) -> None:
    """With TLS and without: while an answer streams and after it, over 20 requests on a reused
    connection, the sending process holds no copy of the key, not even of half of it."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        memory_probe.__file__,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None

    def say(line: str) -> None:
        child.stdin.write(f"{line}\n".encode())

    endpoint = server.endpoint
    say(
        f"{endpoint.host} {endpoint.port} {endpoint.ca_file or '-'} "
        f"{endpoint.connect_address or '-'}"
    )
    say(bytes(byte ^ memory_probe.MASK for byte in KEY).hex())
    assert await child.stdout.readline() == b"ready\n"
    try:
        for number in range(1, REQUESTS + 1):
            say("go")
            connection = await server.connection()
            received = await connection.head(number)
            assert received.count(KEY) == number
            connection.send(HEAD)
            assert await child.stdout.readline() == b"streaming\n"
            if number in (1, REQUESTS):
                assert copies(child.pid, masked_key()) > 0
                assert copies(child.pid, KEY[:24]) == copies(child.pid, KEY[-24:]) == 0
            connection.send(b"0\r\n\r\n")
            say("on")
            assert await child.stdout.readline() == b"done\n"
        assert copies(child.pid, KEY[:24]) == copies(child.pid, KEY[-24:]) == 0
        say("stop")
        assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    assert len(server.connections) == 1


def masked_key() -> bytes:
    """What the child does hold, to show that the search finds things: the masked key."""
    return bytes(byte ^ memory_probe.MASK for byte in KEY)[:24]
