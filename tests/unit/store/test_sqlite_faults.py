"""Each real cause of a failing SQLite file, and the error that names it."""

import asyncio
import logging
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from fixtures.stores import SqliteStores, io_error, plain_add, stored_key
from ironwork_server.core.errors import DataLoss, Unavailable
from ironwork_server.store import (
    Deadlines,
    Store,
    StoreBusy,
    StoreCorrupt,
    StoreFailed,
    StoreFull,
    StoreMissing,
    StoreReadOnly,
    sqlite_path,
)
from ironwork_server.store.errors import file_seam, seam


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[SqliteStores]:
    made = SqliteStores(tmp_path)
    yield made
    await made.close()


@pytest.fixture
def url(stores: SqliteStores) -> str:
    return stores.new()


async def pragma(store: Store, text: str) -> None:
    """On the writer's own connection."""
    inside: Any = store
    await inside._writer.run(lambda session, _: session.raw.execute(text).fetchall(), 30)


async def test_a_full_database_is_told(stores: SqliteStores, url: str) -> None:
    """Where there is no room a write fails as StoreFull and is not done; reads go on, and so do
    writes once there is room.
    """
    store = stores.open(url)
    kept = stored_key()
    await store.add(kept, **plain_add())
    await pragma(store, "PRAGMA max_page_count=1")
    big = stored_key(display_name="n" * 50_000)
    with pytest.raises(StoreFull) as failed:
        await store.add(big, **plain_add())
    assert isinstance(failed.value, Unavailable)
    assert failed.value.retry_after_s
    assert await store.page("acme", before_sequence=None, limit=9) == [kept]
    # The failed connection was closed, and with it its bound.
    await store.add(big, **plain_add())
    assert await store.current("acme") == big


