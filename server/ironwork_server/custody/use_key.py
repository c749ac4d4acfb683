"""Using a key: one Claude request, with the key that is current when it is written."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ironwork_server.core.echo import Look, look_away
from ironwork_server.core.envelope import open_into, wipe
from ironwork_server.core.errors import PreconditionFailed
from ironwork_server.core.ports import (
    Injector,
    Journal,
    KeyStore,
    StaleCredential,
    Upstream,
    UpstreamResponse,
)
from ironwork_server.core.values import Action, ScreenedRequest, StoredKey
from ironwork_server.custody.echo import EchoJudge, GuardedResponse
from ironwork_server.custody.gate import Permit
from ironwork_server.custody.in_flight import CallScope, InFlight, KeyRef
from ironwork_server.custody.last_used import UseRecorder
from ironwork_server.custody.vault import Vault, binding_of, check_row, key_length

# Reads of the current key, each of which may be overtaken by a deletion, for one preparation.
MAX_READS = 3


@dataclass(slots=True)
class Serving:
    """How far a request got: which key serves it, and whether a byte may have reached Anthropic."""

    sent: bool = False
    key: StoredKey | None = None


class SealedInjector:
    """Decrypts the key into the buffer of the socket write, if the read behind it is fresh.

    Owns data_key and wipes it, used or not.
    """

    def __init__(
        self,
        row: StoredKey,
        data_key: bytearray,
        *,
        read_at: float,
        freshness_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._row = row
        self._data_key = data_key
        self._expires_at = read_at + freshness_s
        self._clock = clock

    @property
    def length(self) -> int:
        """Length of the key in bytes."""
        return key_length(self._row)

    def inject(self, target: memoryview) -> None:
        """See core.ports.Injector. Errors: StaleCredential, DataLoss."""
        try:
            if self._clock() > self._expires_at:
                raise StaleCredential
            sealed = self._row.sealed
            open_into(
                sealed.nonce, sealed.ciphertext, self._data_key, binding_of(self._row), target
            )
        finally:
            self.discard()

    def discard(self) -> None:
        """Wipe the data key."""
        wipe(self._data_key)


class KeyUser:
    """The use case behind each Claude request on a WithKey stream.

    freshness_s: a request begins at its socket write; a read older than this by the local
    monotonic clock, taken from before the query, is done again (DESIGN 4, freshness).
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        vault: Vault,
        upstream: Upstream,
        journal: Journal,
        in_flight: InFlight,
        uses: UseRecorder,
        freshness_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._vault = vault
        self._upstream = upstream
        self._journal = journal
        self._in_flight = in_flight
        self._uses = uses
        self._freshness_s = freshness_s
        self._clock = clock

    @asynccontextmanager
    async def send(
        self,
        permit: Permit,
        request: ScreenedRequest,
        body: AsyncIterator[bytes],
        *,
        serving: Serving,
        scope: CallScope,
        look: Look = look_away,
    ) -> AsyncIterator[UpstreamResponse]:
        """The answer's head has arrived when this is entered, and neither it nor the body, however
        it is cut, holds the key. look sees the body's bytes, decoded, as `chunks` is read.
        Errors: as Upstream.send's, and PreconditionFailed (NO_KEY, KEY_WAS_DELETED), DataLoss,
        Unavailable, UpstreamFailed (KEY_ECHOED, ECHO_UNDECIDED, UPSTREAM_ENCODING; the last three
        also from the body).
        """
        permit.require(Action.WITH_KEY)
        with self._in_flight.serving(scope) as register:

            async def credential() -> Injector:
                return await self._prepare(permit, serving, register)

            async with self._upstream.send(request, body, credential, serving) as response:
                await self._note(permit, serving, response)
                yield await self._guarded(permit, serving, response, look)

    async def _prepare(
        self, permit: Permit, serving: Serving, register: Callable[[KeyRef], None]
    ) -> Injector:
        row, read_at = await self._current(permit.workspace)
        check_row(permit, row)
        serving.key = row
        register((row.workspace, row.key_id))
        permit.note(key_id=row.key_id, key_mask=row.mask)
        data_key = await self._vault.unwrap(permit, row)
        return SealedInjector(
            row,
            data_key,
            read_at=read_at,
            freshness_s=self._freshness_s,
            clock=self._clock,
        )

    async def _current(self, workspace: str) -> tuple[StoredKey, float]:
        """The current row, and when its query was sent. A row whose deletion is in the log was
        perhaps deleted between the query and its answer: then the next query finds another.
        """
        for _ in range(MAX_READS):
            read_at = self._clock()
            row = await self._store.current(workspace)
            if row is None:
                raise PreconditionFailed(
                    "The workspace has no key; a key-admin adds one with AddKey.", reason="NO_KEY"
                )
            if not self._journal.was_deleted(row.workspace, row.key_id):
                return row, read_at
        raise PreconditionFailed(
            "The workspace's newest key was deleted according to the audit log: the database"
            " is older than the log. Delete it again, or add a new key.",
            reason="KEY_WAS_DELETED",
        )

    async def _guarded(
        self, permit: Permit, serving: Serving, response: UpstreamResponse, look: Look
    ) -> UpstreamResponse:
        if serving.key is None:  # nothing of a key was sent that could come back
            return response
        judge = EchoJudge(self._vault, permit, serving.key)
        return await GuardedResponse.open(response, judge, look)

    async def _note(self, permit: Permit, serving: Serving, response: UpstreamResponse) -> None:
        permit.note(http_status=response.status)
        if serving.key is not None:
            self._uses.note(serving.key, rejected=response.status == 401)
