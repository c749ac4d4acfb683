"""Data keys kept for a while after an unwrap, where the operator asked for it (ADR 0024).

Off by default. An entry belongs to one row exactly as it was read: everything that its wrapped blob
is bound to, and the blob. It ends, and is overwritten, at its age (by a timer), with its last use,
when its key is deleted here, when the device fails, when there are too many, and at the end. What
is handed out is a copy, which its user wipes as ever; each use is on record before it, and names
the unwrap that it rests on.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from ironwork_hsm import WrappedKey
from ironwork_server.core.envelope import Binding, wipe
from ironwork_server.core.errors import Unavailable
from ironwork_server.core.values import AuditReference, Phase
from ironwork_server.custody.gate import Permit

# For an unwrap by another call to end; it has deadlines of its own.
TURN_S = 10.0

_Identity = tuple[Binding, WrappedKey]
Unwrap = Callable[[], Awaitable[tuple[bytearray, AuditReference]]]


class Timer(Protocol):
    """asyncio.TimerHandle."""

    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]


@dataclass(frozen=True, slots=True)
class CacheBounds:
    """max_age_s: seconds from the unwrap. max_uses: of one unwrap, its own call's included."""

    max_age_s: float
    max_uses: int
    max_entries: int


@dataclass(slots=True)
class _Entry:
    """data_key is wiped by whoever takes the entry out. unwrap: the intent that it rests on."""

    data_key: bytearray = field(repr=False)
    unwrap: AuditReference
    ends_at: float
    uses_left: int
    timer: Timer


@dataclass(slots=True)
class _Turn:
    """One call at a time asks for one row. users: calls that hold or want it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


def _on_loop(delay_s: float, callback: Callable[[], None]) -> Timer:
    return asyncio.get_running_loop().call_later(delay_s, callback)


class DataKeyCache:
    """Belongs to one event loop."""

    def __init__(
        self,
        bounds: CacheBounds,
        *,
        clock: Callable[[], float] = time.monotonic,
        later: Later = _on_loop,
    ) -> None:
        self._bounds = bounds
        self._clock = clock
        self._later = later
        # Oldest first.
        self._entries: dict[_Identity, _Entry] = {}
        self._turns: dict[_Identity, _Turn] = {}
        # How often something was taken out for good: what is being unwrapped then is not kept.
        self._endings = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def take(
        self, permit: Permit, binding: Binding, wrapped: WrappedKey, unwrap: Unwrap
    ) -> bytearray:
        """The row's data key, for one use; the caller wipes it. unwrap is called where none is
        kept, by one call at a time. Errors: unwrap's, and Unavailable.
        """
        identity = (binding, wrapped)
        async with self._turn(identity):
            entry = self._alive(identity)
            if entry is None:
                endings = self._endings
                data_key, reference = await unwrap()
                if endings == self._endings:
                    self._keep(identity, data_key, reference)
                return data_key
            data_key = bytearray(entry.data_key)
            entry.uses_left -= 1
            if entry.uses_left == 0:
                self._drop(identity)
        await self._record(permit, identity, entry.unwrap, data_key)
        return data_key

    def forget(self, workspace: str, key_id: str) -> None:
        """The key was deleted: wipe what is kept of it."""
        self._endings += 1
        for identity in list(self._entries):
            if (identity[0].workspace, identity[0].key_id) == (workspace, key_id):
                self._drop(identity)

    def clear(self) -> None:
        """Wipe everything: the device fails, or the service ends."""
        self._endings += 1
        for identity in list(self._entries):
            self._drop(identity)

    def _alive(self, identity: _Identity) -> _Entry | None:
        entry = self._entries.get(identity)
        if entry is not None and self._clock() >= entry.ends_at:
            # Its timer is late: the loop was busy.
            self._drop(identity)
            return None
        return entry

    def _keep(self, identity: _Identity, data_key: bytearray, unwrap: AuditReference) -> None:
        bounds = self._bounds
        if bounds.max_uses == 1:
            return
        while len(self._entries) >= bounds.max_entries:
            self._drop(next(iter(self._entries)))
        self._entries[identity] = _Entry(
            bytearray(data_key),
            unwrap,
            ends_at=self._clock() + bounds.max_age_s,
            uses_left=bounds.max_uses - 1,
            timer=self._later(bounds.max_age_s, lambda: self._drop(identity)),
        )

    def _drop(self, identity: _Identity) -> None:
        """It is there: whatever takes it out cancels its timer."""
        entry = self._entries.pop(identity)
        entry.timer.cancel()
        wipe(entry.data_key)

    async def _record(
        self, permit: Permit, identity: _Identity, unwrap: AuditReference, data_key: bytearray
    ) -> None:
        binding, wrapped = identity
        recorded = False
        try:
            await permit.before(
                permit.event(
                    Phase.EVENT,
                    "cache.use",
                    success=True,
                    key_id=binding.key_id,
                    details={
                        "purpose": "data-key",
                        "backend": wrapped.backend,
                        "master_key_version": wrapped.key_version,
                        "mechanism": wrapped.mechanism,
                        "unwrap_index": unwrap.index,
                    },
                )
            )
            recorded = True
        finally:
            if not recorded:
                wipe(data_key)

    @asynccontextmanager
    async def _turn(self, identity: _Identity) -> AsyncIterator[None]:
        turn = self._turns.setdefault(identity, _Turn())
        turn.users += 1
        try:
            try:
                async with asyncio.timeout(TURN_S):
                    await turn.lock.acquire()
            except TimeoutError:
                raise Unavailable(
                    "The HSM does not answer.", reason="MASTER_KEY_UNAVAILABLE", retry_after_s=5.0
                ) from None
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if turn.users == 0:
                del self._turns[identity]
