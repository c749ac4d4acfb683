"""The candidates of bench/upstream.py, each behind the same small face.

A candidate is told everything that it can be told to keep to one host, to no redirects and to no
environment, and hands the answer's bytes on as they come.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

HOST = "localhost"
BODY = b"x" * 200
HEADERS = {
    "content-type": "application/json",
    "anthropic-version": "2023-06-01",
    "accept": "application/json",
    "user-agent": "bench",
}
OnChunk = Callable[[bytes], object]


def the_key() -> bytearray:
    """Made anew from a masked form for each call, so that a search of the memory finds only what
    a client keeps."""
    return bytearray(byte ^ 0x5A for byte in MASKED)


# 108 characters, XOR 0x5A.
MASKED = bytes(byte ^ 0x5A for byte in b"sk-ant-api03-") + bytes(
    (0x41 + (7 * place) % 26) ^ 0x5A for place in range(95)
)


class Client(Protocol):
    """One candidate. port: the peer's. ca: its roots; None: plain http. proxy: a CONNECT proxy's
    port."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None: ...

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        """POST BODY; the answer's status once all of it has come."""

    async def close(self) -> None: ...


def _context(ca: Path | None) -> ssl.SSLContext | None:
    if ca is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    return context


class Ours:
    """ironwork_server.upstream: h11 on our own channel, late injection."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        from ironwork_server.upstream import HttpUpstream, UpstreamEndpoint, UpstreamProxy

        endpoint = (
            UpstreamEndpoint("127.0.0.1", port, tls=False)
            if ca is None
            else UpstreamEndpoint(HOST, port, ca_file=ca)
        )
        self._upstream = HttpUpstream(
            endpoint, proxy=UpstreamProxy("127.0.0.1", proxy) if proxy else None
        )
        self._headers = tuple((name.encode(), text.encode()) for name, text in HEADERS.items())

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        from ironwork_server.core.values import ScreenedRequest

        request = ScreenedRequest(
            "POST", path, "", self._headers, len(BODY), True, 1 << 20, "messages"
        )
        async with self._upstream.send(request, _body(), _injector, _Progress()) as response:
            async for chunk in response.chunks():
                on_chunk(chunk)
            return response.status

    async def close(self) -> None:
        await self._upstream.close()


async def _body() -> AsyncIterator[bytes]:
    yield BODY


class _Progress:
    sent = False


class _Injector:
    length = len(MASKED)

    def inject(self, target: memoryview) -> None:
        for place, byte in enumerate(MASKED):
            target[place] = byte ^ 0x5A

    def discard(self) -> None:
        """Nothing is held."""


async def _injector() -> _Injector:
    return _Injector()


class Aiohttp:
    """aiohttp: its C parser (llhttp) on asyncio's TLS."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        import aiohttp

        self._url = f"{'https' if ca else 'http'}://{HOST if ca else '127.0.0.1'}:{port}"
        self._proxy = f"http://127.0.0.1:{proxy}" if proxy else None
        connector = aiohttp.TCPConnector(ssl=_context(ca) or True, limit=256)
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        async with self._session.post(
            self._url + path,
            data=BODY,
            headers={**HEADERS, "x-api-key": the_key().decode()},
            allow_redirects=False,
            proxy=self._proxy,
        ) as response:
            async for chunk in response.content.iter_any():
                on_chunk(chunk)
            return response.status

    async def close(self) -> None:
        await self._session.close()


class Httpcore:
    """httpcore: h11 on anyio's TLS."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        import httpcore

        self._url = f"{'https' if ca else 'http'}://{HOST if ca else '127.0.0.1'}:{port}"
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_context(ca),
            max_connections=256,
            http2=False,
            proxy=httpcore.Proxy(f"http://127.0.0.1:{proxy}") if proxy else None,
        )

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        async with self._pool.stream(
            "POST",
            self._url + path,
            headers={**HEADERS, "x-api-key": the_key().decode(), "content-length": str(len(BODY))},
            content=BODY,
        ) as response:
            async for chunk in response.aiter_stream():
                on_chunk(chunk)
            return int(response.status)

    async def close(self) -> None:
        await self._pool.aclose()


class Pyreqwest:
    """pyreqwest: reqwest, hyper and rustls on a thread of tokio."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        from pyreqwest.client import ClientBuilder
        from pyreqwest.proxy import ProxyBuilder

        self._url = f"{'https' if ca else 'http'}://{HOST if ca else '127.0.0.1'}:{port}"
        builder = ClientBuilder().follow_redirects(False).http1_only().no_proxy()
        for coding in ("gzip", "brotli", "zstd", "deflate"):
            builder = getattr(builder, coding)(False)
        if ca is not None:
            builder = builder.add_root_certificate_pem(ca.read_bytes())
        if proxy:
            builder = builder.proxy(ProxyBuilder.https(f"http://127.0.0.1:{proxy}"))
        self._client = builder.build()

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        builder = self._client.post(self._url + path).headers(
            {**HEADERS, "x-api-key": the_key().decode()}
        )
        # The default is to wait until 64 KiB have come.
        request = builder.body_bytes(BODY).streamed_read_buffer_limit(0).build_streamed()
        async with request as response:
            while (chunk := await response.body_reader.read_chunk()) is not None:
                on_chunk(bytes(chunk))
            return int(response.status)

    async def close(self) -> None:
        await self._client.close()


