"""What lets a call in must hold until its end: policy, certificate, and the CA behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Protocol

from ironwork_server.core.errors import IronworkError, permission_denied
from ironwork_server.core.values import Action, Principal, Resource
from ironwork_server.custody.gate import Gate
from ironwork_server.rpc.context import Context
from ironwork_server.rpc.peer import Peers, untrusted

# A certificate's end is a moment of the wall clock, which somebody may set, and a wait is not: so
# the clock is looked at again, at the latest after so many seconds.
LOOK_S = 15.0

# Why what was under way has ended.
EXPIRED = "CERTIFICATE_EXPIRED"
UNTRUSTED = "CERTIFICATE_UNTRUSTED"
REVOKED = "GRANT_REVOKED"


class Changes(Protocol):
    """Something that is reloaded, and tells any number of waiters."""

    @property
    def generation(self) -> int: ...

    async def wait_newer(self, generation: int) -> int:
        """Wait for a generation above this one; the caller bounds the wait."""


class EitherChange:
    """Changes of several sources as those of one."""

    def __init__(self, sources: Sequence[Changes]) -> None:
        self._sources = sources

    @property
    def generation(self) -> int:
        return sum(source.generation for source in self._sources)

    async def wait_newer(self, generation: int) -> int:
        """See Changes."""
        while self.generation <= generation:
            waits = [
                asyncio.ensure_future(source.wait_newer(source.generation))
                for source in self._sources
            ]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        return self.generation


class Grants:
    """Whether what a caller was let in for still holds. changes: policies' and client CAs'."""

    def __init__(
        self,
        *,
        peers: Peers,
        gate: Gate,
        changes: Changes,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._peers = peers
        self._gate = gate
        self._changes = changes
        self._now = now

    async def lost(
        self, context: Context, principal: Principal, action: Action, resource: Resource
    ) -> str:
        """Returns when it no longer holds, and why: EXPIRED, UNTRUSTED or REVOKED."""
        generation = self._changes.generation
        while True:
            left = (principal.expires_at - self._now()).total_seconds()
            if left <= 0:
                return EXPIRED
            if not self._peers.trusts(context):
                return UNTRUSTED
            if not self._gate.permits(principal, action, resource):
                return REVOKED
            generation = await self._newer(generation, left)

    async def untrusted(self, context: Context) -> str:
        """For RPCs that any peer of a client CA may call: UNTRUSTED, when it is so."""
        generation = self._changes.generation
        while self._peers.trusts(context):
            generation = await self._changes.wait_newer(generation)
        return UNTRUSTED

    async def _newer(self, generation: int, seconds: float) -> int:
        try:
            async with asyncio.timeout(min(seconds, LOOK_S)):
                return await self._changes.wait_newer(generation)
        except TimeoutError:
            return generation


class Hold:
    """One call's task, and why it was ended, if it was; for the task itself to use.

    `endings` stands around and inside the call's admission: inside, so that the record has the
    reason; around, for what comes while it is admitted or recorded.
    """

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._reason = ""

    @asynccontextmanager
    async def until(self, lost: "asyncio.Task[str]") -> AsyncIterator[None]:
        """Cancel the call when `lost` returns."""
        lost.add_done_callback(self._end)
        try:
            yield
        finally:
            lost.remove_done_callback(self._end)
            lost.cancel()

    @asynccontextmanager
    async def endings(self) -> AsyncIterator[None]:
        """The cancellation with a reason becomes that error."""
        try:
            yield
        except asyncio.CancelledError:
            if not self._reason or self._task is None:
                raise
            self._task.uncancel()
            raise refusal(self._reason) from None

    def _end(self, lost: "asyncio.Task[str]") -> None:
        if self._task is None or lost.cancelled():
            return
        # A watcher that breaks sees no revocation any more: then nothing goes on.
        self._reason = lost.result() if lost.exception() is None else REVOKED
        self._task.cancel()


def refusal(reason: str) -> IronworkError:
    """What a caller is told whose grant was lost."""
    return untrusted() if reason == UNTRUSTED else permission_denied()
