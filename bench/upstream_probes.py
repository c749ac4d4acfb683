"""What each candidate of bench/upstream.py can and cannot do, each shown by a probe.

Framing is probed over plain HTTP, where it is the same: a server sends exact bytes, and either the
call fails (refused), or it ends as if all were well (taken), or it waits for ever.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from upstream_clients import CANDIDATES, MASKED, Client

from ironwork_server.app.devpki import DevCa

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
# What is sent, and whether the connection ends behind it.
FRAMING: dict[str, tuple[bytes, bool]] = {
    "Content-Length and Transfer-Encoding": (
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        False,
    ),
    "two different lengths": (OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!", False),
    "lines that end in a bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", False),
    "a folded header (obs-fold)": (OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", False),
    "a blank before the colon": (OK + b"Content-Length : 2\r\n\r\nok", True),
    "NUL in a header": (OK + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok", False),
    "a chunk extension (legal)": (CHUNKED + b"2;a=b\r\nok\r\n0\r\n\r\n", False),
    "a chunk size of 0x2": (CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n", False),
    "chunk lines that end in a bare LF": (CHUNKED + b"2\nok\n0\n\n", False),
    "a header of 300 KB": (OK + b"X: " + b"v" * 300_000 + b"\r\nContent-Length: 0\r\n\r\n", False),
    "a body shorter than its length": (OK + b"Content-Length: 10\r\n\r\nshort", True),
    "chunks without their end": (CHUNKED + b"2\r\nok\r\n", True),
}
WAIT_S = 2.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve, **options: object) -> AsyncIterator[int]:
    """A server on loopback that does this with each connection; its port."""
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None] | None] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.add(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            return

    server = await asyncio.start_server(accept, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)


async def asked(reader: asyncio.StreamReader) -> None:
    """A whole request of ours: its head, and 200 bytes."""
    await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(200)


async def outcome(client: Client) -> str:
    """What becomes of one call."""
    try:
        async with asyncio.timeout(WAIT_S):
            await client.call("/unary", lambda _: None)
    except TimeoutError:
        return "waits"
    except Exception:  # noqa: BLE001  each library has its own
        return "refused"
    finally:
        await client.close()
    return "taken"


async def framing(candidate: type[Client], answer: bytes, *, ends: bool) -> str:
    """What becomes of this answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(answer)
        if ends:
            writer.close()
        else:
            await reader.read()

    async with serving(serve) as port:
        return await outcome(candidate(port, None))


async def passes_chunks_on(candidate: type[Client]) -> str:
    """The second event is sent when the first has been delivered."""
    delivered = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await delivered.wait()
        writer.write(b"6\r\nsecond\r\n0\r\n\r\n")
        await reader.read()

    async with serving(serve) as port:
        client = candidate(port, None)
        try:
            async with asyncio.timeout(WAIT_S):
                await client.call("/sse", lambda _: delivered.set())
        except TimeoutError:
            return "no"
        finally:
            await client.close()
    return "yes"


async def cancel_closes(candidate: type[Client]) -> str:
    """The server sees the end within a second of the cancel."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        with suppress(OSError):
            await reader.read()
        ended.set()

    async with serving(serve) as port:
        client = candidate(port, None)
        task = asyncio.ensure_future(client.call("/sse", lambda _: begun.set()))
        await begun.wait()
        task.cancel()
        try:
            async with asyncio.timeout(1):
                await ended.wait()
        except TimeoutError:
            return "no"
        finally:
            await asyncio.gather(task, return_exceptions=True)
            await client.close()
    return "yes"


async def goes_elsewhere(candidate: type[Client], *, redirect: bool) -> str:
    """Whether a second server hears of a call: by a redirect, or by the environment's proxies."""
    heard = False

    async def second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        heard = True

    async with serving(second) as elsewhere:

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            location = b"Location: http://127.0.0.1:%d/\r\n" % elsewhere if redirect else b""
            status = b"307 Go" if redirect else b"200 OK"
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + location + b"Content-Length: 0\r\n\r\n")
            await reader.read()

        if not redirect:
            for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
                os.environ[name] = f"http://127.0.0.1:{elsewhere}"
        try:
            async with serving(serve) as port:
                await outcome(candidate(port, None))
        finally:
            for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
                os.environ.pop(name, None)
    return "no" if heard else "yes"


