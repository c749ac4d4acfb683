"""KeyStore on SQLite: one writer thread, a few readers, and the hot read on the loop."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import TypeVar

import sqlalchemy as sa

from ironwork_hsm import WrappedKey
from ironwork_server.core.errors import InvalidRequest
from ironwork_server.core.ports import AlreadyAnswered
from ironwork_server.core.values import (
    BreakGlassCopy,
    KeyState,
    LogHead,
    Replay,
    StoredKey,
    Swap,
    WrappedRow,
    Wrapping,
)
from ironwork_server.store import copies, counters, heads, rewrapping, transactions
from ironwork_server.store.connection import DatabaseFile, Session, make_private
from ironwork_server.store.erasure import erase
from ironwork_server.store.errors import StoreBusy, TraceRemains, seam
from ironwork_server.store.hot import HotRead
from ironwork_server.store.interface import Store
from ironwork_server.store.lanes import Lane
from ironwork_server.store.migrate import require_head

T = TypeVar("T")

_READERS = 2
# Calls that may wait for a thread, for each of the two lanes; past it a call fails at once.
_CAPACITY = 1000
# How long erasing may take where it is not what the caller asked for, in seconds.
_ASIDE = 1.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds, from the call. A deletion has write and then erase: it rebuilds the file, which
    takes about 5 ms for each thousand keys, and waits for readers in other processes.
    """

    read: float = 2.0
    write: float = 5.0
    erase: float = 10.0
    close: float = 5.0


def _now() -> datetime:
    return datetime.now(UTC)


def open_sqlite(
    path: Path, *, deadlines: Deadlines | None = None, clock: Callable[[], datetime] = _now
) -> Store:
    """Open the store in the file at path; it must be there and migrated. Blocks shortly.

    clock: the time by which old replays are purged. Raises StoreRefused, StoreUnavailable,
    StoreCorrupt.
    """
    deadlines = deadlines or Deadlines()
    require_head(path, deadlines.write)
    make_private(path)
    file = DatabaseFile(path)
    with seam():
        deadline = monotonic() + deadlines.write
        session = Session(file, deadline, begin="BEGIN IMMEDIATE")
        try:
            # A file that was restored from a dump has lost it.
            session.use_wal(deadline)
            # A crash after a deletion leaves its erasing to the next start. Where a reader stands
            # in its way it stays owed.
            with suppress(TraceRemains):
                erase(session, monotonic() + min(_ASIDE, deadlines.erase))
            with session.transaction(deadline) as connection:
                marker = transactions.meta_value(connection, "marker")
                installation_id = transactions.meta_value(connection, "installation_id")
        finally:
            session.close()
    return SqliteStore(file, deadlines, clock, marker, installation_id)


