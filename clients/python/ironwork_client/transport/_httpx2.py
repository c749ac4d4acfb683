"""The transports for httpx2."""

import httpx2

from ironwork_client.transport._face_async import AsyncBytes, AsyncFace
from ironwork_client.transport._face_sync import SyncBytes, SyncFace


class _SyncStream(SyncBytes, httpx2.SyncByteStream):
    """An answer's body."""


class _AsyncStream(AsyncBytes, httpx2.AsyncByteStream):
    """An answer's body."""


class WithKeyTransport(SyncFace[httpx2.Request, httpx2.Response], httpx2.BaseTransport):
    """Performs requests to https://api.anthropic.com on the Ironwork server, with the
    workspace's key.

        client = anthropic.Anthropic(
            api_key="held-by-ironwork",
            http_client=httpx2.Client(transport=WithKeyTransport(Profile.load(path))),
        )

    Each response carries a CallReport in `response.extensions["ironwork"]`. Errors are httpx2's
    own; a refusal by the service is a response in Anthropic's shape with `x-ironwork-reason`.
    Safe for threads. A request's body is read in a thread of gRPC's.
    """

    _library = httpx2
    _bytes = _SyncStream


class AsyncWithKeyTransport(AsyncFace[httpx2.Request, httpx2.Response], httpx2.AsyncBaseTransport):
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

    _library = httpx2
    _bytes = _AsyncStream
