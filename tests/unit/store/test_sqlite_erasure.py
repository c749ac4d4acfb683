"""A deletion leaves no trace in the files: looked for in their bytes."""

import asyncio
import os
import random
import sqlite3
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.stores import SqliteStores, plain_add, replay, stored_key
from ironwork_server.core.ports import AlreadyAnswered
from ironwork_server.core.values import Replay, StoredKey
from ironwork_server.store import Deadlines, Store, TraceRemains, sqlite_path


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    made = SqliteStores(tmp_path)
    yield made
    await made.close()


async def file_bytes(url: str) -> bytes:
    """Read by another process: closing the files in this one would drop SQLite's locks on them."""
    path = sqlite_path(url)
    names = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    cat = await asyncio.create_subprocess_exec(
        *("cat", *(str(name) for name in names if name.exists())),
        stdout=asyncio.subprocess.PIPE,
    )
    found, _ = await cat.communicate()
    assert cat.returncode == 0
    return found


def pieces(key: StoredKey) -> list[bytes]:
    """What is searched for: the row's own values, 12 bytes each."""
    parts = (
        key.key_id.encode(),
        key.fingerprint,
        key.sealed.nonce,
        key.sealed.ciphertext,
        key.sealed.wrapped.blob,
    )
    return [part[at : at + 12] for part in parts for at in range(0, len(part) - 11, 12)]


async def traces(url: str, key: StoredKey) -> list[bytes]:
    """Which pieces of the row are in the files."""
    found = await file_bytes(url)
    return [piece for piece in pieces(key) if piece in found]


async def test_a_deletion_leaves_no_trace_in_the_files(stores: SqliteStores) -> None:
    """When delete has returned, no piece of the row is in the database, its log or its index."""
    url = stores.new()
    store = stores.open(url)
    kept, key = stored_key(), stored_key()
    for one in (kept, key):
        await store.add(one, **plain_add())
    assert await traces(url, key), "the search finds what is there"
    await store.delete("acme", key.key_id, replay=None)
    assert await traces(url, key) == []
    assert await traces(url, kept)
    path = sqlite_path(url)
    # One page: that the erasing is done. All older ones are gone.
    assert path.with_name(path.name + "-wal").stat().st_size < 2 * 4096


async def test_rows_that_moved_between_pages_leave_no_trace(stores: SqliteStores) -> None:
    """Nor is there a trace where SQLite moved rows between pages while they were alive: its own
    secure_delete leaves a whole row behind in just this sequence, which was searched for.
    """
    url = stores.new()
    store = stores.open(url)
    chance = random.Random(3)
    live: list[StoredKey] = []
    gone: list[StoredKey] = []
    for number in range(150):
        key = stored_key(
            f"w{chance.randrange(8)}",
            sequence=1_000_000 + number,
            key_id=str(uuid.UUID(int=chance.getrandbits(128))),
            fingerprint=chance.randbytes(32),
            display_name="n" * chance.choice([0, 60, 300, 900]),
        )
        await store.add(key, **plain_add())
        live.append(key)
    for number in range(130):
        key = live.pop(chance.randrange(len(live)))
        await store.delete(key.workspace, key.key_id, replay=None)
        gone.append(key)
        if number % 10 == 9:
            found = await file_bytes(url)
            assert not [piece for key in gone for piece in pieces(key) if piece in found]


