"""The asyncio transport as every library of httpx's kind wants it."""

from collections.abc import AsyncIterator, Callable
from typing import Generic

from ironwork_client.profile import Profile
from ironwork_client.transport import _face_common as common
from ironwork_client.transport._async_core import AsyncBody, AsyncCore
from ironwork_client.transport._async_stream import AsyncOutgoing
from ironwork_client.transport._face_common import Library, RequestT, ResponseT
from ironwork_client.transport._settings import DEFAULT_IDLE_STREAMS, DEFAULT_STREAMS, Settings
from ironwork_client.transport._values import CallReport, Fault, FaultKind, Refused


class AsyncBytes:
    """An answer's body. A library's face mixes in its AsyncByteStream, which its client checks."""

    def __init__(self, body: AsyncBody, error: Callable[[Fault], Exception]) -> None:
        """error: a fault as the library names it."""
        self._body = body
        self._error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._body:
                yield data
        except Fault as fault:
            raise self._error(fault) from None

    async def aclose(self) -> None:
        await self._body.close()


class AsyncFace(Generic[RequestT, ResponseT]):
    """A library's face mixes in its AsyncBaseTransport and names its module and its AsyncBytes."""

    _library: Library[RequestT, ResponseT]
    _bytes: type[AsyncBytes]

    def __init__(
        self,
        profile: Profile,
        *,
        task: str = "",
        agent: str = "",
        max_idle_streams: int = DEFAULT_IDLE_STREAMS,
        max_streams: int = DEFAULT_STREAMS,
    ) -> None:
        """task, agent: what the audit log shows as claimed. max_streams: requests at once.

        Raises ValueError and ProfileError for what cannot work.
        """
        self._core = AsyncCore(
            Settings.checked(
                profile,
                task=task,
                agent=agent,
                max_idle_streams=max_idle_streams,
                max_streams=max_streams,
            )
        )

    async def handle_async_request(self, request: RequestT) -> ResponseT:
        """Send one request; the response streams. Raises the library's TransportErrors."""

        def error(fault: Fault) -> Exception:
            return common.error(self._library, fault, request)

        report = CallReport()
        try:
            answer, body = await self._core.send(self._outgoing(request), report)
        except Fault as fault:
            raise error(fault) from None
        except Refused as refused:
            return common.refused(self._library, request, refused.refusal, report)
        return common.answered(self._library, request, answer, self._bytes(body, error), report)

    async def aclose(self) -> None:
        """End all streams of this event loop, also those in use."""
        await self._core.close()

    def _outgoing(self, request: RequestT) -> AsyncOutgoing:
        body = request.stream
        if not isinstance(body, self._library.AsyncByteStream):
            raise Fault(FaultKind.LOCAL_PROTOCOL, "A sync body needs a Client and its transport.")
        return AsyncOutgoing(
            head=common.head(request),
            body=body,
            replayable=common.replayable(self._library, request),
            timeouts=common.timeouts(request),
        )