HOLD_THE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
"""


async def test_a_lock_in_another_process_is_bounded(stores: SqliteStores, url: str) -> None:
    """While another process holds the write lock, writes fail as StoreBusy at their deadline and
    are not done; reads go on; afterwards writes do too.
    """
    store = stores.open(url, deadlines=Deadlines(read=30, write=0.3, erase=0, close=30))
    patient = stores.open(url)
    holder = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOLD_THE_LOCK, str(sqlite_path(url))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert await holder.stdout.readline() == b"held\n"
    with pytest.raises(StoreBusy):
        await store.add(stored_key(), **plain_add())
    with pytest.raises(StoreBusy):
        await store.delete("acme", "k", replay=None)
    assert await store.current("acme") is None
    assert await store.page("acme", before_sequence=None, limit=9) == []
    waiting = asyncio.create_task(patient.next_sequence())
    await holder.communicate(b"\n")
    assert await waiting == 1
    await store.add(stored_key(), **plain_add())


@pytest.mark.parametrize("how", ["delete", "replace"])
async def test_a_lost_file_is_noticed(stores: SqliteStores, url: str, how: str) -> None:
    """Once the file is deleted or another lies in its place, every call fails as StoreMissing,
    though SQLite would go on with the old one; no new file is made.
    """
    store = stores.open(url)
    key = stored_key()
    await store.add(key, **plain_add())
    assert await store.current("acme") == key
    path = sqlite_path(url)
    away = path.with_suffix(".away")
    path.rename(away)
    if how == "replace":
        sqlite_path(stores.new()).rename(path)
    calls = (
        lambda: store.current("acme"),
        lambda: store.get("acme", key.key_id),
        store.next_sequence,
        lambda: store.delete("acme", key.key_id, replay=None),
        store.check,
    )
    for call in calls * 2:
        with pytest.raises(StoreMissing):
            await call()
    assert path.exists() == (how == "replace")
    away.replace(path)
    assert await store.current("acme") == key
    await store.check()
    assert await store.next_sequence() == 1


async def test_garbage_is_no_store(stores: SqliteStores, url: str) -> None:
    """A file that holds no database is StoreCorrupt at opening."""
    path = sqlite_path(url)
    path.write_bytes(os.urandom(8192))
    with pytest.raises(StoreCorrupt) as failed:
        stores.open(url)
    assert isinstance(failed.value, DataLoss)
    assert failed.value.reason == "STORE_CORRUPT"


async def test_damaged_pages_are_told(stores: SqliteStores, url: str) -> None:
    """Damage inside the file is StoreCorrupt for every read that meets it, never a wrong row."""
    store = stores.open(url)
    for _ in range(40):
        await store.add(stored_key(), **plain_add())
    await store.close()
    path = sqlite_path(url)
    content = bytearray(path.read_bytes())
    # All but the first page, which holds the schema.
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    # Opening already reads the revision.
    with pytest.raises(StoreCorrupt):
        stores.open(url)


async def test_damage_while_serving_is_told(stores: SqliteStores, url: str) -> None:
    """A row that another program spoilt is StoreCorrupt, on the hot read and on the others."""
    store = stores.open(url)
    key = stored_key()
    await store.add(key, **plain_add())
    with sqlite3.connect(sqlite_path(url)) as other:
        other.execute("UPDATE keys SET state = 'SOMETHING'")
        other.execute("DELETE FROM counters")
    other.close()
    for call in (store.current("acme"), store.get("acme", key.key_id), store.next_sequence()):
        with pytest.raises(StoreCorrupt):
            await call
    with pytest.raises(StoreCorrupt):
        await store.check()


async def test_a_read_only_database_is_told(stores: SqliteStores, url: str) -> None:
    """A connection that may not write fails as StoreReadOnly."""
    store = stores.open(url)
    await pragma(store, "PRAGMA query_only=ON")
    with pytest.raises(StoreReadOnly):
        await store.add(stored_key(), **plain_add())


def lock_whole_file(url: str) -> sqlite3.Connection:
    """Another program that lets not even readers in, until it is closed."""
    locker = sqlite3.connect(sqlite_path(url), isolation_level=None)
    locker.execute("PRAGMA locking_mode=EXCLUSIVE")
    locker.execute("BEGIN IMMEDIATE")
    return locker


async def test_the_hot_read_never_waits_on_the_loop(stores: SqliteStores, url: str) -> None:
    """Where even a reader must wait, the hot read waits on a thread: the event loop goes on, and
    the read answers when it can.
    """
    first = stores.open(url)
    key = stored_key()
    await first.add(key, **plain_add())
    await first.close()
    store = stores.open(url)
    locker = lock_whole_file(url)
    reading = asyncio.create_task(store.current("acme"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not reading.done()
    locker.close()
    assert await reading == key


async def test_a_file_locked_whole_is_bounded(stores: SqliteStores, url: str) -> None:
    """Where the file stays locked, every read fails as StoreBusy at its deadline, and so does
    opening.
    """
    short = Deadlines(read=0.1, write=0.1, erase=0.1, close=30)
    store = stores.open(url, deadlines=short)
    locker = lock_whole_file(url)
    for call in (store.current("acme"), store.get("acme", "k"), store.check()):
        with pytest.raises(StoreBusy):
            await call
    with pytest.raises(StoreBusy):
        stores.open(url, deadlines=short)
    locker.close()


async def test_the_log_of_statements_is_silent(
    stores: SqliteStores, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG no logger says anything of a row: neither parameters nor results."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="sqlalchemy")
    store = stores.open(url)
    key = stored_key(display_name="canary-name")
    await store.add(key, **plain_add())
    assert await store.get("acme", key.key_id) == key
    await store.delete("acme", key.key_id, replay=None)
    for canary in ("canary-name", key.key_id, repr(key.fingerprint)):
        assert canary not in caplog.text


CAUSES = [
    (sqlite3.SQLITE_BUSY_RECOVERY, StoreBusy),
    (sqlite3.SQLITE_LOCKED, StoreBusy),
    (sqlite3.SQLITE_INTERRUPT, StoreBusy),
    (sqlite3.SQLITE_FULL, StoreFull),
    (sqlite3.SQLITE_READONLY_DIRECTORY, StoreReadOnly),
    (sqlite3.SQLITE_READONLY_DBMOVED, StoreMissing),
    (sqlite3.SQLITE_CANTOPEN_ISDIR, StoreMissing),
    (sqlite3.SQLITE_IOERR_FSYNC, StoreFailed),
    (sqlite3.SQLITE_IOERR_SHORT_READ, StoreFailed),
    (sqlite3.SQLITE_CORRUPT_INDEX, StoreCorrupt),
    (sqlite3.SQLITE_NOTADB, StoreCorrupt),
    (sqlite3.SQLITE_ERROR, StoreFailed),
]


@pytest.mark.parametrize(("code", "expected"), CAUSES)
def test_result_codes_have_their_errors(code: int, expected: type[Exception]) -> None:
    """Each of SQLite's result codes becomes the error that says what to mend, with the driver
    bare and with SQLAlchemy around it, and without the foreign text.
    """
    error = io_error()
    error.sqlite_errorcode = code
    for raised in (error, DBAPIError("SELECT 'canary'", {"p": "canary"}, error)):
        with pytest.raises(expected) as failed, seam():
            raise raised
        assert type(failed.value) is expected
        assert "canary" not in str(failed.value)
        assert failed.value.__suppress_context__


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), StoreFailed),
        (InvalidRequestError("Can't operate on closed transaction"), StoreFailed),
        (FileNotFoundError(2, "canary"), StoreMissing),
        (PermissionError(13, "canary"), StoreReadOnly),
        (OSError(5, "canary"), StoreFailed),
    ],
)
def test_other_errors_are_ours_too(error: Exception, expected: type[Exception]) -> None:
    """Errors without a result code, and the file system's, have their place as well."""
    with pytest.raises(expected) as failed, file_seam(), seam():
        raise error
    assert type(failed.value) is expected
    assert "canary" not in str(failed.value)
