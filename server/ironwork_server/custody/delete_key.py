"""Deleting a key: destroyed at once, and used by no request that begins afterwards."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from ironwork_server.core.errors import InvalidRequest, NotFound
from ironwork_server.core.names import parse_request_id
from ironwork_server.core.ports import AlreadyAnswered, KeyStore
from ironwork_server.core.values import Action, Phase, Replay, StoredKey
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.in_flight import InFlight
from ironwork_server.custody.masked import MaskedKey, decode_answer, encode_answer, mask_row
from ironwork_server.custody.uninterrupted import uninterrupted
from ironwork_server.store import TraceRemains

METHOD = Action.DELETE_KEY.value
# Two machines' clocks do not run equally fast (ntpd slews by up to 0.05 %), and a read's age is
# looked at some microseconds before the socket's write.
WAIT_FACTOR = 1.05


@dataclass(frozen=True, slots=True)
class Deleted:
    """current: the key that is current now, if one remains. cancelled: responses ended here."""

    current: MaskedKey | None
    cancelled: int


class KeyDeleter:
    """The use case DeleteKey.

    freshness_s: the greatest age of a read that a request may begin on (use_key.py). A deletion
    returns once every read that came before it has expired, on whichever replica it was made.
    forget: is told workspace and key, once nothing can begin with the key any more.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        in_flight: InFlight,
        freshness_s: float,
        forget: Callable[[str, str], None] = lambda workspace, key_id: None,
    ) -> None:
        self._forget = forget
        self._store = store
        self._in_flight = in_flight
        self._freshness_s = freshness_s

    async def delete(
        self, permit: Permit, key_id: str, *, cancel_in_flight: bool, request_id: str
    ) -> Deleted:
        """Errors: NotFound, InvalidRequest (request_id), Unavailable; the store's TraceRemains
        where the key is deleted, but its bytes are still in the store's files.
        """
        permit.require(Action.DELETE_KEY)
        wanted = parse_request_id(request_id)
        # Nothing here is secret, and deleting must not need the HSM: a plain hash.
        digest = hashlib.sha256(f"{METHOD} {permit.workspace} {key_id}".encode()).digest()

        # To its end, although the caller may go: else the row would be gone, and the log deny it.
        return await uninterrupted(
            self._destroy(
                permit, key_id, _keeper(permit.workspace, wanted, digest), digest, cancel_in_flight
            )
        )

    async def _destroy(
        self,
        permit: Permit,
        key_id: str,
        keep: Callable[[StoredKey | None], Replay] | None,
        digest: bytes,
        cancel_in_flight: bool,
    ) -> Deleted:
        try:
            found, current = await self._store.delete(permit.workspace, key_id, replay=keep)
        except AlreadyAnswered as first:
            return await self._repeat(permit, key_id, first.replay, digest, cancel_in_flight)
        except TraceRemains:
            # The row is gone for every read, whatever remains of it on the disk.
            await permit.before(
                permit.event(Phase.EVENT, "key.deleted", success=True, key_id=key_id)
            )
            await self._take_effect(permit, key_id, cancel_in_flight)
            raise
        if not found:
            # Perhaps it is being deleted by another call, whose wait is not over.
            await self._wait()
            raise NotFound(
                "The workspace has no such key; list its keys for their names.",
                reason="KEY_NOT_FOUND",
            )
        cancelled = await self._take_effect(permit, key_id, cancel_in_flight)
        return Deleted(mask_row(current, current=True) if current else None, cancelled)

    async def _repeat(
        self, permit: Permit, key_id: str, kept: Replay, digest: bytes, cancel_in_flight: bool
    ) -> Deleted:
        if kept.digest != digest:
            raise InvalidRequest.field(
                "request_id",
                "was used before for another request; choose a new one",
                reason="REQUEST_ID_REUSED",
            )
        permit.note(replayed=1)
        # The first answer may have been lost before the deletion took effect everywhere.
        cancelled = await self._take_effect(permit, key_id, cancel_in_flight)
        return Deleted(decode_answer(kept.answer), cancelled)

    async def _take_effect(self, permit: Permit, key_id: str, cancel_in_flight: bool) -> int:
        permit.note(cancel_in_flight=cancel_in_flight)
        await self._wait()
        self._forget(permit.workspace, key_id)
        if not cancel_in_flight:
            return 0
        cancelled = self._in_flight.end((permit.workspace, key_id), "KEY_DELETED")
        permit.note(cancelled_requests=cancelled)
        return cancelled

    async def _wait(self) -> None:
        """Until no read that was made before this can begin a request, on any replica."""
        await asyncio.sleep(self._freshness_s * WAIT_FACTOR)


def _keeper(
    workspace: str, request_id: str | None, digest: bytes
) -> Callable[[StoredKey | None], Replay] | None:
    """Makes the answer to keep, inside the store's transaction; None where none is kept."""
    if request_id is None:
        return None

    def keep(current: StoredKey | None) -> Replay:
        return Replay(
            workspace=workspace,
            method=METHOD,
            request_id=request_id,
            digest=digest,
            answer=encode_answer(mask_row(current, current=True) if current else None),
            created_at=datetime.now(UTC),
        )

    return keep
