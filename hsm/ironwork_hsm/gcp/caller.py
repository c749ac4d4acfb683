"""Calls to Google Cloud KMS with our deadlines, bounds and retries; the seam for its errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
from google.cloud.kms_v1 import KeyManagementServiceAsyncClient

from ironwork_hsm.gcp.calls import make_client
from ironwork_hsm.gcp.errors import is_passing, is_rejection, rejected, translate
from ironwork_hsm.interface import BackendOptions, Busy, HsmError, Unavailable

Result = TypeVar("Result")
Client = KeyManagementServiceAsyncClient

ATTEMPTS = 3

_CLOSED = "The Google Cloud KMS backend is closed."
# Seconds before another attempt.
_PAUSE_S = 0.1


class Caller:
    """One channel, for the loop it was opened on. channel: for tests, whose KMS is on loopback."""

    def __init__(self, options: BackendOptions, *, channel: grpc.aio.Channel | None) -> None:
        self._options = options
        self._channel = channel
        self._client: Client | None = None
        # Known once it is open: see make_client.
        self.credentials_last = False
        self._closed = False
        # Calls on their way; at most options.lanes + options.queue.
        self._calls = 0

    async def open(self) -> None:
        """Find credentials. Raises ConfigurationError, Unavailable."""
        self._client, self.credentials_last = await self.within(
            self._options.slow_deadline_s, lambda: make_client(self._channel)
        )

    async def close(self) -> None:
        """Close the channel; calls on their way get Unavailable. A second call does nothing."""
        self._closed = True
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    async def call(
        self,
        function: Callable[[Client, float], Awaitable[Result]],
        *,
        deadline_s: float | None = None,
        attempts: int = ATTEMPTS,
        decrypting: bool = False,
    ) -> Result:
        """function with the client and seconds for one attempt; again where its failure is passing.

        decrypting: INVALID_ARGUMENT means a wrong blob, once it was said twice. Raises HsmError.
        """
        limit = self._options.deadline_s if deadline_s is None else deadline_s
        if self._calls >= self._options.lanes + self._options.queue:
            raise Busy("Google Cloud KMS is busy: too many calls are on their way to it.")
        self._calls += 1
        try:
            return await self.within(
                limit, lambda: self._attempt(function, limit, attempts, decrypting=decrypting)
            )
        finally:
            self._calls -= 1

    async def _attempt(
        self,
        function: Callable[[Client, float], Awaitable[Result]],
        limit: float,
        attempts: int,
        *,
        decrypting: bool,
    ) -> Result:
        rejections = 0
        for last in range(attempts - 1, -1, -1):
            if self._client is None:
                break
            try:
                # An attempt that hangs leaves time for another.
                return await function(self._client, limit if attempts == 1 else limit / 2)
            except Exception as error:
                rejections += decrypting and is_rejection(error)
                if rejections > 1:
                    raise rejected() from None
                if not last or not (is_passing(error) or rejections):
                    raise
            await asyncio.sleep(_PAUSE_S)
        raise Unavailable(_CLOSED)

    async def within(self, limit: float, function: Callable[[], Awaitable[Result]]) -> Result:
        """The seam: whatever happens becomes an HsmError, without a context."""
        failure: HsmError
        try:
            async with asyncio.timeout(limit):
                return await function()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Not the caller's: closing the channel cancels the calls that are on it.
            failure = Unavailable(_CLOSED)
        except TimeoutError:
            failure = Unavailable(f"Google Cloud KMS did not answer within {limit:g} s.")
        except Exception as error:  # noqa: BLE001  the seam
            failure = translate(error)
        failure.__context__ = None
        raise failure