class SqliteStore:
    """See KeyStore and Store. Used by one event loop at a time. Owns its threads and connections;
    several stores, in one process or many, may share the file.
    """

    def __init__(
        self,
        file: DatabaseFile,
        deadlines: Deadlines,
        clock: Callable[[], datetime],
        marker: str,
        installation_id: str,
    ) -> None:
        self.marker = marker
        self.installation_id = installation_id
        self._deadlines = deadlines
        self._clock = clock
        self._closed = False
        self._hot = HotRead(file)
        self._writer = Lane(
            "store-writer",
            lambda deadline: Session(file, deadline, begin="BEGIN IMMEDIATE"),
            threads=1,
            capacity=_CAPACITY,
            writes=True,
        )
        self._readers = Lane(
            "store-reader",
            lambda deadline: Session(file, deadline, begin="BEGIN", read_only=True),
            threads=_READERS,
            capacity=_CAPACITY,
        )

    async def next_sequence(self) -> int:
        return await self._write(transactions.next_sequence)

    async def add(
        self,
        key: StoredKey,
        *,
        replay: Replay | None,
        max_keys: int,
        allow_different_organization: bool,
    ) -> None:
        await self._write(
            lambda connection: transactions.add(
                connection,
                key,
                replay=replay,
                max_keys=max_keys,
                allow_different_organization=allow_different_organization,
                now=self._clock(),
            )
        )

    async def current(self, workspace: str) -> StoredKey | None:
        if self._closed:
            raise StoreBusy
        try:
            return self._hot.current(workspace)
        except StoreBusy:
            return await self._read(lambda connection: transactions.current(connection, workspace))

    async def get(self, workspace: str, key_id: str) -> StoredKey | None:
        return await self._read(lambda connection: transactions.get(connection, workspace, key_id))

    async def find(self, workspace: str, fingerprint: bytes) -> StoredKey | None:
        return await self._read(
            lambda connection: transactions.find(connection, workspace, fingerprint)
        )

    async def page(
        self, workspace: str, *, before_sequence: int | None, limit: int
    ) -> Sequence[StoredKey]:
        if limit < 0:
            # SQLite would read it as "no limit".
            raise InvalidRequest.field("limit", "is at least 0")
        return await self._read(
            lambda connection: transactions.page(connection, workspace, before_sequence, limit)
        )

    async def delete(
        self,
        workspace: str,
        key_id: str,
        *,
        replay: Callable[[StoredKey | None], Replay] | None,
    ) -> tuple[bool, StoredKey | None]:
        """See KeyStore.delete. replay runs on the writer's thread. Raises TraceRemains where the
        row is gone but its trace is not yet; the same call again goes on with erasing.
        """

        def job(session: Session, deadline: float) -> tuple[bool, StoredKey | None]:
            try:
                with session.transaction(deadline) as connection:
                    outcome = transactions.delete(
                        connection, workspace, key_id, replay=replay, now=self._clock()
                    )
            except AlreadyAnswered:
                # The first try may have ended before its erasing did.
                erase(session, monotonic() + self._deadlines.erase)
                raise
            erase(session, monotonic() + self._deadlines.erase)
            return outcome

        return await self._writer.run(job, self._deadlines.write, self._deadlines.erase)

    async def set_state(self, workspace: str, key_id: str, state: KeyState) -> None:
        await self._write(
            lambda connection: transactions.set_state(connection, workspace, key_id, state)
        )

    async def record_uses(self, uses: Mapping[tuple[str, str], datetime]) -> None:
        copy = dict(uses)

        def job(session: Session, deadline: float) -> None:
            with session.transaction(deadline) as connection:
                transactions.record_uses(connection, copy, now=self._clock())
            # The one write that comes by itself: what a deletion could not finish is tried here.
            with suppress(TraceRemains):
                erase(session, monotonic() + min(_ASIDE, self._deadlines.erase))

        await self._writer.run(job, self._deadlines.write, _ASIDE)

    async def settled(self, workspace: str, key_id: str) -> bool:
        def look(connection: sa.Connection) -> bool:
            # A write of its own: pages of one that failed cannot come back after this has ended.
            transactions.next_sequence(connection)
            return transactions.get(connection, workspace, key_id) is not None

        return await self._write(look)

    async def find_replay(self, workspace: str, method: str, request_id: str) -> Replay | None:
        return await self._read(
            lambda connection: transactions.find_replay(connection, workspace, method, request_id)
        )

    async def pepper(self) -> WrappedKey | None:
        return await self._read(transactions.kept_pepper)

    async def create_pepper(
        self, wrapped: WrappedKey, copy: BreakGlassCopy | None = None
    ) -> WrappedKey:
        return await self._write(
            lambda connection: transactions.create_pepper(connection, wrapped, copy)
        )

    async def switched_version(self, backend: str) -> int | None:
        return await self._read(lambda connection: rewrapping.switched_version(connection, backend))

    async def wrappings(self) -> Sequence[Wrapping]:
        return await self._read(rewrapping.wrappings)

    async def wrapped_elsewhere(
        self,
        backend: str,
        version: int,
        *,
        after_sequence: int,
        limit: int,
        recipient: str | None = None,
    ) -> Sequence[WrappedRow]:
        return await self._read(
            lambda connection: rewrapping.wrapped_elsewhere(
                connection, backend, version, after_sequence, limit, recipient
            )
        )

    async def pepper_copy(self) -> BreakGlassCopy | None:
        return await self._read(copies.pepper_copy)

    async def copies(self) -> Mapping[str, int]:
        return await self._read(copies.copies)

    async def copied_for(
        self, recipient: str, *, after_sequence: int, limit: int
    ) -> Sequence[WrappedRow]:
        return await self._read(
            lambda connection: rewrapping.copied_for(connection, recipient, after_sequence, limit)
        )

    async def drop_copies(self, sequences: Sequence[int], recipient: str) -> Sequence[bool]:
        return await self._write(
            lambda connection: copies.drop_copies(connection, sequences, recipient)
        )

    async def erase(self) -> None:
        def job(session: Session, _: float) -> None:
            erase(session, monotonic() + self._deadlines.erase)

        await self._writer.run(job, self._deadlines.write, self._deadlines.erase)

    async def swap(self, swaps: Sequence[Swap]) -> Sequence[bool]:
        return await self._write(lambda connection: rewrapping.swap(connection, swaps))

    async def swap_pepper(
        self, old: WrappedKey, new: WrappedKey, copy: BreakGlassCopy | None = None
    ) -> bool:
        return await self._write(
            lambda connection: rewrapping.swap_pepper(connection, old, new, copy)
        )

    async def first_version(self, backend: str, newest: int) -> int:
        return await self._write(
            lambda connection: rewrapping.first_version(connection, backend, newest)
        )

    async def switch_on(self, backend: str, version: int) -> None:
        await self._write(lambda connection: rewrapping.switch_on(connection, backend, version))

    async def retire(self, backend: str, version: int) -> Wrapping:
        return await self._write(lambda connection: rewrapping.retire(connection, backend, version))

    async def log_head(self, origin: str) -> LogHead | None:
        return await self._read(lambda connection: heads.log_head(connection, origin))

    async def swap_log_head(self, old: LogHead | None, new: LogHead) -> bool:
        return await self._write(lambda connection: heads.swap(connection, old, new, self._clock()))

    async def check(self) -> None:
        await self._read(lambda connection: counters.counter(connection, "sequence"))

    async def close(self) -> None:
        """Let what waits finish, within a deadline; later calls raise StoreBusy."""
        self._closed = True
        self._hot.close()
        timeout = self._deadlines.close
        await asyncio.gather(self._writer.close(timeout), self._readers.close(timeout))

    async def _read(self, read: Callable[[sa.Connection], T]) -> T:
        return await self._readers.run(_in_transaction(read), self._deadlines.read)

    async def _write(self, write: Callable[[sa.Connection], T]) -> T:
        return await self._writer.run(_in_transaction(write), self._deadlines.write)


def _in_transaction(body: Callable[[sa.Connection], T]) -> Callable[[Session, float], T]:
    def job(session: Session, deadline: float) -> T:
        with session.transaction(deadline) as connection:
            return body(connection)

    return job
