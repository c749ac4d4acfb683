"""The sync transport for httpx2."""

from collections.abc import Iterator

import httpx2

from ironwork_client.profile import Profile
from ironwork_client.transport import _httpx2_common as common
from ironwork_client.transport._settings import DEFAULT_IDLE_STREAMS, DEFAULT_STREAMS, Settings
from ironwork_client.transport._sync_core import SyncBody, SyncCore
from ironwork_client.transport._sync_stream import Outgoing
from ironwork_client.transport._values import CallReport, Fault, FaultKind, Refused


class WithKeyTransport(httpx2.BaseTransport):
    """Performs requests to https://api.anthropic.com on the Ironwork server, with the
    workspace's key.

        client = anthropic.Anthropic(
            api_key="held-by-ironwork",
            http_client=httpx2.Client(transport=WithKeyTransport(Profile.load(path))),
        )

    Each response carries a CallReport in `response.extensions["ironwork"]`. Errors are httpx2's
    own; a refusal by the service is a response in Anthropic's shape with `x-ironwork-reason`.
    Safe for threads. A request's body is read in a thread of gRPC's. Raises ValueError and
    ProfileError when it is made with what cannot work.
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
        self._core = SyncCore(
            Settings.checked(
                profile,
                task=task,
                agent=agent,
                max_idle_streams=max_idle_streams,
                max_streams=max_streams,
            )
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; the response streams."""
        report = CallReport()
        try:
            answer, body = self._core.send(_outgoing(request), report)
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

    def close(self) -> None:
        """End all streams, also those in use."""
        self._core.close()


class _ResponseStream(httpx2.SyncByteStream):
    def __init__(self, body: SyncBody, request: httpx2.Request) -> None:
        self._body = body
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except Fault as fault:
            raise common.error(fault, self._request) from None

    def close(self) -> None:
        self._body.close()


def _outgoing(request: httpx2.Request) -> Outgoing:
    if not isinstance(request.stream, httpx2.SyncByteStream):
        raise Fault(
            FaultKind.LOCAL_PROTOCOL, "An async body needs httpx2.AsyncClient and its transport."
        )
    return Outgoing(
        head=common.head(request),
        body=request.stream,
        replayable=common.replayable(request),
        timeouts=common.timeouts(request),
    )
