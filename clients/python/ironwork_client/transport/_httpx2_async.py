"""The asyncio transport for httpx2."""

from collections.abc import AsyncIterator

import httpx2

from ironwork_client.profile import Profile
from ironwork_client.transport import _httpx2_common as common
from ironwork_client.transport._async_core import AsyncBody, AsyncCore
from ironwork_client.transport._async_stream import AsyncOutgoing
from ironwork_client.transport._settings import DEFAULT_IDLE_STREAMS, DEFAULT_STREAMS, Settings
from ironwork_client.transport._values import CallReport, Fault, FaultKind, Refused


class AsyncWithKeyTransport(httpx2.AsyncBaseTransport):
    """Performs requests to https://api.anthropic.com on the Ironwork server, with the
    workspace's key.

        client = anthropic.AsyncAnthropic(
            api_key="held-by-ironwork",
            http_client=httpx2.AsyncClient(transport=AsyncWithKeyTransport(Profile.load(path))),
        )

    As WithKeyTransport, for asyncio (not trio). It may be used in several event loops, each of
    which has streams of its own; `aclose` ends those of the loop it is called in. Cancelling a
    task that waits for an answer ends the request upstream.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        task: str = "",
        agent: str = "",
        max_idle_streams: int = DEFAULT_IDLE_STREAMS,
        max_streams: int = DEFAULT_STREAMS,
    ) -> None:
        """task, agent: what the audit log shows as claimed. max_streams: requests at once."""
        self._core = AsyncCore(
            Settings.checked(
                profile,
                task=task,
                agent=agent,
                max_idle_streams=max_idle_streams,
                max_streams=max_streams,
            )
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; the response streams."""
        report = CallReport()
        try:
            answer, body = await self._core.send(_outgoing(request), report)
        except Fault as fault:
            raise common.error(fault, request) from None
        except Refused as refused:
            return common.refused(refused.refusal, report, request)
        return httpx2.Response(
            answer.status,
            headers=list(answer.headers),
            stream=_ResponseStream(body, request),
            request=request,
            extensions={common.EXTENSION: report},
        )

    async def aclose(self) -> None:
        """End all streams of this event loop, also those in use."""
        await self._core.close()


class _ResponseStream(httpx2.AsyncByteStream):
    def __init__(self, body: AsyncBody, request: httpx2.Request) -> None:
        self._body = body
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._body:
                yield data
        except Fault as fault:
            raise common.error(fault, self._request) from None

    async def aclose(self) -> None:
        await self._body.close()


def _outgoing(request: httpx2.Request) -> AsyncOutgoing:
    if not isinstance(request.stream, httpx2.AsyncByteStream):
        raise Fault(FaultKind.LOCAL_PROTOCOL, "A sync body needs httpx2.Client and its transport.")
    return AsyncOutgoing(
        head=common.head(request),
        body=request.stream,
        replayable=common.replayable(request),
        timeouts=common.timeouts(request),
    )