async def test_connections_have_their_settings(stores: SqliteStores) -> None:
    """Every connection keeps temporary tables in memory, overwrites what it frees, syncs each
    commit and writes to a log; the hot read's never waits and never writes.
    """
    url = stores.new()
    store: Any = stores.open(url)
    await store.add(stored_key(), **plain_add())
    names = ("temp_store", "secure_delete", "synchronous", "journal_mode", "foreign_keys")

    def look(session: Any, deadline: float) -> list[object]:
        return [session.raw.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    expected = [2, 1, 2, "wal", 1]
    assert await store._writer.run(look, 5) == expected
    assert await store._readers.run(look, 5) == expected
    await store.current("acme")
    hot = store._hot._connection
    # On the event loop's thread nothing waits for a lock.
    assert hot.execute("PRAGMA busy_timeout").fetchone() == (0,)
    assert hot.execute("PRAGMA query_only").fetchone() == (1,)


class Reader:
    """A reader in another program that holds its view of the file, such as a backup."""

    def __init__(self, url: str) -> None:
        self._connection = sqlite3.connect(sqlite_path(url), isolation_level=None)
        self._connection.execute("BEGIN")
        self._connection.execute("SELECT count(*) FROM keys").fetchall()

    def end(self) -> None:
        self._connection.close()


# Gives up erasing soon; nothing else of these tests has a short deadline.
SHORT = Deadlines(read=30, write=30, erase=0.05, close=30)


async def deleted_under_a_reader(store: Store, url: str) -> StoredKey:
    """A key whose deletion told that its trace remains, while a reader holds the file."""
    key = stored_key()
    await store.add(key, **plain_add())
    # Its connection stays: SQLite cleans up by itself only when the last one is closed.
    assert await store.current("acme") == key
    reader = Reader(url)
    with pytest.raises(TraceRemains) as failed:
        await store.delete("acme", key.key_id, replay=delete_answer)
    assert failed.value.reason == "STORE_UNAVAILABLE"
    reader.end()
    assert await store.current("acme") is None
    assert await traces(url, key)
    return key


def delete_answer(_: StoredKey | None) -> Replay:
    return replay("d1", method="DeleteKey")


async def test_delete_waits_for_readers(stores: SqliteStores) -> None:
    """Where a reader holds the file for a while, delete returns after it, without a trace."""
    url = stores.new()
    store = stores.open(url)
    key = stored_key()
    await store.add(key, **plain_add())
    reader = Reader(url)
    deleting = asyncio.create_task(store.delete("acme", key.key_id, replay=None))
    while await store.current("acme") is not None:  # noqa: ASYNC110 - the rule is about reads
        await asyncio.sleep(0)
    assert not deleting.done()
    reader.end()
    assert await deleting == (True, None)
    assert await traces(url, key) == []


async def test_a_repeated_deletion_ends_the_erasing(stores: SqliteStores) -> None:
    """Where delete told that a trace remains, the row is gone, and the same deletion again
    returns only when the trace is gone too.
    """
    url = stores.new()
    store = stores.open(url, deadlines=SHORT)
    key = await deleted_under_a_reader(store, url)
    patient = stores.open(url)
    with pytest.raises(AlreadyAnswered):
        await patient.delete("acme", key.key_id, replay=delete_answer)
    assert await traces(url, key) == []


async def test_a_repeated_deletion_still_tells_what_remains(stores: SqliteStores) -> None:
    """As long as a reader holds the file, no form of the repeated deletion claims success."""
    url = stores.new()
    store = stores.open(url, deadlines=SHORT)
    key = stored_key()
    await store.add(key, **plain_add())
    reader = Reader(url)
    for answer in (delete_answer, delete_answer, None):
        with pytest.raises(TraceRemains):
            await store.delete("acme", key.key_id, replay=answer)
    reader.end()
    assert await store.delete("acme", key.key_id, replay=None) == (False, None)
    assert await traces(url, key) == []


async def test_a_restart_ends_the_erasing(stores: SqliteStores) -> None:
    """What a crashed process still owed is erased when the store is opened again; a reader in
    the way then does not keep it from opening.
    """
    url = stores.new()
    store = stores.open(url, deadlines=SHORT)
    key = await deleted_under_a_reader(store, url)
    reader = Reader(url)
    stores.open(url, deadlines=SHORT)
    reader.end()
    stores.open(url)
    assert await traces(url, key) == []


async def test_recording_uses_ends_the_erasing(stores: SqliteStores) -> None:
    """The regular write goes on with what a deletion could not finish, and does not fail by it."""
    url = stores.new()
    store = stores.open(url, deadlines=SHORT)
    key = await deleted_under_a_reader(store, url)
    reader = Reader(url)
    await store.record_uses({})
    reader.end()
    patient = stores.open(url)
    await patient.record_uses({})
    assert await traces(url, key) == []


async def test_the_files_are_private(stores: SqliteStores) -> None:
    """Only the owner can read the store's files, whatever the umask was or a copy made of them."""
    before = os.umask(0)
    try:
        url = stores.new()
        path = sqlite_path(url)
        path.chmod(0o644)
        store = stores.open(url)
        await store.add(stored_key(), **plain_add())
        await store.delete("acme", "none", replay=None)
    finally:
        os.umask(before)
    modes = {name.name: name.stat().st_mode & 0o777 for name in path.parent.iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}
