"""Turns at reading requests: how many may be read at once, and how many of them one caller's.

Each role has turns of its own: no number of auditors, or of agents whom a policy lets call such an
RPC, keeps a key-admin waiting. gRPC holds a unary request whole (up to 11 MiB, twice while it is
parsed), so this and nothing else bounds what requests cost in memory. A turn is short: it ends when
the request is there.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ironwork_server.core.errors import Unavailable

# Times 11 MiB, twice: what requests of one role that are being read may cost.
READING = 8
READING_PER_NAME = 2
# For the turn and the reading together; a request has nothing else to wait for.
READING_S = 15.0
# Of those for the reading itself: whoever sends slowly holds a turn no longer, so that nobody waits
# for his own longer than this, however many send slowly (each has fewer than all the turns).
HELD_S = 5.0


class _Share:
    """The turns of one name or of one role; forgotten when nobody holds or awaits one."""

    def __init__(self, turns: int) -> None:
        self.turns = asyncio.Semaphore(turns)
        self.users = 0


class Turns:
    """First come, first served, among one name's calls and among one role's."""

    def __init__(
        self,
        *,
        total: int = READING,
        per_name: int = READING_PER_NAME,
        deadline_s: float = READING_S,
        held_s: float = HELD_S,
    ) -> None:
        self._total = total
        self._per_name = per_name
        self._deadline_s = deadline_s
        self._held_s = held_s
        # By role and name; and by role alone.
        self._shares: dict[tuple[str, ...], _Share] = {}

    @asynccontextmanager
    async def turn(self, name: str, role: str = "") -> AsyncIterator[None]:
        """Hold one while the block runs. Raises Unavailable (REQUEST_TIMEOUT) where that, with the
        waiting, takes longer than the deadline.
        """
        deadline = asyncio.timeout(self._deadline_s)
        try:
            async with (
                deadline,
                self._share((role, name), self._per_name) as own,
                own,
                self._share((role,), self._total) as everyones,
                everyones,
            ):
                self._bound(deadline)
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise Unavailable(
                "The request did not arrive in time; send it whole and at once.",
                reason="REQUEST_TIMEOUT",
                retry_after_s=1.0,
            ) from None

    def _bound(self, deadline: asyncio.Timeout) -> None:
        """What is left for the reading, once it is this one's turn."""
        ends_at, latest = deadline.when(), asyncio.get_running_loop().time() + self._held_s
        if ends_at is not None and latest < ends_at:
            deadline.reschedule(latest)

    @asynccontextmanager
    async def _share(self, whose: tuple[str, ...], turns: int) -> AsyncIterator[asyncio.Semaphore]:
        share = self._shares.setdefault(whose, _Share(turns))
        share.users += 1
        try:
            yield share.turns
        finally:
            share.users -= 1
            if share.users == 0:
                del self._shares[whose]
