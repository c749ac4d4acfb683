"""Opens connections to the one endpoint, directly or through the operator's proxy."""

import asyncio

from ironwork_server.upstream import faults
from ironwork_server.upstream.channel import Channel
from ironwork_server.upstream.endpoint import UpstreamEndpoint
from ironwork_server.upstream.faults import FOREIGN
from ironwork_server.upstream.proxy import UpstreamProxy
from ironwork_server.upstream.timeouts import UpstreamTimeouts
from ironwork_server.upstream.tunnel import open_tunnel


class Connector:
    """To whom a connection leads is verified at its end by TLS, whichever way it takes."""

    def __init__(
        self, endpoint: UpstreamEndpoint, timeouts: UpstreamTimeouts, proxy: UpstreamProxy | None
    ) -> None:
        """Raises ValueError where trust roots or the proxy's credentials cannot be loaded, and for
        a proxy to an endpoint without TLS, since it would read everything.
        """
        self._endpoint = endpoint
        self._timeouts = timeouts
        self._proxy = proxy
        self._context = endpoint.tls_context()
        if proxy is not None and not endpoint.tls:
            raise ValueError("upstream.proxy: it is for https upstreams only; leave it out")
        self._proxy_context = proxy.tls_context() if proxy is not None else None
        self._authorization = proxy.authorization() if proxy is not None else None

    async def open(self) -> Channel:
        """A connection that has proved where it ends. Raises Unavailable."""
        if self._proxy is None:
            return await self._direct()
        channel = await self._tunnel(self._proxy)
        return await self._secured(channel)

    async def _direct(self) -> Channel:
        endpoint = self._endpoint
        deadline = asyncio.timeout(self._timeouts.connect_s)
        try:
            async with deadline:
                return await Channel.open(
                    endpoint.address, endpoint.port, self._context, endpoint.host
                )
        except OSError as error:
            if deadline.expired():
                raise faults.timeout_fault("connect") from None
            raise faults.connect_fault(error) from None

    async def _tunnel(self, proxy: UpstreamProxy) -> Channel:
        channel = None
        made = False
        deadline = asyncio.timeout(self._timeouts.connect_s)
        try:
            async with deadline:
                channel = await Channel.open(
                    proxy.host, proxy.port, self._proxy_context, proxy.host
                )
                await open_tunnel(channel, self._endpoint.tunnel_target, self._authorization)
                made = True
                return channel
        except FOREIGN as error:
            if deadline.expired():
                raise faults.timeout_fault("proxy") from None
            raise faults.proxy_fault(error) from None
        finally:
            if channel is not None and not made:
                channel.abort()

    async def _secured(self, channel: Channel) -> Channel:
        deadline = asyncio.timeout(self._timeouts.connect_s)
        try:
            async with deadline:
                if self._context is not None:
                    await channel.start_tls(self._context, self._endpoint.host)
                return channel
        except OSError as error:
            if deadline.expired():
                raise faults.timeout_fault("connect") from None
            raise faults.connect_fault(error) from None
