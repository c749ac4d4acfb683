"""The sync transport as every library of httpx's kind wants it."""

from collections.abc import Callable, Iterator
from typing import Generic

from ironwork_client.profile import Profile
from ironwork_client.transport import _face_common as common
from ironwork_client.transport._face_common import Library, RequestT, ResponseT
from ironwork_client.transport._settings import DEFAULT_IDLE_STREAMS, DEFAULT_STREAMS, Settings
from ironwork_client.transport._sync_core import SyncBody, SyncCore
from ironwork_client.transport._sync_stream import Outgoing
from ironwork_client.transport._values import CallReport, Fault, FaultKind, Refused


class SyncBytes:
    """An answer's body. A library's face mixes in its SyncByteStream, which its client checks."""

    def __init__(self, body: SyncBody, error: Callable[[Fault], Exception]) -> None:
        """error: a fault as the library names it."""
        self._body = body
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Fault as fault:
            raise self._error(fault) from None

    def close(self) -> None:
        self._body.close()


class SyncFace(Generic[RequestT, ResponseT]):
    """A library's face mixes in its BaseTransport and names its module and its SyncBytes."""

    _library: Library[RequestT, ResponseT]
    _bytes: type[SyncBytes]

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
        self._core = SyncCore(
            Settings.checked(
                profile,
                task=task,
                agent=agent,
                max_idle_streams=max_idle_streams,
                max_streams=max_streams,
            )
        )

    def handle_request(self, request: RequestT) -> ResponseT:
        """Send one request; the response streams. Raises the library's TransportErrors."""

        def error(fault: Fault) -> Exception:
            return common.error(self._library, fault, request)

        report = CallReport()
        try:
            answer, body = self._core.send(self._outgoing(request), report)
        except Fault as fault:
            raise error(fault) from None
        except Refused as refused:
            return common.refused(self._library, request, refused.refusal, report)
        return common.answered(self._library, request, answer, self._bytes(body, error), report)

    def close(self) -> None:
        """End all streams, also those in use."""
        self._core.close()

    def _outgoing(self, request: RequestT) -> Outgoing:
        body = request.stream
        if not isinstance(body, self._library.SyncByteStream):
            raise Fault(
                FaultKind.LOCAL_PROTOCOL, "An async body needs an AsyncClient and its transport."
            )
        return Outgoing(
            head=common.head(request),
            body=body,
            replayable=common.replayable(self._library, request),
            timeouts=common.timeouts(request),
        )