_HEAD = "".join(f"{name}: {text}\r\n" for name, text in HEADERS.items()).encode()


class _Answer:
    """What httptools' parser calls; the least that a relay needs."""

    def __init__(self) -> None:
        import httptools

        self.parser: Any = httptools.HttpResponseParser(self)
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    def take(self) -> bytes:
        """The body so far."""
        body, self.body = b"".join(self.body), []
        return body


def _fill(path: str, host: str) -> bytearray:
    """Head and body with the key injected: to be written at once, and wiped."""
    before = b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: %d\r\nx-api-key: " % (
        *(path.encode(), host.encode(), _HEAD),
        len(BODY),
    )
    buffer = bytearray().join((before, bytes(len(MASKED)), b"\r\n\r\n", BODY))
    with memoryview(buffer)[len(before) : len(before) + len(MASKED)] as target:
        _Injector().inject(target)
    return buffer


class ThinOnChannel:
    """A thin protocol on httptools, on our channel: late injection, deadlines, no exchange."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        self._port = port
        self._context = _context(ca)
        self._idle: list[Any] = []

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        from ironwork_server.upstream.channel import Channel

        channel = self._idle.pop() if self._idle else None
        if channel is None or not channel.is_quiet():
            channel = await Channel.open(
                HOST if self._context else "127.0.0.1", self._port, self._context, HOST
            )
        answer = _Answer()
        try:
            buffer = _fill(path, HOST)
            channel.write(buffer)
            buffer[:] = bytes(len(buffer))
            while not answer.complete:
                async with asyncio.timeout(300):
                    data = await channel.read()
                if not data:
                    raise ConnectionError("cut")  # noqa: TRY301
                answer.parser.feed_data(data)
                if chunk := answer.take():
                    on_chunk(chunk)
        except BaseException:
            channel.abort()
            raise
        self._idle.append(channel)
        return int(answer.parser.get_status_code())

    async def close(self) -> None:
        for channel in self._idle:
            channel.abort()


class _ThinProtocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.answer = _Answer()
        self.lost: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        try:
            self.answer.parser.feed_data(data)
        except Exception as error:  # noqa: BLE001  whatever the parser says ends the call
            self.lost = error
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or exc or ConnectionError("cut")
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self) -> None:
        """Until something has come."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter


class ThinOnAsyncio:
    """A thin protocol on httptools, on asyncio's own TLS."""

    def __init__(self, port: int, ca: Path | None, proxy: int | None = None) -> None:
        self._port = port
        self._context = _context(ca)
        self._idle: list[tuple[asyncio.Transport, _ThinProtocol]] = []

    async def call(self, path: str, on_chunk: OnChunk) -> int:
        loop = asyncio.get_running_loop()
        if self._idle:
            transport, protocol = self._idle.pop()
        else:
            transport, protocol = await loop.create_connection(
                *(_ThinProtocol, HOST if self._context else "127.0.0.1", self._port),
                ssl=self._context,
            )
        answer = protocol.answer = _Answer()
        try:
            buffer = _fill(path, HOST)
            transport.write(bytes(buffer))
            buffer[:] = bytes(len(buffer))
            while not answer.complete:
                async with asyncio.timeout(300):
                    if not answer.body and protocol.lost is None:
                        await protocol.wait()
                if chunk := answer.take():
                    on_chunk(chunk)
                elif protocol.lost is not None and not answer.complete:
                    raise protocol.lost  # noqa: TRY301
        except BaseException:
            transport.abort()
            raise
        self._idle.append((transport, protocol))
        return int(answer.parser.get_status_code())

    async def close(self) -> None:
        for transport, _ in self._idle:
            transport.abort()


CANDIDATES: dict[str, type[Client]] = {
    "ours (h11, own channel)": Ours,
    "httptools, own channel": ThinOnChannel,
    "httptools, asyncio's TLS": ThinOnAsyncio,
    "aiohttp": Aiohttp,
    "httpcore": Httpcore,
    "pyreqwest": Pyreqwest,
}
