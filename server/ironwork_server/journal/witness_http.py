"""The way to a witness: one POST at a time, bounded in time and size, never led on elsewhere.

Nothing secret goes to a witness: a checkpoint is the log's name, its size and a hash.
"""

import ssl
from typing import Final

import httpx2

from ironwork_audit.witness import ADD_CHECKPOINT, MAX_ANSWER_BYTES, checked_url
from ironwork_audit.witness_submission import Answer, WitnessFailed

CONNECT_S: Final = 5.0


class WitnessEndpoint:
    """Made on the loop that uses it, closed once. No redirects, no proxy or other setting from the
    environment; trust: for https, by default the system's roots.
    """

    def __init__(self, url: str, *, trust: ssl.SSLContext | None = None) -> None:
        self._url = checked_url(url) + ADD_CHECKPOINT
        self._client = httpx2.AsyncClient(
            verify=trust or ssl.create_default_context(),
            trust_env=False,
            follow_redirects=False,
            timeout=CONNECT_S,
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
        )

    async def add_checkpoint(self, body: bytes) -> Answer:
        """The answer. The caller has the deadline. Raises WitnessFailed (WITNESS_UNREACHABLE)."""
        try:
            return await self._post(body)
        except (httpx2.HTTPError, httpx2.StreamError, OSError):
            # Also where a connection was closed meanwhile: the next attempt makes a new one.
            raise WitnessFailed("WITNESS_UNREACHABLE") from None

    async def _post(self, body: bytes) -> Answer:
        headers = {"accept-encoding": "identity", "content-type": "text/plain; charset=utf-8"}
        async with self._client.stream(
            "POST", self._url, content=body, headers=headers
        ) as response:
            data = bytearray()
            async for part in response.aiter_raw():
                data += part
                if len(data) > MAX_ANSWER_BYTES:
                    raise WitnessFailed("WITNESS_ANSWER_WRONG")
            return Answer(response.status_code, bytes(data))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
