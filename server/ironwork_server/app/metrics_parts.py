"""The store and the audit log as the parts see them, each operation measured on its way."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from ironwork_hsm import WrappedKey
from ironwork_server.core.meter import Meter, measured
from ironwork_server.core.ports import (
    AlreadyAnswered,
    Journal,
    KeyExists,
    KeyStore,
    OrganizationDiffers,
    TooManyKeys,
)
from ironwork_server.core.values import (
    AuditEvent,
    AuditReference,
    BreakGlassCopy,
    KeyState,
    Replay,
    StoredKey,
)

T = TypeVar("T")

# The store did what it was asked to: it found a reason against it.
_ANSWERS = (AlreadyAnswered, KeyExists, OrganizationDiffers, TooManyKeys)


class MeteredJournal:
    """core.ports.Journal, measured."""

    def __init__(self, journal: Journal, meter: Meter) -> None:
        self._journal = journal
        self._meter = meter

    @property
    def origin(self) -> str:
        return self._journal.origin

    async def append(self, *events: AuditEvent) -> Sequence[AuditReference]:
        """See the port."""
        with measured(lambda *found: self._meter.journal(len(events), *found)):
            return await self._journal.append(*events)

    def was_deleted(self, workspace: str, key_id: str) -> bool:
        return self._journal.was_deleted(workspace, key_id)

    async def close(self) -> None:
        await self._journal.close()


class MeteredStore:
    """core.ports.KeyStore, measured."""

    def __init__(self, store: KeyStore, meter: Meter) -> None:
        self._store = store
        self._meter = meter

    async def next_sequence(self) -> int:
        return await self._told("next_sequence", self._store.next_sequence())

    async def add(
        self,
        key: StoredKey,
        *,
        replay: Replay | None,
        max_keys: int,
        allow_different_organization: bool,
    ) -> None:
        await self._told(
            "add",
            self._store.add(
                key,
                replay=replay,
                max_keys=max_keys,
                allow_different_organization=allow_different_organization,
            ),
        )

    async def current(self, workspace: str) -> StoredKey | None:
        return await self._told("current", self._store.current(workspace))

    async def get(self, workspace: str, key_id: str) -> StoredKey | None:
        return await self._told("get", self._store.get(workspace, key_id))

    async def find(self, workspace: str, fingerprint: bytes) -> StoredKey | None:
        return await self._told("find", self._store.find(workspace, fingerprint))

    async def page(
        self, workspace: str, *, before_sequence: int | None, limit: int
    ) -> Sequence[StoredKey]:
        return await self._told(
            "page", self._store.page(workspace, before_sequence=before_sequence, limit=limit)
        )

    async def delete(
        self,
        workspace: str,
        key_id: str,
        *,
        replay: Callable[[StoredKey | None], Replay] | None,
    ) -> tuple[bool, StoredKey | None]:
        return await self._told("delete", self._store.delete(workspace, key_id, replay=replay))

    async def set_state(self, workspace: str, key_id: str, state: KeyState) -> None:
        await self._told("set_state", self._store.set_state(workspace, key_id, state))

    async def record_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        await self._told("record_uses", self._store.record_uses(uses))

    async def settled(self, workspace: str, key_id: str) -> bool:
        return await self._told("settled", self._store.settled(workspace, key_id))

    async def find_replay(self, workspace: str, method: str, request_id: str) -> Replay | None:
        return await self._told(
            "find_replay", self._store.find_replay(workspace, method, request_id)
        )

    async def pepper(self) -> WrappedKey | None:
        return await self._told("pepper", self._store.pepper())

    async def create_pepper(
        self, wrapped: WrappedKey, copy: BreakGlassCopy | None = None
    ) -> WrappedKey:
        return await self._told("create_pepper", self._store.create_pepper(wrapped, copy))

    async def switched_version(self, backend: str) -> int | None:
        return await self._told("switched_version", self._store.switched_version(backend))

    async def first_version(self, backend: str, newest: int) -> int:
        return await self._told("first_version", self._store.first_version(backend, newest))

    async def check(self) -> None:
        await self._told("check", self._store.check())

    async def close(self) -> None:
        await self._store.close()

    async def _told(self, operation: str, work: Awaitable[T]) -> T:
        with measured(lambda *found: self._meter.store(operation, *found), *_ANSWERS):
            return await work
