"""The transports for httpx: `anthropic` before 1, LiteLLM, and whatever else is built on it.

They need the package httpx (`pip install 'ironwork-client[httpx]'`) and are those of
`ironwork_client`, which are for httpx2, in all but the library: what is said there holds here.
"""

try:
    import httpx
except ModuleNotFoundError as missing:
    if missing.name != "httpx":
        raise
    raise ModuleNotFoundError(
        "ironwork_client.httpx needs the package httpx: pip install 'ironwork-client[httpx]'."
        " (anthropic from 1 on uses httpx2: its transports are in ironwork_client itself.)",
        name="httpx",
    ) from None

from ironwork_client.transport._face_async import AsyncBytes, AsyncFace
from ironwork_client.transport._face_sync import SyncBytes, SyncFace

__all__ = ["AsyncWithKeyTransport", "WithKeyTransport"]


class _SyncStream(SyncBytes, httpx.SyncByteStream):
    """An answer's body."""


class _AsyncStream(AsyncBytes, httpx.AsyncByteStream):
    """An answer's body."""


class WithKeyTransport(SyncFace[httpx.Request, httpx.Response], httpx.BaseTransport):
    """As ironwork_client.WithKeyTransport, for httpx.

    client = anthropic.Anthropic(
        api_key="held-by-ironwork",
        http_client=httpx.Client(transport=WithKeyTransport(Profile.load(path))),
    )
    """

    _library = httpx
    _bytes = _SyncStream


class AsyncWithKeyTransport(AsyncFace[httpx.Request, httpx.Response], httpx.AsyncBaseTransport):
    """As ironwork_client.AsyncWithKeyTransport, for httpx.

    client = anthropic.AsyncAnthropic(
        api_key="held-by-ironwork",
        http_client=httpx.AsyncClient(transport=AsyncWithKeyTransport(Profile.load(path))),
    )
    """

    _library = httpx
    _bytes = _AsyncStream