async def keeps_to_its_roots(candidate: type[Client], folder: Path) -> str:
    """A certificate of a root that only the environment trusts is refused."""
    import ssl

    stranger, ours = DevCa.create(), DevCa.create()
    stranger.server_certificate().write(folder / "other.pem", folder / "other-key.pem")
    (folder / "stranger.pem").write_bytes(stranger.certificate_pem)
    (folder / "ours.pem").write_bytes(ours.certificate_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "other.pem", folder / "other-key.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")
        await reader.read()

    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(folder / "stranger.pem")
    try:
        async with serving(serve, ssl=context) as port:
            told = await outcome(candidate(port, folder / "ours.pem"))
    finally:
        os.environ.pop("SSL_CERT_FILE")
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before
    return "yes" if told == "refused" else "no"


async def can_connect(candidate: type[Client], folder: Path) -> str:
    """Whether a proxy that is told explicitly is asked for a tunnel."""
    asked_for = b""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked_for
        asked_for = await reader.readuntil(b"\r\n\r\n")
        writer.close()

    (folder / "any.pem").write_bytes(DevCa.create().certificate_pem)
    async with serving(proxy) as port:
        await outcome(candidate(9, folder / "any.pem", port))
    if not asked_for:
        return "to be written"
    return "yes" if asked_for.startswith(b"CONNECT localhost:9 HTTP/1.1\r\n") else "no"


async def copies_of_the_key(name: str) -> str:
    """Copies in the client's process while an answer streams, counted from outside; each call
    makes the key anew from a masked form."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await reader.read()

    async with serving(serve) as port:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, name, str(port)), stdout=subprocess.PIPE
        )
        try:
            if process.stdout is None:
                raise TypeError("standard output is a pipe")
            async with asyncio.timeout(30):
                await process.stdout.readline()
            return str(_count(process.pid, bytes(byte ^ 0x5A for byte in MASKED)))
        finally:
            process.kill()
            await process.wait()


def _count(pid: int, needle: bytes) -> int:
    found = 0
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="ascii").splitlines()
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            if " rw" not in line:
                continue
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            try:
                memory.seek(start)
                found += memory.read(end - start).count(needle)
            except (OSError, OverflowError):
                continue
    return found


def print_properties() -> None:
    """The second table: a row for each property, a column for each candidate."""
    print("\n| " + " | ".join(["", *CANDIDATES]) + " |")
    print("|---" * (len(CANDIDATES) + 1) + "|")
    for what, (answer, ends) in FRAMING.items():
        _row(what, lambda name, a=answer, e=ends: framing(CANDIDATES[name], a, ends=e))
    _row("passes chunks on as they come", lambda name: passes_chunks_on(CANDIDATES[name]))
    _row("cancelling closes the socket", lambda name: cancel_closes(CANDIDATES[name]))
    _row("redirects can be left", lambda name: goes_elsewhere(CANDIDATES[name], redirect=True))
    _row("HTTP_PROXY can be ignored", lambda name: goes_elsewhere(CANDIDATES[name], redirect=False))
    with tempfile.TemporaryDirectory() as folder:
        _row("keeps to its roots", lambda name: keeps_to_its_roots(CANDIDATES[name], Path(folder)))
        _row("CONNECT", lambda name: can_connect(CANDIDATES[name], Path(folder)))
    _row("copies of the key while streaming", copies_of_the_key)


def _row(what: str, probe: Callable[[str], Awaitable[str]]) -> None:
    async def one(name: str) -> str:
        return await probe(name)

    cells = [asyncio.run(one(name)) for name in CANDIDATES]
    print("| " + " | ".join([what, *cells]) + " |", flush=True)


async def _hold(name: str, port: int) -> None:
    client = CANDIDATES[name](port, None)
    await client.call("/sse", lambda _: print("streaming", flush=True))


if __name__ == "__main__":
    asyncio.run(_hold(sys.argv[1], int(sys.argv[2])))
