"""The relay to Anthropic: core.ports.Upstream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from ironwork_server.core.meter import SILENT, Meter
from ironwork_server.core.ports import (
    Credential,
    Injector,
    SendProgress,
    StaleCredential,
    UpstreamResponse,
)
from ironwork_server.core.values import ScreenedRequest
from ironwork_server.upstream import faults
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.connector import Connector
from ironwork_server.upstream.endpoint import UpstreamEndpoint
from ironwork_server.upstream.exchange import Exchange
from ironwork_server.upstream.pool import Pool
from ironwork_server.upstream.proxy import UpstreamProxy
from ironwork_server.upstream.timeouts import (
    DEFAULT_MAX_CONNECTIONS,
    MAX_PREPARATIONS,
    MAX_PREPARING,
    UpstreamTimeouts,
)


class HttpUpstream:
    """Sends requests to its endpoint and to nobody else, over HTTP/1.1. Belongs to the event
    loop it is used in.

    Raises ValueError where trust roots or the proxy's credentials cannot be loaded.
    """

    def __init__(
        self,
        endpoint: UpstreamEndpoint,
        *,
        proxy: UpstreamProxy | None = None,
        timeouts: UpstreamTimeouts | None = None,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        max_preparing: int = MAX_PREPARING,
        meter: Meter = SILENT,
    ) -> None:
        self._endpoint = endpoint
        self._timeouts = timeouts or UpstreamTimeouts()
        connector = Connector(endpoint, self._timeouts, proxy)
        self._pool = Pool(connector, self._timeouts, max_connections, meter)
        # First come, first served; one is held from the read of a key to the write.
        self._turns = asyncio.Semaphore(max_preparing)

    @property
    def endpoint(self) -> UpstreamEndpoint:
        return self._endpoint

    @property
    def connections(self) -> tuple[int, int]:
        """In use and idle."""
        return self._pool.counts

    def connection_counts(self) -> dict[str, int]:
        """The same by name, for metrics."""
        used, idle = self._pool.counts
        return {"used": used, "idle": idle}

    def send(
        self,
        request: ScreenedRequest,
        body: AsyncIterator[bytes],
        credential: Credential,
        progress: SendProgress,
    ) -> AbstractAsyncContextManager[UpstreamResponse]:
        """core.ports.Upstream.send. Its reasons:

        Unavailable: UPSTREAM_DNS, UPSTREAM_UNREACHABLE, UPSTREAM_TLS_UNTRUSTED,
        UPSTREAM_TLS_FAILED, UPSTREAM_LIMIT, UPSTREAM_CLOSED, UPSTREAM_TIMEOUT_CONNECT,
        UPSTREAM_PROXY_UNREACHABLE, UPSTREAM_PROXY_UNTRUSTED, UPSTREAM_PROXY_REFUSED,
        UPSTREAM_PROXY_MALFORMED, UPSTREAM_PROXY_TIMEOUT, CREDENTIAL_TIMEOUT, CREDENTIAL_STALE
        (nothing was sent: they carry retry_after_s);
        UPSTREAM_TIMEOUT_WRITE, UPSTREAM_TIMEOUT_FIRST_BYTE, UPSTREAM_TIMEOUT_IDLE, BODY_TIMEOUT.
        UpstreamFailed: UPSTREAM_CUT, UPSTREAM_MALFORMED, UPSTREAM_REDIRECT.
        InvalidRequest: HEADER_REFUSED, HEAD_MALFORMED, BODY_TOO_LARGE, BODY_LENGTH_MISMATCH.
        """
        return self._send(request, body, credential, progress)

    @asynccontextmanager
    async def _send(
        self,
        request: ScreenedRequest,
        body: AsyncIterator[bytes],
        credential: Credential,
        progress: SendProgress,
    ) -> AsyncIterator[UpstreamResponse]:
        exchange = Exchange(request, body, self._endpoint.authority, self._timeouts)
        channel = await self._start(exchange, credential, progress)
        try:
            await exchange.open()
            yield exchange
        finally:
            self._pool.release(channel, reusable=exchange.end())
            await exchange.settle()

    async def close(self) -> None:
        await self._pool.close()

    async def _start(
        self, exchange: Exchange, credential: Credential, progress: SendProgress
    ) -> Channel:
        """Have the head written on a live connection, with a fresh key. The connection comes
        first, so that the key is read and decrypted as late as can be."""
        for _ in range(MAX_PREPARATIONS):
            channel = await self._pool.acquire()
            started = False
            try:
                started = await self._begin(exchange, channel, credential, progress)
            finally:
                if not started:
                    self._pool.release(channel, reusable=not progress.sent)
            if started:
                return channel
        raise faults.connections_died()

    async def _begin(
        self,
        exchange: Exchange,
        channel: Channel,
        credential: Credential,
        progress: SendProgress,
    ) -> bool:
        """Read the key and write the head; False where the connection died meanwhile. A read that
        went stale is done again at once: its connection and its turn are kept.
        """
        async with self._turn():
            for _ in range(MAX_PREPARATIONS):
                injector = await self._prepare(credential)
                try:
                    alive = channel.is_quiet()
                    if alive:
                        exchange.start(channel, injector, progress)
                except StaleCredential:
                    continue
                else:
                    return alive
                finally:
                    injector.discard()
        raise faults.credential_stale()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Few are between read and write together, so that a read does not grow old while the
        reads of hundreds of others go before it.
        """
        try:
            async with asyncio.timeout(self._timeouts.pool_wait_s):
                await self._turns.acquire()
        except TimeoutError:
            raise faults.pool_exhausted() from None
        try:
            yield
        finally:
            self._turns.release()

    async def _prepare(self, credential: Credential) -> Injector:
        deadline = asyncio.timeout(self._timeouts.credential_s)
        try:
            async with deadline:
                return await credential()
        except TimeoutError:
            if deadline.expired():
                raise faults.timeout_fault("credential") from None
            raise
